/* ---- teaching: answers about a few images, which all others follow ------------------------------------------------- */

/* Answers by row, as runs/lesson.py takes them: to questions, or from a list of images. */
const teacher = $("#teach"), EACH = 10, MAX_SHOWN = 48, MAX_FACES = 8;
const answered = new Map(), skipped = new Set(), nameless = new Set(), right = new Set(), asked = [];
let queue = [], choices = [], after = [], current = answered, inquiry = new AbortController();

/* Closing the dialog aborts what it asks for: the edit that follows would make this request one of an old page. */
async function inquire(action, n = EACH) {
  inquiry = new AbortController();
  const {signal} = inquiry;
  await working;
  const taught = {n, answers: [...current.values()]};
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
  queue = Array.from({length: EACH}, (_, i) => ((answered.size + i) % 4 === 3 ? random : taught).shift()).filter(Boolean);
}

async function ask() {
  part("ask", t("Looking…"));
  choices = [];
  for (const place of ["picture", "about", "likely"]) $(`#teach-${place}`).replaceChildren();
  if (!queue.length) await fillQueue();
  if (!teacher.open) return;
  if (!queue.length) return review();
  if (queue[0].known) {  /* a drawn image, whose answer teaches from now on */
    const {row, cluster} = queue.shift();
    answered.set(row, {path: row, cluster});
    return answered.size % EACH ? ask() : review();
  }
  $("#teach-title").textContent = t("Where does this image belong?");
  const question = queue[0], place = $("#teach-picture"), {row, path, cluster} = question;
  place.replaceChildren(picture(row % imageData.step ? -1 : tileOf(row / imageData.step), 0));
  for (const next of queue.slice(0, 3)) next.image ??= element("img", {alt: next.path, src: urlOf(next.row, next.path) || ""});
  question.image.decode().then(() => queue[0] === question && place.replaceChildren(question.image), () => {});
  $("#teach-about").textContent = `${path} · ${t("now in {0}", callOf(cluster))}`;
  const names = [...new Set([...answered.values()].map(({name}) => name))].filter(Boolean).slice(-4);
  offer($("#teach-likely"), ofKinds([...ofKinds(question.likely.filter(isPresent)).slice(0, 9 - names.length), ...names]));
  $("#teach-name").value = "";
  $("[data-teach=review]").disabled = !answered.size;
  $("#teach-names").replaceChildren(...ofKinds(present()).map(number => element("option", {value: nameOf(number) || number})));
  teacher.focus();
}

/* Offer clusters, or new names, by their digits. */
function offer(place, offered) {
  choices = offered;
  place.replaceChildren(...choices.map((choice, k) => {
    const isNew = typeof choice === "string", text = isNew ? choice : nameOf(choice) || callOf(choice);
    return element("button", {type: "button", value: k, title: text}, isNew ? element("span", {className: "tile"}, "+") : faceOf(choice, 72), element("kbd", {}, k + 1), text);
  }));
}

/* Take an answer, a cluster or a new name; without one the question is skipped. */
function give(choice = null) {
  if (!queue.length) return;
  const question = queue.shift(), {row, drawn = false} = question;
  asked.push(question);
  if (choice === null) skipped.add(row);
  else answered.set(row, {path: row, by: drawn ? "drawn" : "answer", [typeof choice === "string" ? "name" : "cluster"]: choice});
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
  current = answered;
  begin();
}

/* A picture with a box to tick. */
const tickable = (i, side) => element("label", {title: pathOf(i)}, element("input", {type: "checkbox", value: i, ariaLabel: pathOf(i)}), picture(tileOf(i), side));

/* Ask for the names of clusters without one, the largest first. */
function begin(after = ask) {
  const unnamed = present().filter(number => !nameOf(number) && !nameless.has(number) && imagesOf(number).length);
  const [number] = unnamed.sort((a, b) => sizeOf(b) - sizeOf(a) || a - b), field = $("#teach-kind-name");
  if (number === undefined) return after();
  part("kind", "");
  $("#teach-count").textContent = t("{0} without a name", unnamed.length);
  /* From the most typical image to the least typical one, so that a mixture is seen. */
  const own = imagesOf(number).sort(orderings.near), count = Math.min(MAX_FACES, own.length);
  const faces = Array.from({length: count}, (_, k) => own[Math.floor(k * own.length / count)]);
  $("#teach-faces").replaceChildren(...faces.map(i => element("li", {}, tickable(i, 0))));
  $("#teach-hints").replaceChildren(...hintsOf(number).map(hint => element("button", {type: "button"}, hint)));
  field.dataset.number = number;
  askKind();
}

