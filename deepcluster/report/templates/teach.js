/* ---- teaching: answers about a few images, which all others follow ------------------------------------------------- */

/* Answers by row, as runs/lesson.py takes them: to questions, or from a list of images. */
const teacher = $("#teach"), EACH = 10, MAX_SHOWN = 48;
const answered = new Map(), skipped = new Set(), right = new Set(), asked = [];
let queue = [], current = answered, within = null, inquiry = new AbortController();

/* Closing the dialog aborts what it asks for: the edit that follows would make this request one of an old page. */
async function inquire(action, n = EACH) {
  inquiry = new AbortController();
  const {signal} = inquiry, taught = {within, n, answers: [...current.values()]};
  const reply = await post(action, {taught}, signal).then(answer => answer.json()).catch(() => ({error: SILENT}));
  if (signal.aborted) return {};
  if (!reply.error) return reply;
  teacher.close();
  tell(reply.error);
  if (reply.outdated) offerReload();
  return {};
}

/* Every fourth question is about an image drawn at random, whether or not it would teach much. */
async function fillQueue() {
  const {questions} = await inquire("ask", EACH + skipped.size);
  const [taught, drawn] = (questions ?? [[], []]).map(list => list.filter(({row}) => !answered.has(row) && !skipped.has(row)));
  const random = drawn.slice(0, 3).map(question => ({...question, drawn: true}));
  const others = taught.filter(({row}) => !random.some(question => question.row === row));
  queue = Array.from({length: EACH}, (_, i) => ((answered.size + i) % 4 === 3 ? random : others).shift()).filter(Boolean);
}

async function ask() {
  part("ask", t("Looking…"));
  if (!queue.length) await fillQueue();
  if (!teacher.open) return;
  if (!queue.length) return review();
  $("#teach-title").textContent = t("Where does this image belong?");
  const question = queue[0], place = $("#teach-picture"), {row, path, cluster} = question;
  place.replaceChildren(picture(row % imageData.step ? -1 : tileOf(row / imageData.step), 0));
  for (const next of queue.slice(0, 3)) next.image ??= element("img", {alt: next.path, src: urlOf(next.row, next.path) || ""});
  question.image.decode().then(() => queue[0] === question && place.replaceChildren(question.image), () => {});
  $("#teach-about").textContent = `${path} · ${t("now in {0}", callOf(cluster))}`;
  const names = [...new Set([...answered.values()].map(({name}) => name))].filter(Boolean).slice(-4);
  question.choices = [...question.likely.filter(isPresent).slice(0, 9 - names.length), ...names];
  $("#teach-likely").replaceChildren(...question.choices.map((choice, k) => {
    const isNew = typeof choice === "string", text = isNew ? choice : nameOf(choice) || callOf(choice);
    return element("button", {type: "button", value: k, title: text}, isNew ? element("span", {className: "tile"}, "+") : faceOf(choice, 72), element("kbd", {}, k + 1), text);
  }));
  $("#teach-name").value = "";
  $("[data-teach=review]").disabled = !answered.size;
  $("#teach-names").replaceChildren(...present().map(number => element("option", {value: nameOf(number) || number})));
  teacher.focus();
}

/* Take an answer, a cluster or a new name; without one the question is skipped. */
function give(choice = null) {
  if (!queue.length) return;
  const question = queue.shift(), {row, drawn = false} = question;
  asked.push(question);
  if (choice === null) skipped.add(row);
  else answered.set(row, {path: row, drawn, [typeof choice === "string" ? "name" : "cluster"]: choice});
  if (choice !== null && answered.size % EACH === 0) review();
  else ask();
}

function takeAnswerBack() {
  if (!asked.length) return;
  queue.unshift(asked.pop());
  answered.delete(queue[0].row);
  skipped.delete(queue[0].row);
  ask();
}

function openTeach() {
  if (!where) return;
  [current, within] = [answered, null];
  ask();
}

function part(name, title) {
  for (const other of ["ask", "review"]) $(`#teach-${other}`).hidden = other !== name;
  $("#teach-title").textContent = title;
  $("#teach-count").textContent = t("Answers: {0}", current.size);
  if (!teacher.open) teacher.showModal();
}

