/* ---- edits of the clusters, on the page of a server, which alone has this part ------------------------------------- */

document.documentElement.classList.add("served");

/* Changes are sent one after another. Names and marks are on the page at once, and the next ones may follow; after any
   other change the page is loaded again. Edits that could not be applied stay here until they are tried again or taken
   back: their words, as in edits.json, and the clusters that the new ones will stand behind; or moves. */
const unsent = [];
let isBusy = false, isStuck = false, isOld = false;  /* old: the run has changed since, and nothing that the page sends is accepted */
const home = [...where ?? []], past = [];  /* past: the moves, each as pairs of an image and the cluster that it left */

const movesNow = () => home.flatMap((number, i) => where[i] === number ? [] : [[i * imageData.step, where[i]]]);
const pendingCount = () => unsent.filter(change => change.words && !change.words.move).length || movesNow().length;
const isText = ({words = {}}) => "names" in words || "junk" in words;

const isWaiting = () => isStuck && pendingCount() > 0 && tell(t("An edit is not applied yet: try it again, or take it back."));

/* Let the server make a change. Only texts leave the page as it is, so that keys may go on. */
function change(made) {
  if (made.words && isWaiting()) return;
  unsent.push(made);
  if (isText(made)) showTexts();
  else if (!made.stays) {
    document.body.inert = true;
    $$("dialog[open]").forEach(dialog => dialog.close());
    tell({apply: t("Applying…"), undo: t("Taking back…"), redo: t("Applying…"), export: t("Sorting…"), recut: t("Cutting into {0} clusters…", made.k), teach: t("Applying…")}[made.action]).classList.add("busy");
  }
  work();
}

const edit = (words, standing = [], told = "") => change({action: "apply", words, standing, told});

let working = Promise.resolve();

function work() {
  if (!isBusy) working = sendAll();
}

async function sendAll() {
  isBusy = true;
  isStuck = false;
  tellPending();
  while (unsent.length && await send(unsent[0])) unsent.shift();
  isBusy = false;
  isStuck = unsent.length > 0;
  if (isStuck) document.body.inert = false;
  /* Moves are still on the page. */
  for (const gone of unsent.filter(({words}) => !words || words.move)) unsent.splice(unsent.indexOf(gone), 1);
  tellPending();
}

/* The names and marks of the server, and those that it has not got yet. */
function showTexts() {
  for (const {number, name, junk} of data.served.clusters) Object.assign(base.get(number), {name, junk});
  for (const {words: {names = {}, junk} = {}} of unsent) {
    for (const [number, name] of Object.entries(names)) base.get(Number(number)).name = name;
    if (junk) for (const each of base.values()) each.junk = junk.includes(each.number);
  }
  for (const [number, card] of cards) {
    const {name, junk} = base.get(number), field = $(".title", card);
    if (field !== document.activeElement) field.value = name;
    $(".hints", card)?.toggleAttribute("hidden", Boolean(name));
    card.classList.toggle("junk", junk);
    $("[data-act=junk]", card).setAttribute("aria-pressed", junk);
  }
  refresh();
}

function takeBack() {
  if (isBusy ? unsent.length > 1 && isText(unsent.at(-1)) : unsent.length) unsent.pop();
  else if (past.length) past.pop().forEach(([i, number]) => put(i, number));
  else if (!gridSource && (unsent.length || data.served.done.length)) return change({action: "undo"});
  isStuck &&= pendingCount() > 0;
  showTexts();
}

function put(i, number) {
  sizes.set(where[i], sizes.get(where[i]) - 1);
  sizes.set(number, (sizes.get(number) ?? 0) + 1);
  where[i] = number;
}

function refresh() {
  tellPending();
  tellProgress();
  whenEdited.forEach(call => call());
}

function tellPending() {
  const count = isBusy || gridSource ? 0 : pendingCount();  /* an open list still collects moves */
  $("#pending").textContent = count ? t(count === 1 ? "{0} edit pending" : "{0} edits pending", grouped(count)) : "";
  $("#retry").hidden = !count && !isOld;
  $("#retry").textContent = t(isOld ? "Reload" : "Try again");
  $("#undo").hidden = !count && !unsent.length && !data.served.done.length;
  $("#redo").hidden = !data.served.undone?.length;
  $("#history-open").hidden = !data.served.done.length;
  $("#images-undo").hidden = !past.length;
}

/* Answers, the images that moved with the last ones, and the estimate of right images. */
let lastMoved = null;

function tellProgress() {
  const {answers, checked, quality, right} = data.served;
  const told = [...(checked ? [t("{0} of {1} checked", grouped(checked), grouped(present().length))] : []), ...(answers ? [t(answers === 1 ? "{0} answer" : "{0} answers", grouped(answers))] : []),
    ...(lastMoved === null ? [] : [t("{0} moved by the last ones", images(lastMoved))]), ...(quality ? [translated([quality]).join("")] : [])];
  $("#progress-text").textContent = $("#teach-progress").textContent = told.join(" · ");
  $("#progress progress").hidden = right === null;
  $("#progress progress").value = right ?? 0;
}

$("#undo").addEventListener("click", takeBack);
$("#redo").addEventListener("click", () => change({action: "redo"}));
$("#retry").addEventListener("click", () => {
  isStuck = false;
  if (isOld) reload();
  else if (unsent.length) work();
  else settle();
});
let isLeaving = false;
addEventListener("beforeunload", event => {
  if (!isLeaving && (pendingCount() || answered.size)) event.preventDefault();
});

/* ---- names and marks ----------------------------------------------------------------------------------------------- */

const nameCluster = (number, name) => edit({names: {[number]: name}}, [], t(name ? "Cluster {0} is now {1}." : "Cluster {0} has no name now.", number, name));

/* The title of a card is a field for its name. */
for (const [number, card] of cards) {
  const field = element("input", {type: "text", className: "title", value: nameOf(number), maxLength: 200, placeholder: t("name"), ariaLabel: t("Name of cluster {0}", number), title: "n"});
  const keep = () => {
    const name = plain(field.value);
    if (name !== nameOf(number)) nameCluster(number, name);
  };
  field.addEventListener("keydown", event => {
    if (event.key === "Escape") field.value = nameOf(number);
    if (!["Enter", "Escape"].includes(event.key) || event.isComposing) return;
    keep();
    card.focus({preventScroll: true});
  });
  field.addEventListener("change", keep);
  $(".name", card).replaceWith(" ", field);
}

/* Hints become buttons. */
for (const hint of $$(".hints [data-chinese]")) {
  const button = element("button", {type: "button", title: t("Take this name")});
  button.dataset.act = "take";
  hint.replaceWith(button);
  button.append(hint);
}

const mark = number => edit({junk: [...base.values()].filter(each => each.junk !== (each.number === number)).map(each => each.number)}, [],
  t(base.get(number).junk ? "Cluster {0} is no longer junk." : "Cluster {0} is junk.", number));

Object.assign(acts, {take: (number, hint) => nameCluster(number, plain(hint.textContent)), junk: mark});
