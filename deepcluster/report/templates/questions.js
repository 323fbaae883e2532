/* ---- the second part of teaching: questions about single images ---------------------------------------------------------- */
// takes: data, $, element (report.js); t (language.js); picture (pictures.js); callOf, isPresent, ofKinds (clusters.js); urlOf (one.js)
//   inquire, EACH, answered, part, choices, teacher, offer (teach.js); review (review.js)

const skipped = new Set(), asked = [];
let queue = [];

/* Every fourth question is about an image drawn at random, whether or not it would teach much. */
async function fillQueue() {
  const {questions = [[], []]} = await inquire("ask", EACH + skipped.size) ?? {};
  const [taught, drawn] = questions.map(list => list.filter(({row}) => !answered.has(row) && !skipped.has(row)));
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
  place.replaceChildren(picture(row, 0));
  for (const next of queue.slice(0, 3)) next.image ??= element("img", {alt: next.path, src: urlOf(next.row) || ""});
  question.image.decode().then(() => queue[0] === question && place.replaceChildren(question.image), () => {});
  $("#teach-about").textContent = `${path} · ${t("now in {0}", callOf(cluster))}`;
  const names = [...new Set([...answered.values()].map(({name}) => name))].filter(Boolean).slice(-4);
  offer($("#teach-likely"), ofKinds([...ofKinds(question.likely.filter(isPresent)).slice(0, 9 - names.length), ...names]));
  $("#teach-name").value = "";
  $("[data-teach=review]").disabled = !answered.size && !data.served.answers;
  teacher.focus();
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
