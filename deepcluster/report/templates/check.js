/* ---- check: one list after another, the doubtful images first; a tap marks a wrong one, and a digit moves it ---------- */
// takes: $, $$ (report.js); sample, isPresent, base, moved, library, titleOf, cards (clusters.js); select (grid.js)
//   openImages, listed, leaveImages (images.js); minded, acts (cards.js); targets, ofKinds, nextTarget, tellTargets, seen (moves.js)

let checked = null;  /* the cluster whose list is checked */

/* The digits are of the clusters that were made since the page was drawn, and of those most like it. */
function openCheck(number) {
  if (!sample) return;
  checked = number;
  const made = targets.filter(target => isPresent(target) && !base.has(target));
  targets.splice(0, targets.length, ...ofKinds([number, ...made, ...base.get(number).near.filter(isPresent)]).slice(1, 10));
  nextTarget = targets.length % 9;
  tellTargets();
  $("#images-order").value = "doubt";
  select(true);
  const of = rows => rows.filter(row => !moved.has(row));  /* images that were moved here are right */
  openImages({
    rows: order => library.rows(number, order), of, title: () => titleOf(number), total: () => of(listed.found).length, isCheck: true,
    back: () => cards.get(number)?.focus({preventScroll: true}),
  });
}

function checkNext() {
  for (const row of listed.found) seen.add(row);
  const shown = $$(".cluster").map(card => Number(card.dataset.number)), next = shown.slice(shown.indexOf(checked) + 1).find(isPresent);
  if (next === undefined) leaveImages();
  else openCheck(next);
}

$("#check-next").addEventListener("click", checkNext);
$("#images").addEventListener("keydown", event => {
  if (event.key === "n" && checked !== null && !event.target.matches("select")) checkNext();
});
$("#images").addEventListener("close", () => { checked = null; });
$("#check-open").addEventListener("click", () => openCheck(minded ?? Number($(".cluster").dataset.number)));
acts.check = openCheck;