/* The pictures without a name of their own, and the ticked ones of them, which are of another kind unless all are. */
const facesLeft = () => $$("#teach-faces li:not([hidden]) input");

function ofAnotherKind() {
  const inputs = facesLeft(), ticked = inputs.filter(input => input.checked);
  return ticked.length < inputs.length ? ticked : [];
}

const tellKind = () => { $("#teach-title").textContent = t(ofAnotherKind().length ? "What are the ticked images?" : "What is this cluster?"); };

function askKind() {
  tellKind();
  $("#teach-kind-name").value = "";
  $("#teach-kind-name").focus();
}

const answerFaces = (inputs, given) => inputs.map(({value}) => value * imageData.step).forEach(row => answered.set(row, {path: row, ...given}));

/* The pictures that are not of another kind are right answers only if she says so: one may have been overlooked. */
function rightFaces() {
  const odd = ofAnotherKind(), faces = facesLeft().filter(input => !odd.includes(input)), field = $("#teach-kind-name");
  answerFaces(faces, {cluster: Number(field.dataset.number)});
  $("#teach-count").textContent = t("Right: {0}.", images(faces.length));
  field.focus();
}

/* Take the name of a cluster, or of ticked images of another kind, which are answers. */
function nameKind(name) {
  const number = Number($("#teach-kind-name").dataset.number), ticked = name ? ofAnotherKind() : [];
  if (ticked.length) {
    answerFaces(ticked, {name});
    for (const input of ticked) input.closest("li").hidden = true;
    return askKind();
  }
  if (!name) nameless.add(number);
  else nameCluster(number, name);
  begin(answered.size ? review : ask);
}

function part(name, title) {
  for (const other of ["kind", "ask", "review"]) $(`#teach-${other}`).hidden = other !== name;
  $("#teach-title").textContent = title;
  $("#teach-count").textContent = t("Answers: {0}", current.size);
  $("#teach-bar").hidden = name !== "ask";
  $("#teach-bar").value = current.size % EACH;
  if (!teacher.open) teacher.showModal();
}

async function review() {
  if (!current.size) return teacher.close();
  part("review", t("Looking…"));
  choices = [];
  $("#teach-moves").replaceChildren();
  tick([]);
  const {moves, names, quality, ...placed} = await inquire("preview");
  if (!moves) return;
  ({after} = placed);
  const count = moves.reduce((sum, [, , some]) => sum + some, 0), called = number => names[number] || t("cluster {0}", number);
  $("#teach-title").textContent = t("{0} would move", images(count));
  $("#teach-progress").textContent = translated([quality]).join("");
  $("#teach-moves").replaceChildren(...moves.map(([from, to, some]) => {
    const shown = [...where.keys()].filter(i => home[i] === from && after[i * imageData.step] === to).slice(0, MAX_SHOWN);
    const faces = shown.map(i => tickable(i, 64));
    const rest = some > shown.length ? [t("and {0} more", grouped(some - shown.length))] : [];
    return element("li", {}, element("strong", {}, `${called(from)} → ${called(to)} · ${images(some)}`), element("span", {className: "row"}, ...faces, ...rest));
  }));
  offerPlaces();
  $("#teach-review [data-teach=more]").hidden = current !== answered;
  $("[data-teach=only]").hidden = current === answered || !movesNow().length;
  $("[data-teach=apply]").focus();
}

/* The images of a preview, and the ticked ones of them. */
const previewed = (which = "input") => $$(`#teach-moves ${which}`).map(input => Number(input.value));
const wrong = () => previewed(":checked");

/* The clusters that ticked images may belong to. */
function offerPlaces() {
  const goalOf = i => after[i * imageData.step], goals = new Set(wrong().map(goalOf));
  const near = wrong().flatMap(i => [home[i], ...alikeOf(i).map(clusterOf), ...[goalOf(i), home[i]].flatMap(number => base.get(number)?.near ?? [])]);
  offer($("#teach-places"), ofKinds([...goals, ...near.filter(isPresent)]).filter(number => !goals.has(number)).slice(0, 9));
  $("[data-teach=move]").disabled = !near.length;
}

function placeWrong(cluster) {
  for (const path of wrong().map(i => i * imageData.step)) current.set(path, {path, cluster});
  review();
}

