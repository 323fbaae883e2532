/* ---- the list of clusters --------------------------------------------------------------------------------------------- */
// takes: $$, onPage, $ (report.js); t (language.js); cards, titleOf, hintsOf (clusters.js); openCluster (images.js)
//   openOne (one.js)

let minded = null;  /* the number of the cluster that keys are for */

function mind(number, scroll = true) {
  cards.get(minded)?.classList.remove("chosen");
  minded = number;
  const card = cards.get(number);
  card.classList.add("chosen");
  card.tabIndex = -1;
  if (!scroll) return;
  card.focus({preventScroll: true});
  card.scrollIntoView({block: "start"});
}

function step(by) {
  const shown = $$(".cluster:not([hidden])").map(card => Number(card.dataset.number)), at = shown.indexOf(minded);
  const next = shown[at < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, at + by))];
  if (next !== undefined) mind(next);
}

/* The pictures of a card are one stop of Tab, and arrows walk them. A dialog gives the focus back to the picture that opened it. */
onPage.push(() => {
  for (const card of cards.values()) $$("[data-row] > *", card).forEach((face, k) => Object.assign(face, {role: "button", tabIndex: k ? -1 : 0}));
  filter();
  if (cards.has(minded)) mind(minded, false);
});
$("#clusters").addEventListener("keydown", event => {
  const faces = $$("[data-row] > *", event.target.closest(".sheet") ?? event.target), at = faces.indexOf(event.target);
  const next = faces[at + ({ArrowLeft: -1, ArrowRight: 1}[event.key] ?? NaN)];
  if (at < 0) return;
  if (next) next.focus();
  else if (event.key === "Enter" || event.key === " ") event.target.click();
  else return;
  event.preventDefault();
});

/* As the table of clusters takes them: one line of printable text. */
function plain(text) {
  return text.replace(/\p{Z}/gu, " ").replace(/\p{C}/gu, "").trim();
}

function filter() {
  const wanted = plain($("#filter").value).toLowerCase();
  let matches = 0;
  for (const [number, card] of cards) {
    const text = `${titleOf(number)} ${hintsOf(number)} ${$(".labels", card)?.textContent ?? ""}`.toLowerCase();
    card.hidden = !text.includes(wanted);
    matches += text.includes(wanted);
  }
  $("#filtered").textContent = !wanted ? "" : matches ? t("{0} of {1}", matches, cards.size) : t("No cluster is called {0}", $("#filter").value.trim());
}

$("#filter").addEventListener("input", filter);

/* Actions on a cluster, by the buttons of its card. */
const acts = {all: openCluster};
$("#clusters").addEventListener("click", event => {
  const card = event.target.closest(".cluster"), button = event.target.closest("[data-act]"), tile = event.target.closest("[data-row]");
  if (card) mind(Number(card.dataset.number), false);
  if (button) acts[button.dataset.act](Number(card.dataset.number), button);
  else if (tile) openOne(Number(tile.dataset.row), $$("[data-row]", card).map(shown => Number(shown.dataset.row)));
});
