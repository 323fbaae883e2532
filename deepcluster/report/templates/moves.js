/* ---- moves of images, which an open list of images collects; on the page of a server -------------------------------------- */
// takes: $, whenMoved, $$, element (report.js); t, images (language.js)
//   nameOf, moved, takeMoves, clusterOf, callOf, titleOf, faceOf, isPresent, present, library, kindOf, newNames (clusters.js); tick, ticked (grid.js)
//   listed, grid, leaveImages, withTicked (images.js); one, leaf (one.js); edit, undo (change.js); choose, nextFree (choose.js); answered (teach.js)

/* The clusters that images were moved to, by the digits that move more there. A new one takes the place of the oldest. */
const targets = [];
let nextTarget = 0;

/* What the open list has collected: moves, and rows that were seen and left. */
const batch = [], seen = new Set();

function showMoves() {
  takeMoves(batch);
  $("#images-undo").hidden = !batch.length;
  whenMoved.forEach(call => call());
}

async function moveTo(list, target) {
  list = list.filter(row => clusterOf(row) !== target);
  if (!list.length) return;
  const same = targets.findIndex(number => kindOf(number) === kindOf(target));
  targets[same < 0 ? nextTarget : same] = target;
  if (same < 0) nextTarget = (nextTarget + 1) % 9;
  batch.push([list, target]);
  showMoves();
  tick([]);
  $("#moved").textContent = t("{0} will move to {1} when you close this list.", images(list.length), callOf(target));
  if (!listed && !await applied()) takeMoveBack();
}

function takeMoveBack() {
  batch.pop();
  showMoves();
  $("#moved").textContent = t("Taken back.");
  if (listed) grid.focus();
}

/* Apply what was collected, if that is anything, and return if it is done. */
async function applied() {
  if (moved.size || seen.size) {
    const names = Object.fromEntries([...newNames].filter(([number]) => isPresent(number)));
    if (!await edit({move: [...moved], checked: [...seen].filter(row => !moved.has(row)), names})) return false;
  }
  forget();
  return true;
}

function forget() {
  batch.length = 0;
  seen.clear();
  newNames.clear();
  showMoves();
}

/* A list stays open until its moves are applied. */
leaveImages = async () => {
  if (await applied()) $("#images").close();
};
$("#images").addEventListener("cancel", event => {
  event.preventDefault();
  leaveImages();
});
document.addEventListener("keydown", event => {
  if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.target.matches("input, select")) return;
  event.preventDefault();
  if (batch.length) takeMoveBack();
  else if (!$("dialog[open]")) undo();
});
addEventListener("beforeunload", event => {
  if (moved.size || answered.size) event.preventDefault();
});

/* The digits and their clusters, beside each list of images. */
function tellTargets() {
  for (const place of $$(".targets")) place.replaceChildren(...targets.map((number, k) => {
    const button = element("button", {type: "button", value: k + 1, title: titleOf(number)}, faceOf(number, 28), element("kbd", {}, String(k + 1)), ` ${nameOf(number) || callOf(number)}`);
    button.disabled = !isPresent(number);
    return button;
  }));
}
whenMoved.push(tellTargets);

/* Move images to a cluster that is asked for. */
async function openMove(list, back = () => {}) {
  if (!list.length) return;
  const from = new Set(list.map(clusterOf));
  choose({
    title: t("Move {0} to", images(list.length)), hint: t("The other images of their clusters stay where they are."),
    others: present().filter(number => !(from.size === 1 && from.has(number))), made: nextFree(), like: [...from][0], alike: await library.alike(list),
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

withTicked.move = chosen => openMove(chosen, () => listed && grid.focus());
$("#images-undo").addEventListener("click", takeMoveBack);
$("#one-move").addEventListener("click", () => {
  const count = batch.length;
  openMove(ticked.has(one) ? [...ticked] : [one], () => {
    if (batch.length > count) leaf(1);
    $("#one-close").focus();
  });
});
