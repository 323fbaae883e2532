/* ---- edits: one state, changed in one place, remembered by the browser ------------------------------------------- */

const base = new Map(data.clusters.map(cluster => [cluster.number, cluster]));
const cards = new Map($$(".cluster").map(card => [Number(card.dataset.number), card]));
const firstFree = Math.max(data.next - 1, ...base.keys()) + 1;
/* names: number -> another name than it had; into: number -> the cluster that it is merged into; splits: number -> how
   many parts; moves: image -> its new cluster. */
const kinds = {names: Map, into: Map, splits: Map, moves: Map, junk: Set};
const copied = from => Object.fromEntries(Object.entries(kinds).map(([name, Kind]) => [name, new Kind(from[name])]));
let state = copied({junk: data.clusters.filter(cluster => cluster.junk).map(cluster => cluster.number)});
const past = [];
let clusters = base, home = null, where = null, sizes = new Map(), saved = true, remembered = false;

/* The nodes that are so many groups of a merge tree, with the pieces inside them: as groups/tree.py has them. */
function nodesAt(pieces, merges, count) {
  const nodes = new Map(Array.from({length: pieces}, (_, piece) => [piece, [piece]]));
  merges.slice(0, pieces - count).forEach(([a, b], j) => {
    nodes.set(pieces + j, [...nodes.get(a), ...nodes.get(b)].sort((x, y) => x - y));
    nodes.delete(a);
    nodes.delete(b);
  });
  return nodes;
}

/* The parts inside each of so many groups, the largest first. */
function partsAt({sizes, merges}, count) {
  const total = parts => parts.reduce((sum, part) => sum + sizes[part], 0);
  return [...nodesAt(sizes.length, merges, count).values()].sort((a, b) => total(b) - total(a) || a[0] - b[0]);
}

/* The clusters as they are with the edits, how many images each has, and where each image is before merges: its home, and
   where a move put it. */
function derive() {
  clusters = new Map(base);
  sizes = new Map(data.clusters.map(cluster => [cluster.number, cluster.size]));
  const made = (number, about) => clusters.set(number, {number, name: "", size: 0, distance: null, junk: false, parts: null, ...about});
  const ofPart = new Map();
  let next = firstFree;
  for (const [number, count] of state.splits) {
    const {parts: branches, name} = base.get(number), groups = partsAt(branches, count);
    ofPart.set(number, new Map(groups.flatMap((parts, i) => parts.map(part => [part, i ? next + i - 1 : number]))));
    groups.forEach((parts, i) => {
      const to = i ? next + i - 1 : number, size = parts.reduce((sum, part) => sum + branches.images[part], 0);
      if (i) made(to, {from: number, name: name && `${name} (${i + 1})`});
      sizes.set(to, size);
    });
    next += count - 1;
  }
  if (!imageData) return;
  home = imageData.cluster.map((each, i) => ofPart.get(imageData.numbers[each])?.get(imageData.part[i]) ?? imageData.numbers[each]);
  where = [...home];
  for (const [i, number] of state.moves) {
    if (!clusters.has(number)) made(number, {moved: true});
    sizes.set(where[i], sizes.get(where[i]) - 1);
    sizes.set(number, (sizes.get(number) ?? 0) + 1);
    where[i] = number;
  }
}

/* The first number that no split has taken. New clusters of moved images follow. */
const afterSplits = () => firstFree + [...state.splits.values()].reduce((sum, count) => sum + count - 1, 0);

/* Splits take their numbers first: those of new clusters move up. */
function splitUp(number, count) {
  const from = afterSplits(), up = n => n >= from ? n + count - 1 : n;
  state.names = new Map([...state.names].map(([n, name]) => [up(n), name]));
  state.into = new Map([...state.into].map(pair => pair.map(up)));
  state.moves = new Map([...state.moves].map(([i, n]) => [i, up(n)]));
  state.junk = new Set([...state.junk].map(up));
  state.splits.set(number, count);
}

/* Parts stand behind the cluster that they were split from, also after the page of a server is loaded again. */
const besides = () => [...clusters.values()].flatMap(({number, from, beside = from}) => clusters.has(beside) ? [[number, beside]] : []);
const placeOf = number => {
  const {from, beside = from} = clusters.get(number);
  return clusters.has(beside) ? placeOf(beside) + number / 1e9 : number;
};

