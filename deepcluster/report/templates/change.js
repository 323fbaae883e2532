/* ---- a change: one request, and one answer, which brings the page after it; on the page of a server ------------------- */
// takes: $, data, $$, showPage, element, onPage, grouped (report.js); t, isTranslated, translate, translated, images (language.js)
//   cards (clusters.js); minded (cards.js)

document.documentElement.classList.add("served");

const SILENT = t("The server does not answer. Start it again by {0}, and open the address that it prints.", $("#serve").textContent);

/* Ask the server, and return its answer; or say why there is none, and return null. */
async function post(action, request) {
  const {version} = data.served;
  try {
    const reply = await fetch(action, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({version, ...request})});
    const answer = await reply.json();
    if (reply.ok) return answer;
    if (version === data.served.version) tell(answer.error);  /* else the page has changed since it asked */
  } catch {
    tell(SILENT);
  }
  return null;
}

/* Let the server make a change. The page waits for the answer, and shows the page that it brings, or says why there is none
   and stays as it is. Return the answer. */
let isWaiting = false;

async function change(action, request, text = "") {
  if (isWaiting) return null;
  isWaiting = true;
  const focused = document.activeElement, places = [document.body, ...$$("dialog[open]")];
  const late = setTimeout(() => tell(t("Working…")).classList.add("busy"), 300);
  for (const place of places) place.inert = true;
  const answer = await post(action, request);
  clearTimeout(late);
  for (const place of places) place.inert = false;
  isWaiting = false;
  if (answer?.page) {
    takeIn(answer.page);
    tellDone(text || inWords(action, answer.said));
  }
  (focused.isConnected && focused !== document.body ? focused : cards.get(minded))?.focus({preventScroll: true});
  return answer;
}

const edit = (words, text) => change("apply", {edits: {schema_version: 1, cut: data.cut, ...words}}, text);

/* Show a page in the place of this one: its fresh parts and its data. Tab, place, language and open dialogs stay. */
function takeIn(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html"), tabsOf = page => $$(".tabs a", page).map(tab => tab.getAttribute("href")).join();
  if (tabsOf(fresh) !== tabsOf(document)) return location.reload();
  if (isTranslated) translate(fresh.body);
  data = JSON.parse($("#data", fresh).textContent);
  for (const old of $$("[data-fresh]")) old.replaceChildren(...$(`#${old.id}`, fresh).childNodes);
  showPage();
}

/* What was done. Before names the words of a change are counts: "2 names, 1 merge: owl, cat". */
function inWords(action, said) {
  const changed = said.match(/[\d,]+ images? changed their cluster/)?.[0] ?? said;  /* the list was seen before */
  if (!isTranslated) return changed;
  if (action === "recut") return t("Cut into {0} clusters.", cards.size);
  return {read: translated([said.split("\n")[0]]).join(""), undo: t("Taken back."), redo: t("Made again."), teach: translated([changed]).join("")}[action] ?? `${t("Applied.")}${wordsOf(said.replace(/^.*?: /, ""))}`;
}

function wordsOf(text) {
  const [counts, ...names] = text.split(": ");
  return isTranslated ? [counts.split(/[,;] /).map(part => translated([part]).join("")).join(t(", ")), ...names].join("：") : text;
}

/* Say something, in the dialog that is open, or behind it until it is closed. */
function tell(text, place = $$("dialog[open]").at(-1) ?? document.body) {
  const toast = $("#told");
  place.append($(".toasts"));
  toast.hidden = false;
  toast.className = "";
  toast.replaceChildren(text);
  return toast;
}

function tellDone(text) {
  const back = element("button", {type: "button"}, t("Undo"));
  back.addEventListener("click", undo);
  tell(text, document.body).append(...(data.served.done.length ? [" ", back] : []));
}

document.addEventListener("close", () => document.body.append($(".toasts")), true);
$("#told").addEventListener("click", () => { $("#told").hidden = true; });

const undo = () => data.served.done.length ? change("undo", {}) : null;
$("#undo").addEventListener("click", undo);
$("#redo").addEventListener("click", () => change("redo", {}));

/* Answers, the images that moved with the last ones, and the estimate of right images. */
let lastMoved = null;

onPage.push(() => {
  const {answers, quality, right, done, undone} = data.served;
  const parts = [...(answers ? [t(answers === 1 ? "{0} answer" : "{0} answers", grouped(answers))] : []),
    ...(lastMoved === null ? [] : [t("{0} moved by the last ones", images(lastMoved))]), ...(quality ? [translated([quality]).join("")] : [])];
  $("#progress-text").textContent = $("#teach-progress").textContent = parts.join(" · ");
  $("#progress progress").hidden = right === null;
  $("#progress progress").value = right ?? 0;
  for (const id of ["#undo", "#history-open"]) $(id).hidden = !done.length;
  $("#redo").hidden = !undone.length;
});
