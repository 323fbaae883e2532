/* ---- all images: grids of pictures, one of them large, and which are selected -------------------------------------- */

const imageData = data.images && unpacked(data.images);

function unpacked(packed) {
  const cluster = [...shorts(packed.cluster)];
  return {
    ...packed, cluster, count: cluster.length, numbers: [...data.clusters.map(each => each.number), -1],  /* of rejected images */
    far: shorts(packed.distance), margins: shorts(packed.margin), folder: shorts(packed.folder), outliers: new Set(packed.outlier),
    label: packed.label ? shorts(packed.label) : null,
    similar: packed.similar ? shorts(packed.similar) : null, part: packed.part ? shorts(packed.part) : [],
  };
}

/* The clusters, their cards, and the cluster of each image, which moves change. */
const base = new Map(data.clusters.map(cluster => [cluster.number, cluster]));
const cards = new Map($$(".cluster").map(card => [Number(card.dataset.number), card]));
const firstFree = Math.max(data.next - 1, ...base.keys()) + 1;
const where = imageData && imageData.cluster.map(each => imageData.numbers[each]);
const sizes = new Map(data.clusters.map(cluster => [cluster.number, cluster.size]));
const standing = new Map();  /* clusters that an edit made: the one that each stands behind in the list */

const clusterOf = i => where[i];
const imagesOf = number => [...where.keys()].filter(i => where[i] === number);
const sizeOf = number => sizes.get(number) ?? 0;
const isPresent = number => sizeOf(number) > 0;
const maySplit = number => Boolean(where && base.get(number)?.parts);
const placeOf = number => standing.has(number) ? placeOf(standing.get(number)) + number / 1e9 : number;
const nameOf = number => base.get(number)?.name ?? "";
const withName = (text, number) => text + (nameOf(number) ? ` · ${nameOf(number)}` : "");
const titleOf = number => number < 0 ? t("no cluster") : withName(t("Cluster {0}", number), number);
const callOf = number => withName(t("cluster {0}", number), number);  /* inside a sentence */
const shortOf = number => withName(String(number), number);
const hintsOf = number => cards.has(number) ? $$(".hints:not([hidden]) [data-chinese]", cards.get(number)).map(hint => hint.textContent) : [];
const perhaps = number => hintsOf(number).slice(0, 1).map(hint => ` · ${t("perhaps")} ${hint}`).join("");

const pathOf = i => imageData.folders[imageData.folder[i]] + imageData.names[i];
const tileOf = i => i * imageData.every;
/* The address of an image in full size, if it can be opened. */
const urlOf = (row, path) => data.served ? `image/${data.served.version}/${row}`
  : data.originals && location.protocol === "file:" && data.originals + path.split("/").map(encodeURIComponent).join("/");
const distanceOf = i => imageData.far[i] / 65535 * imageData.farthest;
const labelOf = i => imageData.label ? imageData.labels[imageData.label[i]] : "";
const alikeOf = i => imageData.similar ? [...imageData.similar.slice(i * imageData.alike, (i + 1) * imageData.alike)] : [];

/* The picture of a cluster. */
function faceOf(number, side) {
  const medoid = cards.has(number) ? $(".sheet img", cards.get(number)) : null;
  const first = medoid || !where ? -1 : where.indexOf(number);
  return medoid ? element("img", {src: medoid.src, alt: "", className: "picture"}) : first < 0 ? element("span", {className: "tile"}) : picture(tileOf(first), side);
}

/* The selected images, whichever grid shows them. */
const ticked = new Set();
const whenTicked = [];

function tick(list, on = null) {
  if (on === null) ticked.clear();
  for (const i of list) if (on === false) ticked.delete(i); else ticked.add(i);
  whenTicked.forEach(call => call());
}

let checked = null;  /* the cluster whose list is checked, one after another */

/* In this mode a click anywhere on a picture selects it, as a finger needs it. */
let isSelecting = false;

function select(on) {
  isSelecting = on;
  for (const button of $$("[data-select]")) button.setAttribute("aria-pressed", on);
}