async function review() {
  if (!current.size) return teacher.close();
  part("review", t("Looking…"));
  $("#teach-moves").replaceChildren();
  const {moves, after, names, quality} = await inquire("preview");
  if (!moves) return;
  const count = moves.reduce((sum, [, , some]) => sum + some, 0), called = number => names[number] || t("cluster {0}", number);
  $("#teach-title").textContent = t("{0} would move", images(count));
  $("#teach-quality").replaceChildren(...(isChinese ? translated([quality]) : [quality]));
  $("#teach-moves").replaceChildren(...moves.map(([from, to, some]) => {
    const shown = [...where.keys()].filter(i => imageData.numbers[imageData.cluster[i]] === from && after[i * imageData.step] === to).slice(0, MAX_SHOWN);
    const faces = shown.map(i => element("label", {title: pathOf(i)}, element("input", {type: "checkbox", value: `${i * imageData.step} ${from}`, ariaLabel: pathOf(i)}), picture(tileOf(i), 64)));
    const rest = some > shown.length ? [t("and {0} more", grouped(some - shown.length))] : [];
    return element("li", {}, element("strong", {}, `${called(from)} → ${called(to)} · ${images(some)}`), element("span", {className: "row"}, ...faces, ...rest));
  }));
  $("[data-teach=more]").hidden = current !== answered;
  $("[data-teach=only]").hidden = current === answered || !movesNow().length;
  $("[data-teach=apply]").focus();
}

const teach = {
  close: () => teacher.close(), only: () => teacher.close(), skip: () => give(), back: takeAnswerBack, more: ask, review,
  apply: () => send("teach", {taught: {within, answers: [...current.values()]}}),
  not: () => {
    for (const [path, cluster] of $$(":checked", teacher).map(input => input.value.split(" ").map(Number))) current.set(path, {path, cluster});
    review();
  },
};

teacher.addEventListener("click", event => {
  const {dataset, value} = event.target.closest("[data-teach], #teach-likely button") ?? {};
  if (dataset) teach[dataset.teach]?.() ?? (value && give(queue[0].choices[value]));
});
teacher.addEventListener("keydown", event => {
  if ($("#teach-ask").hidden || !queue.length || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input")) {
    const text = plain(event.target.value);
    if (event.key === "Enter" && !event.isComposing && text) give(present().find(number => text === nameOf(number) || text === String(number)) ?? text);
    return;
  }
  const choice = queue[0].choices[event.key - 1];
  const act = choice !== undefined ? () => give(choice) : {n: () => $("#teach-name").focus(), s: teach.skip, z: teach.back}[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

/* Moves whose followers are not wanted are moves alone. */
teacher.addEventListener("close", () => {
  inquiry.abort();
  if (current === answered || document.body.inert) return;
  [current, within] = [answered, null];
  applyPending();
});

/* Let images follow the answers of a list of images that has been closed: those that are right, and those that moved, if
   that is wanted. A cluster some of whose images are right and others of another kind is split. */
function followed() {
  if (document.body.inert || pending) return false;
  const given = [...[...right].map(i => [i * imageData.step, clusterOf(i)]), ...movesNow()];
  const kinds = new Set(given.filter(([row]) => home[row / imageData.step] === within).map(([, cluster]) => cluster));
  if (kinds.size < 2) within = null;
  if (within === null && !right.size && !($("#follow").checked && movesNow().length)) return false;
  current = new Map(given.map(([path, cluster]) => [path, {path, cluster}]));
  right.clear();
  review();
  return true;
}

function markRight(list) {
  for (const i of list) right.add(i);
  $("#moved").textContent = t("Right: {0}.", images(list.length));
  tick([]);
}

/* Images of another kind become a new cluster, and only those of their own follow. */
function anotherKind(list) {
  const from = new Set(list.map(clusterOf));
  if (from.size === 1) [within] = from;
  moveTo(list, nextFree());
}

$("#teach-open").addEventListener("click", openTeach);