const nextFree = () => Math.max(afterSplits() - 1, ...clusters.keys()) + 1;

function root(number) {
  while (state.into.has(number)) number = state.into.get(number);
  return number;
}

const members = number => [...clusters.keys()].filter(other => root(other) === number);
const nameOf = number => state.names.get(number) ?? clusters.get(number)?.name ?? "";
const withName = (text, number) => text + (nameOf(number) ? ` · ${nameOf(number)}` : "");
const titleOf = number => withName(t("Cluster {0}", number), number);
const callOf = number => withName(t("cluster {0}", number), number);  /* inside a sentence */
const shortOf = number => withName(String(number), number);
const hintsOf = number => nameOf(number) ? [] : $$(".hints button", cards.get(number) ?? document.createElement("i")).map(hint => hint.textContent);
const perhaps = number => hintsOf(number).slice(0, 1).map(hint => ` · ${t("perhaps")} ${hint}`).join("");
const sizeOf = number => members(number).reduce((sum, other) => sum + (sizes.get(other) ?? 0), 0);
const imagesOf = number => where ? [...where.keys()].filter(i => root(where[i]) === number) : [];
const roots = () => [...clusters.keys()].filter(number => !state.into.has(number));

function edits() {
  const kept = roots();
  const moves = [...state.moves].filter(([i, number]) => root(number) !== root(home[i]) || clusters.get(root(number)).moved);
  return {
    schema_version: 1,
    cut: data.cut,
    names: Object.fromEntries(kept.filter(number => state.names.has(number)).map(number => [number, state.names.get(number)])),
    merge: kept.map(number => [number, ...members(number).filter(other => other !== number && !clusters.get(other).moved)])
      .filter(merged => merged.length > 1),
    junk: kept.filter(number => state.junk.has(number)),
    ...(state.splits.size ? {split: [...state.splits]} : {}),
    ...(moves.length ? {move: moves.map(([i, number]) => [i * imageData.step, root(number)])} : {}),
  };
}

function pendingCount() {
  const kept = roots();
  return state.into.size + state.splits.size + state.moves.size + kept.filter(number => state.names.has(number)).length
    + kept.filter(number => state.junk.has(number) !== clusters.get(number).junk).length;
}

/* Every edit goes through here, so that each can be taken back. */
function edit(change) {
  past.push(copied(state));
  change();
  refresh();
}

function takeBack() {
  if (!past.length) return data.served?.done.length && !gridSource && send("undo");
  state = past.pop();
  refresh();
}

function refresh() {
  saved = false;
  derive();
  /* A cluster that moves had made and that has no image left is no more. */
  for (const number of [...state.names.keys(), ...state.junk, ...state.into.keys()]) {
    if (clusters.has(number)) continue;
    state.names.delete(number);
    state.junk.delete(number);
    state.into.delete(number);
  }
  for (const [number, card] of cards) {
    if (clusters.has(number)) continue;
    card.remove();
    cards.delete(number);
  }
  for (const number of clusters.keys()) if (!base.has(number) && !cards.has(number)) makeCard(number);
  for (const number of cards.keys()) paint(number);
  $(".tabs .count").textContent = grouped(roots().filter(sizeOf).length);
  $("#undo").hidden = !past.length && !data.served?.done.length;
  tellPending();
  remember();
  arrange();
  whenEdited.forEach(call => call());
  if (!gridSource) applyPending();
}

/* A server gets edits at once, and those of an open grid when it is closed. Until one has failed, nothing is pending. */
const applyPending = () => data.served && !followed() && pendingCount() && send("apply", {edits: edits()});

function tellPending() {
  const count = data.served && !data.served.offer ? 0 : pendingCount();
  $("#pending").textContent = count ? t(count === 1 ? "{0} edit pending" : "{0} edits pending", grouped(count)) : "";
  $("#download").hidden = data.served?.offer === RELOAD ? false : !count;
  if (data.served?.offer) $("#download").textContent = data.served.offer;
}

/* Where the browser keeps nothing (it may not for a file), the edits are lost with the page, and it asks before. */
const memory = `deepcluster ${data.run} ${data.cut}`;

