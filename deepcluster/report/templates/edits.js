/* ---- edits of the clusters, on the page of a server, which alone has this part ------------------------------------- */

document.documentElement.classList.add("served");

/* An edit is sent at once, and the page is loaded again. What could not be applied stays here until it is tried again or
   taken back: one edit (its words, as in edits.json, and the clusters that the new ones will stand behind), or moves. */
let pending = null, isOld = false;  /* old: the run has changed since, and nothing that the page sends is accepted */
const home = [...where ?? []], past = [];  /* past: the moves, each as pairs of an image and the cluster that it left */

const movesNow = () => home.flatMap((number, i) => where[i] === number ? [] : [[i * imageData.step, where[i]]]);
const pendingCount = () => pending ? 1 : movesNow().length;

const isWaiting = others => others && tell(t("An edit is not applied yet: try it again, or take it back."));

function edit(words, standing = []) {
  if (isWaiting(pendingCount())) return;
  pending = {words, standing};
  applyPending();
}

function applyPending() {
  if (pendingCount()) send("apply", {edits: {schema_version: 1, cut: data.cut, ...(pending?.words ?? {move: movesNow()})}});
}

function takeBack() {
  if (pending) pending = null;
  else if (past.length) past.pop().forEach(([i, number]) => put(i, number));
  else return data.served.done.length && !gridSource && send("undo");
  refresh();
}

function put(i, number) {
  sizes.set(where[i], sizes.get(where[i]) - 1);
  sizes.set(number, (sizes.get(number) ?? 0) + 1);
  where[i] = number;
}

function refresh() {
  tellPending();
  whenEdited.forEach(call => call());
}

function tellPending() {
  const count = document.body.inert || gridSource ? 0 : pendingCount();  /* an open list still collects moves */
  $("#pending").textContent = count ? t(count === 1 ? "{0} edit pending" : "{0} edits pending", grouped(count)) : "";
  $("#retry").hidden = !count && !isOld;
  $("#retry").textContent = t(isOld ? "Reload" : "Try again");
  $("#undo").hidden = !count && !data.served.done.length;
  $("#images-undo").hidden = !past.length;
}

$("#undo").addEventListener("click", takeBack);
$("#retry").addEventListener("click", () => isOld ? reload() : settle());
let isLeaving = false;
addEventListener("beforeunload", event => {
  if (!isLeaving && (pendingCount() || answered.size)) event.preventDefault();
});

/* ---- names, marks, merges and splits ------------------------------------------------------------------------------- */

const nameCluster = (number, name) => edit({names: {[number]: name}});

function rename(number) {
  const card = cards.get(number), shown = $(".name", card), before = nameOf(number);
  if ($("input", shown.parentElement)) return;
  const input = element("input", {className: "rename", value: before, maxLength: 200, placeholder: t("name"), ariaLabel: t("Name of cluster {0}", number)});
  let open = true;
  const close = keep => {
    if (!open) return;
    open = false;
    const name = plain(input.value);
    input.remove();
    shown.hidden = false;
    if (keep && name !== before) nameCluster(number, name);
    card.focus({preventScroll: true});
  };
  input.addEventListener("keydown", event => {
    if (event.key === "Enter") close(true);
    if (event.key === "Escape") close(false);
  });
  input.addEventListener("blur", () => close(true));
  shown.hidden = true;
  shown.after(input);
  input.select();
}

/* Hints become buttons. */
for (const hint of $$(".hints [data-chinese]")) {
  const button = element("button", {type: "button", title: t("Take this name")});
  button.dataset.act = "take";
  hint.replaceWith(button);
  button.append(hint);
}

const mark = number => edit({junk: data.clusters.filter(each => each.junk !== (each.number === number)).map(each => each.number)});

/* The picture of a cluster. */
function faceOf(number, side) {
  const medoid = cards.has(number) ? $(".medoid img", cards.get(number)) : null;
  const first = medoid || !where ? -1 : where.indexOf(number);
  return medoid ? element("img", {src: medoid.src, alt: ""}) : first < 0 ? element("span", {className: "tile"}) : picture(tileOf(first), side);
}

const present = () => [...sizes.keys()].filter(isPresent);
const nextFree = () => Math.max(firstFree - 1, ...present()) + 1;

