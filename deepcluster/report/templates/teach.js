/* ---- teaching: a dialog of three parts (naming.js, questions.js, review.js), on the page of a server ------------------------ */
// takes: $, onPage, data, element (report.js); t (language.js); picture (pictures.js); sample, pathOf, nameOf, callOf, faceOf, present (clusters.js)
//   openOne (one.js); plain (cards.js); post (change.js); complete, namesOf (complete.js); askKinds, nameKind, splitKind (naming.js); give, takeAnswerBack, ask, queue (questions.js)
//   review, chooseForWrong, applyAnswers, placeWrong, previewed (review.js); isLarge, goOn (path.js)

/* Answers by row, as runs/teach.py takes them. */
const teacher = $("#teach"), EACH = 10;
const answered = new Map();
let choices = [], isAsking = false, cutOfAnswers = null;  /* isAsking: questions follow the names, and no check */

/* The numbers of clusters may be others after a change of them. */
onPage.push(() => {
  if (cutOfAnswers !== data.cut) for (const [row, {name}] of answered) if (!name) answered.delete(row);
  cutOfAnswers = data.cut;
});

/* Ask about the answers. The dialog is closed if the server has no answer. */
async function inquire(action, n = EACH) {
  const reply = await post(action, {taught: {n, answers: [...answered.values()]}});
  if (!reply) teacher.close();
  return reply;
}

function openTeach() {
  isAsking = true;
  if (sample) askKinds();
}

function openNames() {
  isAsking = false;
  if (sample) askKinds();
}

/* What comes when all clusters have names. */
function goAsking() {
  if (isAsking || isLarge()) return ask();
  teacher.close();
  goOn();
}

/* Show a part of the dialog. */
function part(name, title) {
  for (const other of ["kind", "ask", "review"]) $(`#teach-${other}`).hidden = other !== name;
  $("#teach-title").textContent = title;
  $("#teach-count").textContent = t("Answers: {0}", answered.size);
  $("#teach-bar").hidden = name !== "ask";
  $("#teach-bar").value = answered.size % EACH;
  if (!teacher.open) teacher.showModal();
}

/* A picture with a box to tick. */
const tickable = (row, side) => element("label", {title: pathOf(row)}, element("input", {type: "checkbox", value: row, ariaLabel: pathOf(row)}), picture(row, side));

/* Offer clusters, or new names, by their digits. */
function offer(place, offered) {
  choices = offered;
  place.replaceChildren(...choices.map((choice, k) => {
    const isNew = typeof choice === "string", text = isNew ? choice : nameOf(choice) || callOf(choice);
    return element("button", {type: "button", value: k, title: text}, isNew ? element("span", {className: "tile"}, "+") : faceOf(choice, 72), element("kbd", {}, k + 1), text);
  }));
}

const teach = {
  close: () => teacher.close(), skip: () => give(), back: takeAnswerBack, more: ask, review, pass: () => nameKind(""), move: chooseForWrong,
  apply: applyAnswers, split: splitKind,
};

teacher.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button?.dataset.teach) teach[button.dataset.teach]();
  else if (button?.closest("#teach-hints")) nameKind(button.textContent);
  else if (button?.closest(".likely")) takeChoice(button.value);
});

function takeChoice(k) {
  if (!(k in choices)) return false;
  if (!$("#teach-kind").hidden) nameKind(nameOf(choices[k]));
  else if ($("#teach-ask").hidden) placeWrong(choices[k]);
  else give(choices[k]);
  return true;
}

teacher.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && event.target.matches("#teach-moves input")) {
    event.preventDefault();
    return openOne(Number(event.target.value), previewed());
  }
  if (/^[1-9]$/.test(event.key) && !(event.target.matches("[type=text]") && event.target.value) && takeChoice(event.key - 1)) return event.preventDefault();
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

complete($("#teach-name"), () => namesOf(...(queue[0]?.likely ?? [])));
$("#teach-open").addEventListener("click", openTeach);