const MAX_PAST = 20, MANY_MOVES = 2000;  /* of a state with so many moves the past is not kept */
const packed = from => ({...Object.fromEntries(Object.keys(kinds).map(name => [name, [...from[name]]])), next: firstFree});

function remember() {
  if (data.served) return;
  try {
    const kept = {...packed(state), past: state.moves.size > MANY_MOVES ? [] : past.slice(-MAX_PAST).map(packed)};
    if (pendingCount()) localStorage.setItem(memory, JSON.stringify(kept));
    else localStorage.removeItem(memory);
    remembered = true;
  } catch { remembered = false; }
}

/* A state as it was kept, without what does not fit this page. The numbers of its new clusters may have been given since,
   by an edit that was taken back. */
function trusted(kept) {
  const number = value => Number.isInteger(value) && value >= 0, up = n => n >= kept.next ? n - kept.next + firstFree : n;
  const splits = new Map(kept.splits.filter(([n, count]) => base.get(n)?.parts?.sizes.length >= count && count > 1));
  const moves = new Map(kept.moves.map(([i, n]) => [i, up(n)])
    .filter(([i, n]) => number(i) && i < (imageData?.count ?? 0) && number(n) && n < firstFree + 1000));
  state = {splits, moves, names: new Map(), into: new Map(), junk: new Set()};
  derive();
  const known = n => clusters.has(n);
  state.names = new Map(kept.names.map(([n, name]) => [up(n), name]).filter(([n, name]) => known(n) && typeof name === "string" && plain(name) !== clusters.get(n).name)
    .map(([n, name]) => [n, plain(name).slice(0, 200)]));
  for (const [a, b] of kept.into.map(pair => pair.map(up))) if (known(a) && known(b) && root(b) !== a) state.into.set(a, b);
  state.junk = new Set(kept.junk.map(up).filter(known));
  return state;
}

function recall() {
  const fresh = copied(state);
  try {
    const kept = JSON.parse(localStorage.getItem(memory));
    if (!kept) return;
    const before = kept.past.map(trusted);
    state = trusted(kept);
    past.push(...before);
    refresh();
  } catch {  /* nothing is kept, or not by this page */
    state = fresh;
    derive();
  }
}

function makeCard(number) {
  const card = [...cards.values()][0].cloneNode(true);
  card.id = `cluster-${number}`;
  card.dataset.number = number;
  card.className = "cluster made";
  $("h3 .call", card).textContent = t("Cluster {0}", number);
  $(".about ul", card).replaceChildren(element("li", {}, element("strong", {className: "size"})), element("li", {className: "origin"}));
  $(".sheet", card).replaceChildren(element("figure", {className: "many"}, element("ul")));
  $$(".rename, .hints", card).forEach(other => other.remove());
  cards.set(number, card);
  listOf(number).append(card);
}