const teach = {
  close: () => teacher.close(), only: () => teacher.close(), skip: () => give(), back: takeAnswerBack, more: ask, review,
  pass: () => nameKind(""), right: rightFaces,
  move: () => choose({
    title: t("Move {0} to", images(wrong().length)), hint: "", others: present(), made: nextFree(), like: home[wrong()[0]],
    alike: wrong().flatMap(alikeOf), done: placeWrong, back: () => {},
  }),
  apply: () => {
    change({action: "teach", taught: {answers: [...current.values()]}, stays: current === answered && goOn});
    if (current === answered) part("ask", t("Applying…"));
  },
};

/* The images are where the preview said. Their cards are drawn when the dialog is closed. */
let taught = "";

function goOn({clusters}, text) {
  taught = text;
  lastMoved = home.filter((number, i) => number !== after[i * imageData.step]).length;
  for (const i of home.keys()) home[i] = where[i] = after[i * imageData.step];
  sizes.clear();
  for (const cluster of clusters) {
    base.set(cluster.number, Object.assign(base.get(cluster.number) ?? {}, cluster));
    sizes.set(cluster.number, cluster.size);
  }
  asked.length = queue.length = 0;
  showTexts();
  begin();
}

teacher.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button?.dataset.teach) teach[button.dataset.teach]();
  else if (button?.closest("#teach-hints")) nameKind(button.textContent);
  else if (button?.closest(".likely")) takeChoice(button.value);
});
/* As in a list of images: a click enlarges, or ticks in the mode for that; Enter enlarges. */
$("#teach-moves").addEventListener("change", event => tick([Number(event.target.value)], event.target.checked));
$("#teach-moves").addEventListener("click", event => {
  if (isSelecting || !event.target.matches(".picture")) return;
  event.preventDefault();
  openOne(Number(event.target.previousSibling.value), previewed());
});
whenTicked.push(() => {
  for (const input of $$("#teach-moves input")) input.checked = ticked.has(Number(input.value));
  if (teacher.open) offerPlaces();
});
$("#teach-faces").addEventListener("change", tellKind);
$("#teach-faces").addEventListener("mousedown", event => event.preventDefault());  /* the field keeps the focus */
$("#teach-kind-name").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.isComposing) nameKind(plain(event.target.value));
});

function takeChoice(k) {
  if (!(k in choices)) return false;
  if ($("#teach-ask").hidden) placeWrong(choices[k]);
  else give(choices[k]);
  return true;
}

teacher.addEventListener("keydown", event => {
  if (!$("#teach-kind").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && event.target.matches("#teach-moves input")) {
    event.preventDefault();
    return openOne(Number(event.target.value), previewed());
  }
  if (/^[1-9]$/.test(event.key) && !event.target.matches("[type=text]") && takeChoice(event.key - 1)) return event.preventDefault();
  if ($("#teach-ask").hidden || !queue.length) return;
  if (event.target.matches("input")) {
    const text = plain(event.target.value);
    if (event.key === "Enter" && !event.isComposing && text) give(present().find(number => text === nameOf(number) || text === String(number)) ?? text);
    return;
  }
  const act = {n: () => $("#teach-name").focus(), s: teach.skip, z: teach.back}[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

/* Moves whose followers are not wanted are moves alone. */
teacher.addEventListener("close", () => {
  inquiry.abort();
  if (document.body.inert) return;
  if (data.served.cut !== data.cut) return reload({told: taught});
  if (current === answered) return;
  current = answered;
  edit({move: movesNow(), checked: seenNow()});
});

/* Let images follow the answers of a list of images that has been closed: those that are right, and those that moved, if
   that is wanted. */
function followed() {
  if (isStuck) return false;
  if (!right.size && !($("#follow").checked && movesNow().length)) return false;
  const given = [...[...right].map(i => [i * imageData.step, clusterOf(i)]), ...movesNow()].map(([path, cluster]) => ({path, cluster}));
  const checked = seenNow().map(path => ({path, cluster: clusterOf(path / imageData.step), by: "checked"}));
  current = new Map([...checked, ...given].map(answer => [answer.path, answer]));
  right.clear();
  review();
  return true;
}

function markRight(list) {
  for (const i of list) right.add(i);
  $("#moved").textContent = t("Right: {0}.", images(list.length));
  tick([]);
}

$("#teach-open").addEventListener("click", openTeach);