/* Ask for a cluster, by its picture, number, name or hint: first those of the images ``alike``, then those like a cluster. */
function choose({title, hint, others, like, alike = [], made = null, done, back}) {
  const dialog = $("#merge"), list = $("#merge-list"), filter = $("#merge-filter");
  $("#merge-title").textContent = title;
  $("#merge-hint").textContent = hint;
  const rank = number => ((base.get(like)?.near ?? []).indexOf(number) + 1) || Infinity;
  const votes = number => alike.filter(i => clusterOf(i) === number).length;
  others = [...others].sort((a, b) => votes(b) - votes(a) || rank(a) - rank(b) || a - b);
  const entry = (value, face, text, about) => element("li", {}, element("button", {type: "submit", value: String(value)}, face,
    element("span", {}, text), element("span", {className: "quiet"}, about)));
  list.replaceChildren(...(made === null ? [] : [entry(made, element("span", {className: "tile"}, "+"), t("A new cluster"), t("number {0}", made))]),
    ...others.map(other => entry(other, faceOf(other, 44), titleOf(other) + perhaps(other), images(sizeOf(other)))));
  const button = other => $(`button[value="${other}"]`, list);
  const typed = () => plain(filter.value).toLowerCase();
  const called = other => plain(nameOf(other)).toLowerCase();
  const isLike = (other, text) => /^\d+$/.test(text) ? String(other).startsWith(text) || called(other).includes(text)
    : [titleOf(other), ...hintsOf(other)].some(word => word.toLowerCase().includes(text));
  /* The one cluster that what was typed is the number or the name of, whole or in part. A number is that of a cluster first. */
  const meant = () => {
    const text = typed(), word = t("cluster {0}", "").trim(), number = text.startsWith(word) ? text.slice(word.length).trim() : text;
    if (isPresent(Number(number)) && /^\d+$/.test(number)) return others.find(other => other === Number(number));
    const named = others.filter(other => text && [called(other), titleOf(other).toLowerCase()].includes(text));
    const some = named.length ? named : others.filter(other => text && isLike(other, text));
    return some.length === 1 ? some[0] : undefined;
  };
  $("#follow").closest("p").hidden = made === null;
  filter.value = "";
  filter.oninput = () => {
    const text = typed(), one = meant();
    if (made !== null) button(made).parentElement.hidden = Boolean(text);
    for (const other of others) {
      button(other).parentElement.hidden = !isLike(other, text);
      button(other).classList.toggle("meant", other === one);
    }
    if (one !== undefined) list.prepend(button(one).parentElement);
  };
  filter.onkeydown = event => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const one = meant();
    if (one !== undefined && !event.isComposing) button(one).click();
  };
  dialog.onkeydown = event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    const stops = [filter, ...$$("li:not([hidden]) button", list)];
    stops[Math.max(0, Math.min(stops.length - 1, stops.indexOf(document.activeElement) + step))].focus();
  };
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value !== "") done(Number(event.submitter.value));
  };
  dialog.onclose = back;
  dialog.showModal();
  filter.focus();
}

function openMerge(number) {
  const others = present().filter(other => other !== number);
  if (others.length) choose({
    title: t("Merge {0} into", callOf(number)), hint: t("It keeps the number of the cluster that you choose."),
    others, like: number,
    done: target => edit({merge: [[target, number]]}),
    back: () => cards.get(number).focus({preventScroll: true}),
  });
}

/* The parts inside each of so many groups, the largest first. */
function partsAt({sizes, merges}, count) {
  const total = parts => parts.reduce((sum, part) => sum + sizes[part], 0);
  return [...nodesAt(sizes.length, merges, count).values()].sort((a, b) => total(b) - total(a) || a[0] - b[0]);
}

/* Merge and split clusters in one edit. The parts take the next numbers, and stand behind their cluster. */
function regroup(merge, split) {
  const from = split.flatMap(([number, count]) => Array(count - 1).fill(number));
  edit({merge, split}, from.map((number, i) => [firstFree + i, number]));
}

function openSplit(number) {
  const dialog = $("#split"), slider = $("#split-count"), parts = base.get(number).parts, own = imagesOf(number);
  $("#split-title").textContent = t("Split {0}", callOf(number));
  slider.max = parts.sizes.length;
  slider.value = 2;
  const update = () => {
    const count = Number(slider.value);
    $("#split-value").textContent = count;
    $("#split-parts").replaceChildren(...partsAt(parts, count).map((inside, i) => {
      const some = own.filter(image => inside.includes(imageData.part[image])), shown = Math.min(9, some.length);
      return element("li", {}, element("span", {}, `${i ? firstFree + i - 1 : number}`, element("br"),
        element("span", {className: "quiet"}, images(inside.reduce((sum, part) => sum + parts.images[part], 0)))),
      element("span", {className: "row"}, ...Array.from({length: shown}, (_, k) => picture(tileOf(some[Math.floor(k * some.length / shown)]), 44))));
    }));
  };
  slider.oninput = update;
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value === "split") regroup([], [[number, Number(slider.value)]]);
  };
  dialog.onclose = () => cards.get(number).focus({preventScroll: true});
  update();
  dialog.showModal();
  slider.focus();
}

for (const [number, card] of cards) $("[data-act=split]", card).hidden = !maySplit(number);

Object.assign(acts, {
  rename, take: (number, hint) => nameCluster(number, plain(hint.textContent)), merge: openMerge, split: openSplit, junk: mark,
});

/* ---- moves of images, which an open list of images collects --------------------------------------------------------- */

/* The clusters that images were moved to, by the digits that move more there. A new one takes the place of the oldest. */
const targets = [];
let nextTarget = 0;

function moveTo(list, target) {
  list = list.filter(i => where[i] !== target);
  if (!list.length) return;
  const told = isWaiting(pending ? 1 : 0);
  $("#moved").textContent = told ? told.textContent : t("{0} moved to {1}. Applied when this list is closed.", images(list.length), callOf(target));
  if (told) return;
  if (!targets.includes(target)) {
    targets[nextTarget] = target;
    nextTarget = (nextTarget + 1) % 9;
  }
  past.push(list.map(i => [i, where[i]]));
  list.forEach(i => put(i, target));
  refresh();
  tick([]);
  settle();
}

/* Apply what the list of images has collected when it is closed, or ask for what follows from it. */
function settle() {
  if (!gridSource && !followed()) applyPending();
}

$("#images").addEventListener("close", () => {
  settle();
  right.clear();
});

/* The digits and their clusters, beside each list of images. */
function tellTargets() {
  for (const place of $$(".targets")) place.replaceChildren(...targets.map((number, k) => {
    const button = element("button", {type: "button", value: k + 1, title: titleOf(number)}, element("kbd", {}, String(k + 1)), ` ${nameOf(number) || callOf(number)}`);
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
  if (!(place in targets) || !isPresent(targets[place])) return;
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
  right: chosen => markRight(chosen.length ? chosen : grid.seen()), kind: anotherKind,
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