function paint(number) {
  const card = cards.get(number), gone = state.into.has(number), total = sizeOf(number);
  const others = gone ? [] : members(number).filter(other => other !== number);
  card.classList.toggle("gone", gone);
  card.classList.toggle("junk", state.junk.has(number) && !gone);
  $(".name", card).textContent = nameOf(number) ? ` · ${nameOf(number)}` : "";
  $(".hints", card)?.toggleAttribute("hidden", gone || Boolean(nameOf(number)));
  $(".junk-mark", card).hidden = !state.junk.has(number) || gone;
  $("[data-act=junk]", card).setAttribute("aria-pressed", state.junk.has(number));
  $(".size", card).textContent = images(sizes.get(number));
  if (base.has(number)) {
    const all = data.clusters.map(cluster => cluster.size), sum = all.reduce((a, b) => a + b, 0);
    $(".share", card).textContent = `${(100 * sizes.get(number) / sum).toFixed(1)}%`;
    $(".track span", card).style.width = `${Math.min(100, 100 * sizes.get(number) / Math.max(...all))}%`;
  }
  $(".all", card).textContent = total === 1 ? t("Its image") : t("All {0}", images(total));
  const note = $(".note", card);
  const split = !gone && state.splits.get(number);
  const told = [
    ...(gone ? [t("Merged into {0}.", callOf(root(number)))] : []),
    ...(others.length ? [t("With {0}: {1}.", others.map(other => t("cluster {0}", other)).join(t(", ")), images(total))] : []),
    ...(split ? [t("Split into {0}: with {1}.", split, [...clusters.values()].filter(each => each.from === number).map(each => t("cluster {0}", each.number)).join(t(", ")))] : []),
    ...(gone ? [] : movesOf(number)),
  ];
  note.hidden = !told.length;
  note.textContent = told.join(" ");
  for (const button of $$("[data-act]", card)) {
    button.hidden = gone !== (button.dataset.act === "unmerge")
      || (button.dataset.act === "split" && !maySplit(number)) || (button.dataset.act === "all" && !where);
  }
  if (!where) return;
  for (const tile of $$("[data-image]", card)) tile.classList.toggle("away", !gone && root(where[tile.dataset.image]) !== number);
  if (!base.has(number)) {
    const {from} = clusters.get(number);
    $(".origin", card).textContent = from === undefined ? t("new, of moved images") : t("new, of {0}", callOf(from));
    const all = imagesOf(number), shown = Math.min(12, all.length);
    $(".sheet ul", card).replaceChildren(...Array.from({length: shown}, (_, k) => {
      const i = all[Math.floor(k * all.length / shown)], tile = element("li", {}, picture(tileOf(i), 72));
      tile.dataset.image = i;
      return tile;
    }));
  }
}

function movesOf(number) {
  let here = 0, away = 0;
  for (const [i, to] of state.moves) {
    const from = imageData.numbers[imageData.cluster[i]];
    here += root(to) === number && base.has(number);
    away += from === number && root(to) !== number;
  }
  return [...(here ? [t("{0} moved here.", images(here))] : []), ...(away ? [t("{0} moved away.", images(away))] : [])];
}

const maySplit = number => Boolean(base.get(number)?.parts && where && !state.splits.has(number) && !state.into.has(number) && members(number).length < 2);

/* As the table of clusters takes them: one line of printable text. */
function plain(text) {
  return text.replace(/\p{Z}/gu, " ").replace(/\p{C}/gu, "").trim();
}

function rename(number) {
  const card = cards.get(number), shown = $(".name", card), before = nameOf(number);
  if (state.into.has(number) || $("input", shown.parentElement)) return;
  const input = element("input", {className: "rename", value: before, maxLength: 200, placeholder: t("name"), ariaLabel: t("Name of cluster {0}", number)});
  let open = true;
  const close = keep => {
    if (!open) return;
    open = false;
    const name = plain(input.value);
    input.remove();
    shown.hidden = false;
    if (keep && name !== before) edit(() => name === clusters.get(number).name ? state.names.delete(number) : state.names.set(number, name));
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

function mark(number) {
  if (state.into.has(number)) return;
  edit(() => { if (!state.junk.delete(number)) state.junk.add(number); });
}

const unmerge = number => edit(() => state.into.delete(number));

/* The picture of a cluster. */
function faceOf(number, side) {
  const medoid = cards.has(number) ? $(".medoid img", cards.get(number)) : null;
  const first = medoid || !where ? -1 : where.findIndex(each => root(each) === number);
  return medoid ? element("img", {src: medoid.src, alt: ""}) : first < 0 ? element("span", {className: "tile"}) : picture(tileOf(first), side);
}

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
    if (clusters.has(Number(number)) && /^\d+$/.test(number)) return others.find(other => other === Number(number));
    const named = others.filter(other => text && [called(other), titleOf(other).toLowerCase()].includes(text));
    const some = named.length ? named : others.filter(other => text && isLike(other, text));
    return some.length === 1 ? some[0] : undefined;
  };
  $("#follow").closest("p").hidden = made === null || !data.served;
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
  const others = roots().filter(other => other !== number && sizeOf(other));
  if (state.into.has(number) || !others.length) return;
  choose({
    title: t("Merge {0} into", callOf(number)), hint: t("It keeps the number of the cluster that you choose."),
    others, like: number,
    done: target => edit(() => state.into.set(number, target)),
    back: () => cards.get(number).focus({preventScroll: true}),
  });
}

/* The clusters that images were moved to, by the digits that move more there. A new one takes the place of the oldest. */
const targets = [];
let nextTarget = 0;

