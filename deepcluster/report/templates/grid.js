/* ---- grids of pictures, and which images are selected ------------------------------------------------------------------ */
// takes: $$, element (report.js); t (language.js); picture (pictures.js); factsOf, library, pathOf (clusters.js); openOne (one.js)

/* The selected images, whichever grid shows them. */
const ticked = new Set();
const whenTicked = [];

function tick(list, on = null) {
  if (on === null) ticked.clear();
  for (const row of list) if (on === false) ticked.delete(row); else ticked.add(row);
  whenTicked.forEach(call => call());
}

/* In this mode a click anywhere on a picture selects it, as a finger needs it. */
let isSelecting = false;

function select(on) {
  isSelecting = on;
  for (const button of $$("[data-select]")) button.setAttribute("aria-pressed", on);
}

const EACH_TIME = 200;  /* images whose facts a list asks for at a time */

/* A list of pictures of which only those in sight exist: as large as takes no more rows than the smallest of the sides.
   Arrows walk, Space selects, Enter enlarges. */
function makeGrid(scroller, sides) {
  const inner = element("div", {className: "tiles", role: "listbox", ariaLabel: t("Images")});
  inner.setAttribute("aria-multiselectable", "true");
  inner.tabIndex = 0;
  scroller.replaceChildren(inner);
  scroller.tabIndex = -1;
  const gap = 4, live = new Map();
  let list = [], side = sides.at(-1), across = 1, at = 0, from = 0;  /* rows of images */

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
    const unknown = list.slice(begin, end).findIndex(row => factsOf(row).path === undefined);
    if (unknown >= 0) library.facts(list.slice(begin + unknown, begin + unknown + EACH_TIME)).then(come => come && drawAnew());
  }

  function drawAnew() {
    for (const tile of live.values()) tile.remove();
    live.clear();
    draw();
  }

  function make(k) {
    const row = list[k], tile = element("div", {className: "tile-of", role: "option", id: `${scroller.id}-${k}`, title: pathOf(row)}, picture(row, side),
      element("span", {className: "tick"}));
    tile.classList.toggle("far", factsOf(row).outlier);
    tile.setAttribute("aria-label", pathOf(row));
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
    show(rows, keep = false) {
      const before = new Set(list), places = new Map(rows.map((row, k) => [row, k]));
      const next = rows.find(row => !before.has(row)) ?? list.slice(at).find(row => places.has(row));
      at = keep ? places.get(next) ?? Math.max(0, rows.length - 1) : 0;
      from = at;
      list = rows;
      const rowsOf = one => Math.ceil(rows.length / Math.max(1, Math.floor(scroller.clientWidth / (one + gap))));
      side = sides.find(one => rowsOf(one) <= rowsOf(sides.at(-1)));
      if (!keep) scroller.scrollTop = 0;
      drawAnew();
    },
    list: () => list,
    at: () => list.slice(at, at + 1),
    next: () => go(at + 1),
    focus: () => inner.focus({preventScroll: true}),
  };
}
