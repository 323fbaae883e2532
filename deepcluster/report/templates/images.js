/* ---- the dialog with all images of a cluster, or with those that were drawn around on the map ------------------------- */
// takes: data, $, grouped, whenMoved, $$ (report.js); images, t (language.js); save (files.js); sheet, sheetReady (pictures.js)
//   sample, library, moved, titleOf, sizeOf, cards, pathOf, clusterOf, nameOf, factsOf (clusters.js)
//   makeGrid, tick, select, isSelecting, ticked, whenTicked (grid.js); mapped (map.js)

const tileSides = () => data.served ? [208, 160, 128, 102] : [Math.max(56, Math.min(104, 2 * (sheet?.naturalWidth || 48 * data.columns) / data.columns))];

let grid = null, listed = null;  /* what the dialog shows; null if it is closed */

function openCluster(number) {
  if (sample) openImages({
    rows: order => library.rows([number], order), of: rows => [...rows.filter(row => !moved.has(row)), ...[...moved.keys()].filter(row => moved.get(row) === number)],
    title: () => titleOf(number), total: () => sizeOf(number), back: () => cards.get(number)?.focus({preventScroll: true}),
  });
}

/* Open a list: ``rows`` promises its images in an order, ``of`` chooses among them by the moves. */
async function openImages({rows, of = all => all, title, total, back = () => {}, keepTicked = false, about = ""}) {
  await sheetReady;
  const all = await rows($("#images-order").value);
  grid ??= makeGrid($("#images-grid"), tileSides());
  listed = {rows, of, title, total, back, all};
  if (!keepTicked) tick([]);
  $("#moved").textContent = "";
  $("#images").classList.toggle("checking", Boolean(about));
  $("#images-about").textContent = about;
  if (!$("#images").open) $("#images").showModal();
  fill();
  grid.focus();
}

function fill(keep = false) {
  if (!listed) return;
  const list = listed.of(listed.all), total = listed.total();
  $("#images-title").textContent = `${listed.title()} · ${images(total)}`;
  const note = $("#images-sample");
  note.hidden = list.length >= total;
  note.textContent = t("{0} of them are shown: the page holds one image in {1}.", grouped(list.length), sample.step);
  grid.show(list, keep);
}

whenMoved.push(() => fill(true));
$("#images-order").addEventListener("change", async event => {
  listed.all = await listed.rows(event.target.value);
  fill();
});
for (const button of $$("[data-select]")) button.addEventListener("click", () => select(!isSelecting));
select(matchMedia("(pointer: coarse)").matches);
$("#images-close").addEventListener("click", () => leaveImages());
$("#images").addEventListener("close", () => {
  const {back} = listed;
  listed = null;
  back();
});
/* Close the list; a server applies first what it has collected (moves.js). */
let leaveImages = () => $("#images").close();

/* Actions on the selected images, beside each grid. */
const withTicked = {
  all: () => tick(grid.list()),
  none: () => tick([]),
  csv: (_, rows) => saveTable(rows),
};
document.addEventListener("click", async event => {
  const button = event.target.closest("[data-ticked]");
  if (!button) return;
  const chosen = [...ticked], listed = button.closest("#images") ? grid.list() : mapped.list();
  const rows = chosen.length ? chosen.sort((a, b) => a - b) : listed;
  if (button.dataset.ticked === "csv") await library.facts(rows);
  withTicked[button.dataset.ticked](chosen, rows);
});
whenTicked.push(() => {
  for (const count of $$(".ticked-count")) count.textContent = ticked.size ? t("{0} selected", images(ticked.size)) : t("None selected");
  for (const button of $$("[data-ticked=move], [data-ticked=none]")) button.disabled = !ticked.size;
});

function saveTable(list) {
  const heads = ["row", "path", "cluster", "name", "distance", ...(sample.label ? ["label"] : [])];
  const rows = list.map(row => [
    row, guarded(pathOf(row), "./"), clusterOf(row), guarded(nameOf(clusterOf(row)), "'"), factsOf(row).distance.toFixed(4),
    ...(sample.label ? [guarded(factsOf(row).label, "'")] : []),
  ]);
  save("selection.csv", [heads, ...rows].map(row => row.map(cell).join(",") + "\n").join(""), "text/csv");
}
const cell = value => /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
/* No cell may begin as a formula does, by the program's own patterns: a path gets ./ in front, another text a quote. */
const guarded = (text, guard) => new RegExp(data.formulas[guard], "u").test(text) ? guard + text : text;