function moveTo(list, target) {
  list = list.filter(i => clusterOf(i) !== target);
  if (!list.length) return;
  if (!targets.includes(target)) {
    targets[nextTarget] = target;
    nextTarget = (nextTarget + 1) % 9;
  }
  $("#moved").textContent = t(data.served ? "{0} moved to {1}. Applied when this list is closed." : "{0} moved to {1}.", images(list.length), callOf(target));
  edit(() => {
    for (const i of list) {
      state.moves.delete(i);
      state.moves.set(i, target);
    }
    /* Back to where it was: nothing to do. */
    for (const i of list) if (home[i] === target) state.moves.delete(i);
  });
  tick([]);
}

/* The digits and their clusters, beside each list of images. */
function tellTargets() {
  for (const place of $$(".targets")) place.replaceChildren(...targets.map((number, k) => {
    const button = element("button", {type: "button", value: k + 1, title: titleOf(number)}, element("kbd", {}, String(k + 1)), ` ${nameOf(number) || callOf(number)}`);
    button.disabled = !clusters.has(number) || state.into.has(number);
    return button;
  }));
}
whenEdited.push(tellTargets);

/* Move images to a cluster that is asked for. */
function openMove(list, back = () => {}) {
  if (!list.length) return;
  const from = new Set(list.map(i => root(where[i])));
  choose({
    title: t("Move {0} to", images(list.length)), hint: imageData.step > 1
      ? t("Only these images move: the page does not hold all. To change a whole cluster, merge or split it.")
      : t("The other images of their clusters stay where they are."),
    others: roots().filter(number => sizeOf(number) && !(from.size === 1 && from.has(number))), made: nextFree(), like: [...from][0], alike: list.flatMap(alikeOf),
    done: target => moveTo(list, target),
    back,
  });
}

function openSplit(number) {
  if (!maySplit(number)) return;
  const dialog = $("#split"), slider = $("#split-count"), parts = base.get(number).parts, own = imagesOf(number);
  $("#split-title").textContent = t("Split {0}", callOf(number));
  slider.max = parts.sizes.length;
  slider.value = 2;
  const update = () => {
    const count = Number(slider.value), next = afterSplits();
    $("#split-value").textContent = count;
    $("#split-parts").replaceChildren(...partsAt(parts, count).map((inside, i) => {
      const some = own.filter(image => inside.includes(imageData.part[image])), shown = Math.min(9, some.length);
      return element("li", {}, element("span", {}, `${i ? next + i - 1 : number}`, element("br"),
        element("span", {className: "quiet"}, images(inside.reduce((sum, part) => sum + parts.images[part], 0)))),
      element("span", {className: "row"}, ...Array.from({length: shown}, (_, k) => picture(tileOf(some[Math.floor(k * some.length / shown)]), 44))));
    }));
  };
  slider.oninput = update;
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value === "split") edit(() => splitUp(number, Number(slider.value)));
  };
  dialog.onclose = () => cards.get(number).focus({preventScroll: true});
  update();
  dialog.showModal();
  slider.focus();
}

const take = (number, hint) => edit(() => state.names.set(number, plain(hint.value)));

const acts = {rename, take, merge: openMerge, split: openSplit, junk: mark, unmerge, all: openCluster};
$("#clusters").addEventListener("click", event => {
  const card = event.target.closest(".cluster"), button = event.target.closest("[data-act]");
  if (!card) return;
  mind(card, false);
  if (button) return acts[button.dataset.act](Number(card.dataset.number), button);
  const tile = event.target.closest("[data-image]");
  if (tile) openOne(Number(tile.dataset.image), $$("[data-image]", card).map(each => Number(each.dataset.image)));
});
$("#undo").addEventListener("click", takeBack);
$("#download").addEventListener("click", () => {
  if (data.served?.offer === RELOAD) return reload();
  if (data.served?.offer === AGAIN) return applyPending();
  save("edits.json", JSON.stringify(edits(), null, 2) + "\n", "application/json");
  saved = true;
  $("#saved").showModal();
});
addEventListener("beforeunload", event => {
  if (!saved && !remembered && pendingCount()) event.preventDefault();
});

derive();
tellTargets();