/* A list of pictures of which only those in sight exist. Arrows walk, Space selects, Enter enlarges. */
function makeGrid(scroller, side) {
  const inner = element("div", {className: "tiles", role: "listbox", ariaLabel: t("Images")});
  inner.setAttribute("aria-multiselectable", "true");
  inner.tabIndex = 0;
  scroller.replaceChildren(inner);
  scroller.tabIndex = -1;
  const gap = 4, live = new Map();
  let list = [], across = 1, at = 0, from = 0;

  function draw() {
    const width = scroller.clientWidth - 4;
    if (width <= 0) return;
    across = Math.max(1, Math.floor((width + gap) / (side + gap)));
    inner.style.height = `${Math.ceil(list.length / across) * (side + gap)}px`;
    const top = Math.floor(scroller.scrollTop / (side + gap)) - 1, rows = Math.ceil(scroller.clientHeight / (side + gap)) + 3;
    const begin = Math.max(0, top * across), end = Math.min(list.length, (top + rows) * across);
    for (const [k, tile] of live) if (k < begin || k >= end) { tile.remove(); live.delete(k); }
    for (let k = begin; k < end; k++) {
      if (!live.has(k)) live.set(k, inner.appendChild(make(k)));
      live.get(k).style.transform = `translate(${k % across * (side + gap)}px, ${Math.floor(k / across) * (side + gap)}px)`;
    }
    look();
  }

  function make(k) {
    const i = list[k], tile = element("div", {className: "tile-of", role: "option", id: `${scroller.id}-${k}`, title: pathOf(i)}, picture(tileOf(i), side),
      element("span", {className: "tick"}));
    tile.classList.toggle("far", imageData.outliers.has(i));
    tile.setAttribute("aria-label", pathOf(i));
    tile.setAttribute("aria-setsize", list.length);
    tile.setAttribute("aria-posinset", k + 1);
    tile.dataset.place = k;
    return tile;
  }

  function look() {
    for (const [k, tile] of live) {
      tile.setAttribute("aria-selected", ticked.has(list[k]));
      tile.classList.toggle("at", k === at);
    }
    if (live.has(at)) inner.setAttribute("aria-activedescendant", live.get(at).id);
  }

  const range = (a, b) => list.slice(Math.min(a, b), Math.max(a, b) + 1);

  function go(k) {
    at = Math.max(0, Math.min(list.length - 1, k));
    const row = Math.floor(at / across) * (side + gap);
    if (row < scroller.scrollTop) scroller.scrollTop = row;
    if (row + side > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = row + side - scroller.clientHeight;
    draw();
  }

  inner.addEventListener("click", event => {
    const tile = event.target.closest(".tile-of");
    if (!tile) return;
    const k = Number(tile.dataset.place);
    if (event.shiftKey) tick(range(from, k), true);
    else if (isSelecting || event.ctrlKey || event.metaKey || event.target.matches(".tick")) {
      tick([list[k]], !ticked.has(list[k]));
      from = k;
    } else openOne(list[k], list);
    at = k;
    look();
  });
  inner.addEventListener("keydown", event => {
    const page = across * Math.max(1, Math.floor(scroller.clientHeight / (side + gap)));
    const to = {ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - across, ArrowDown: at + across, Home: 0, End: list.length - 1,
      PageUp: at - page, PageDown: at + page}[event.key];
    if (to !== undefined) {
      const before = at;
      go(to);
      if (event.shiftKey) tick(range(before, at), true);
    } else if (event.key === " ") {
      tick([list[at]], !ticked.has(list[at]));
      from = at;
    } else if (event.key === "Enter") {
      openOne(list[at], list);
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      tick(list, true);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  let asked = false;
  scroller.addEventListener("scroll", () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  });
  new ResizeObserver(draw).observe(scroller);
  whenTicked.push(look);
  return {
    /* After an edit: an image that came back is looked at, else the next one after those that have gone. */
    show(images, keep = false) {
      const before = new Set(list), places = new Map(images.map((i, k) => [i, k]));
      const next = images.find(i => !before.has(i)) ?? list.slice(at).find(i => places.has(i));
      at = keep ? places.get(next) ?? Math.max(0, images.length - 1) : 0;
      from = at;
      list = images;
      for (const tile of live.values()) tile.remove();
      live.clear();
      if (!keep) scroller.scrollTop = 0;
      draw();
    },
    list: () => list,
    seen: () => list.slice(...[scroller.scrollTop, scroller.scrollTop + scroller.clientHeight].map(y => Math.round(y / (side + gap)) * across)),
    at: () => list.slice(at, at + 1),
    next: () => go(at + 1),
    focus: () => inner.focus({preventScroll: true}),
  };
}

const tileSide = () => Math.max(56, Math.min(104, 2 * (sheet?.naturalWidth || 48 * data.columns) / data.columns));

/* The dialog with all images of a cluster, or with those that were drawn around on the map. */
let grid = null, gridSource = null;

const orderings = {
  near: (a, b) => imageData.far[a] - imageData.far[b] || a - b,
  far: (a, b) => imageData.far[b] - imageData.far[a] || a - b,
  doubt: (a, b) => imageData.margins[a] - imageData.margins[b] || a - b,
  path: (a, b) => a - b,
};

function openCluster(number) {
  if (where) openImages(() => imagesOf(number), () => titleOf(number), () => sizeOf(number), () => cards.get(number)?.focus({preventScroll: true}));
}

async function openImages(source, title, total, back = () => {}, keepTicked = false) {
  await sheetReady;
  grid ??= makeGrid($("#images-grid"), tileSide());
  gridSource = {source, title, total, back};
  if (!keepTicked) tick([]);
  $("#moved").textContent = "";
  $("#images").classList.toggle("checking", checked !== null);
  if (!$("#images").open) $("#images").showModal();
  fill();
  grid.focus();
}

function fill(keep = false) {
  if (!gridSource) return;
  const list = gridSource.source().sort(orderings[$("#images-order").value]), total = gridSource.total();
  $("#images-title").textContent = `${gridSource.title()} · ${images(total)}`;
  const note = $("#images-sample");
  note.hidden = list.length >= total;
  note.textContent = t("{0} of them are shown: the page holds one image in {1}.", grouped(list.length), imageData.step);
  grid.show(list, keep);
}

whenEdited.push(() => fill(true));
$("#images-order").addEventListener("change", () => fill());
for (const button of $$("[data-select]")) button.addEventListener("click", () => select(!isSelecting));
select(matchMedia("(pointer: coarse)").matches);
$("#images-close").addEventListener("click", () => $("#images").close());
$("#images").addEventListener("close", () => {
  const {back} = gridSource;
  gridSource = null;
  back();
});

/* Actions on the selected images, beside each grid. */
const withTicked = {
  all: () => tick(grid.list()),
  none: () => tick([]),
  copy: (_, some, button) => copy(some.map(pathOf).join("\n") + "\n", button),
  csv: (_, some) => saveTable(some),
};
document.addEventListener("click", event => {
  const button = event.target.closest("[data-ticked]");
  if (!button) return;
  const chosen = [...ticked], listed = button.closest("#images") ? grid.list() : mapped.list();
  const some = chosen.length ? chosen.sort((a, b) => a - b) : listed;
  withTicked[button.dataset.ticked](chosen, some, button);
});
whenTicked.push(() => {
  for (const count of $$(".ticked-count")) count.textContent = ticked.size ? t("{0} selected", images(ticked.size)) : t("None selected");
  for (const button of $$("[data-ticked=move], [data-ticked=none], [data-ticked=kind]")) button.disabled = !ticked.size;
});

function saveTable(list) {
  const heads = ["row", "path", "cluster", "name", "distance", ...(imageData.label ? ["label"] : [])];
  const rows = list.map(i => [
    i * imageData.step, guarded(pathOf(i), "./"), clusterOf(i), guarded(nameOf(clusterOf(i)), "'"), distanceOf(i).toFixed(4),
    ...(imageData.label ? [guarded(labelOf(i), "'")] : []),
  ]);
  save("selection.csv", [heads, ...rows].map(row => row.map(cell).join(",") + "\n").join(""), "text/csv");
}
const cell = value => /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
/* No cell may begin as a formula does, by the program's own patterns: a path gets ./ in front, another text a quote. */
const guarded = (text, guard) => new RegExp(data.formulas[guard], "u").test(text) ? guard + text : text;

/* One image, as large as it goes: the picture of the page at once, the file itself where it can be opened. */
let one = -1, among = [];

function openOne(i, list) {
  if (!where) return;
  [one, among] = [i, list];
  showOne();
  if (!$("#one").open) $("#one").showModal();
  $("#one-close").focus();
}

function showOne() {
  const i = one, place = $("#one-place");
  const large = $$(`.sheet [data-image="${i}"] img`)[0];
  const shown = large ? element("img", {src: large.src, alt: ""}) : picture(tileOf(i), 0);
  place.replaceChildren(shown);
  const link = $("#one-original");
  link.hidden = true;
  if (urlOf(0, "")) {
    const url = urlOf(i * imageData.step, pathOf(i));
    const original = element("img", {alt: pathOf(i)});
    original.onload = () => {
      if (one !== i) return;
      place.replaceChildren(original);
      Object.assign(link, {href: url, target: "_blank", rel: "noopener", hidden: false});
    };
    original.onerror = () => data.served && checkAge(url);
    original.src = url;
  }
  $("#one-title").textContent = pathOf(i);
  $("#one-about").textContent = [titleOf(clusterOf(i)), t("distance {0}", distanceOf(i).toFixed(3)),
    ...(imageData.outliers.has(i) ? [t("outlier")] : []), ...(labelOf(i) ? [t("label {0}", labelOf(i))] : [])].join(" · ");
  $("#one-ticked").checked = ticked.has(i);
  const at = among.indexOf(i);
  $("#one-before").disabled = at <= 0;
  $("#one-after").disabled = at < 0 || at + 1 >= among.length;
  const alike = alikeOf(i);
  $("#alike-title").hidden = !alike.length;
  $("#alike").replaceChildren(...alike.map(other => {
    const title = `${pathOf(other)} · ${titleOf(clusterOf(other))}`;
    const button = element("button", {type: "button", title, ariaLabel: title}, picture(tileOf(other), 64),
      element("span", {className: "quiet"}, String(clusterOf(other))));
    button.addEventListener("click", () => { one = other; showOne(); });
    return element("li", {}, button);
  }));
}

const leaf = by => {
  const to = among[among.indexOf(one) + by];
  if (to === undefined) return;
  one = to;
  showOne();
};
$("#one-before").addEventListener("click", () => leaf(-1));
$("#one-after").addEventListener("click", () => leaf(1));
$("#one-close").addEventListener("click", () => $("#one").close());
$("#one-ticked").addEventListener("change", event => tick([one], event.target.checked));
$("#one").addEventListener("keydown", event => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (by) leaf(by);
  else if (event.key === " " && !event.target.matches("button, input, a")) tick([one], !ticked.has(one));
  else return;
  event.preventDefault();
});
whenTicked.push(() => { if (one >= 0) $("#one-ticked").checked = ticked.has(one); });
whenEdited.push(() => { if ($("#one").open) showOne(); });

/* Actions on a cluster, by the buttons of its card. */
const acts = {all: openCluster};
$("#clusters").addEventListener("click", event => {
  const card = event.target.closest(".cluster"), button = event.target.closest("[data-act]"), tile = event.target.closest("[data-image]");
  if (card) mind(card, false);
  if (button) acts[button.dataset.act](Number(card.dataset.number), button);
  else if (tile) openOne(Number(tile.dataset.image), $$("[data-image]", card).map(each => Number(each.dataset.image)));
});
