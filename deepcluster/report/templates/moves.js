/* ---- moves of images, which an open list of images collects --------------------------------------------------------- */

/* A kind has one digit: of several clusters of one name that of the first, which is the nearest. A new name is a kind, too. */
const kindOf = choice => nameOf(choice) || choice;
const ofKinds = choices => choices.filter((choice, k) => choices.findIndex(other => kindOf(other) === kindOf(choice)) === k);

/* The clusters that images were moved to, by the digits that move more there. A new one takes the place of the oldest. */
const targets = [];
let nextTarget = 0;

function moveTo(list, target) {
  list = list.filter(i => where[i] !== target);
  if (!list.length) return;
  const told = unsent.length && isWaiting();
  $("#moved").textContent = told ? told.textContent : t("{0} moved to {1}. Applied when this list is closed.", images(list.length), callOf(target));
  if (told) return;
  const same = targets.findIndex(number => kindOf(number) === kindOf(target));
  targets[same < 0 ? nextTarget : same] = target;
  if (same < 0) nextTarget = (nextTarget + 1) % 9;
  past.push(list.map(i => [i, where[i]]));
  list.forEach(i => put(i, target));
  refresh();
  tick([]);
  settle();
}

/* Apply what the list of images has collected when it is closed, or ask for what follows from it. */
function settle() {
  if (!document.body.inert && !gridSource && !followed() && movesNow().length + seenNow().length) edit({move: movesNow(), checked: seenNow()});
}

$("#images").addEventListener("close", () => {
  settle();
  right.clear();
});

/* The digits and their clusters, beside each list of images. */
function tellTargets() {
  for (const place of $$(".targets")) place.replaceChildren(...targets.map((number, k) => {
    const button = element("button", {type: "button", value: k + 1, title: titleOf(number)}, faceOf(number, 28), element("kbd", {}, String(k + 1)), ` ${nameOf(number) || callOf(number)}`);
    button.disabled = !isPresent(number);
    return button;
  }));
}
whenEdited.push(tellTargets);

/* Move images to a cluster that is asked for. */
function openMove(list, back = () => {}) {
  if (!list.length) return;
  const from = new Set(list.map(clusterOf));
  choose({
    title: t("Move {0} to", images(list.length)), hint: imageData.step > 1
      ? t("Only these images move: the page does not hold all. To change a whole cluster, merge or split it.")
      : t("The other images of their clusters stay where they are."),
    others: present().filter(number => !(from.size === 1 && from.has(number))), made: nextFree(), like: [...from][0], alike: list.flatMap(alikeOf),
    done: target => moveTo(list, target),
    back,
  });
}

/* A digit, or its button, moves the selected images, or the one that is looked at, and the next one takes its place. */
function toTarget(dialog, place) {
  const here = dialog.id === "one" ? [one] : grid.at(), all = ticked.size && (dialog.id !== "one" || ticked.has(one));
  if ($("#teach[open]") || !(place in targets) || !isPresent(targets[place])) return;
  moveTo(all ? [...ticked] : here, targets[place]);
  if (dialog.id === "one") leaf(1);
  else if (here.includes(grid.at()[0])) grid.next();  /* a list drawn on the map keeps its images */
}
for (const dialog of [$("#images"), $("#one")]) {
  $(".targets", dialog).addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) toTarget(dialog, button.value - 1);
    if (button && dialog.id === "images") grid.focus();
  });
  dialog.addEventListener("keydown", event => {
    if (/^[1-9]$/.test(event.key) && !event.target.matches("select") && !event.ctrlKey && !event.metaKey && !event.altKey) toTarget(dialog, event.key - 1);
  });
}

Object.assign(withTicked, {
  move: chosen => openMove(chosen, () => grid && gridSource && grid.focus()),
  right: chosen => markRight(chosen.length ? chosen : grid.seen()),
});
$("#images-undo").addEventListener("click", () => {
  takeBack();
  $("#moved").textContent = t("Taken back.");
  grid.focus();
});
$("#one-move").addEventListener("click", () => {
  const moved = past.length;
  openMove(ticked.has(one) ? [...ticked] : [one], () => {
    if (past.length > moved && !document.body.inert) leaf(1);
    $("#one-close").focus();
  });
});

/* ---- check: one list after another, the doubtful images first; a tap marks a wrong one, and a digit moves it ---------- */

/* The digits are of the clusters that were made since the page was drawn, and of those most like it. */
function openCheck(number) {
  if (!where) return;
  checked = number;
  const made = targets.filter(target => isPresent(target) && !base.has(target));
  targets.splice(0, targets.length, ...ofKinds([number, ...made, ...base.get(number).near.filter(isPresent)]).slice(1, 10));
  nextTarget = targets.length % 9;
  tellTargets();
  $("#images-order").value = "doubt";
  select(true);
  const own = () => imagesOf(number).filter(i => home[i] === number);  /* images that were moved here are right */
  openImages(own, () => titleOf(number), () => own().length * imageData.step, () => cards.get(number)?.focus({preventScroll: true}));
}

/* The rows of lists that a person went through: they were seen and left. Moved ones are not among them. */
const seen = new Set();
const seenNow = () => [...seen].filter(i => where[i] === home[i]).map(i => i * imageData.step);

function checkNext() {
  for (const i of imagesOf(checked)) if (home[i] === checked) seen.add(i);
  const shown = $$(".cluster").map(card => Number(card.dataset.number)), next = shown.slice(shown.indexOf(checked) + 1).find(isPresent);
  if (next === undefined) $("#images").close();
  else openCheck(next);
}

$("#check-next").addEventListener("click", checkNext);
$("#images").addEventListener("keydown", event => {
  if (event.key === "n" && checked !== null && !event.target.matches("select")) checkNext();
});
$("#images").addEventListener("close", () => { checked = null; });
$("#check-open").addEventListener("click", () => openCheck(Number((minded ?? $(".cluster")).dataset.number)));
acts.check = openCheck;
