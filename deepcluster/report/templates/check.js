/* ---- check: one kind after another, the doubtful images first; a tap marks a wrong one, and a digit moves it ---------- */
// takes: data, $ (report.js); t (language.js); sample, isPresent, base, moved, library, titleOf, nameOf, cards, ofKinds, membersOf, present (clusters.js); select (grid.js)
//   openImages, listed, leaveImages (images.js); acts (cards.js); targets, nextTarget, tellTargets, seen (moves.js); unchecked (path.js)

let checked = null;  /* the kind whose list is checked, by its first cluster */
const passed = new Set();  /* clusters whose lists were left for the next one, which is not applied yet */

const isChecked = number => passed.has(number) || data.served.checked.includes(number);

/* The digits are of the clusters that were made since the page was drawn, and of those most like it. */
function openCheck(number = unchecked()[0] ?? ofKinds(present())[0]) {
  if (!sample) return;
  checked = number;
  const numbers = membersOf(number), made = targets.filter(target => isPresent(target) && !base.has(target));
  const near = numbers.flatMap(each => base.get(each)?.near ?? []).filter(isPresent);
  targets.splice(0, targets.length, ...ofKinds([number, ...made, ...near]).slice(1, 10));
  nextTarget = targets.length % 9;
  tellTargets();
  $("#images-order").value = "doubt";
  select(true);
  const of = rows => rows.filter(row => !moved.has(row));  /* images that were moved here are right */
  openImages({
    rows: order => library.rows(numbers, order), of, title: () => nameOf(number) || titleOf(number), total: () => of(listed.all).length,
    back: () => cards.get(number)?.focus({preventScroll: true}), about: t("{0} left to check", unchecked().length),
  });
}

function checkNext() {
  for (const row of listed.all) seen.add(row);
  for (const number of membersOf(checked)) passed.add(number);
  passed.add(checked);
  if (unchecked().some(number => base.has(number))) openCheck(unchecked().find(number => base.has(number)));
  else leaveImages();
}

$("#check-next").addEventListener("click", checkNext);
$("#images").addEventListener("keydown", event => {
  if (event.key === "n" && checked !== null && !event.target.matches("select")) checkNext();
});
$("#images").addEventListener("close", () => {
  checked = null;
  passed.clear();
});
acts.check = openCheck;
