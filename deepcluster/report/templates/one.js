/* ---- one image, as large as it goes: the picture of the page at once, the file itself where it can be opened ------------ */
// takes: data, $, element, whenMoved (report.js); t (language.js); picture (pictures.js); pathOf, library, factsOf, titleOf, clusterOf (clusters.js)
//   ticked, tick, whenTicked (grid.js)

let one = -1, among = [];  /* rows */

/* The address of an image in full size, if it can be opened. */
const urlOf = row => data.served ? data.served.pictures && `image/${data.served.pictures}/${row}`
  : data.originals && location.protocol === "file:" && data.originals + pathOf(row).split("/").map(encodeURIComponent).join("/");

async function openOne(row, list) {
  await library.facts([row]);
  if (factsOf(row).path === undefined) return;  /* a file holds every n-th image */
  [one, among] = [row, list];
  showOne();
  if (!$("#one").open) $("#one").showModal();
  $("#one-close").focus();
}

async function showOne() {
  const row = one, place = $("#one-place"), link = $("#one-original"), large = $(`.sheet [data-row="${row}"] img`);
  await library.facts([row]);
  if (one !== row) return;
  place.replaceChildren(large ? element("img", {src: large.src, alt: ""}) : picture(row, 0));
  link.hidden = true;
  if (urlOf(row)) {
    const original = element("img", {alt: pathOf(row)});
    original.onload = () => {
      if (one !== row) return;
      place.replaceChildren(original);
      Object.assign(link, {href: original.src, target: "_blank", rel: "noopener", hidden: false});
    };
    original.src = urlOf(row);
  }
  const {distance, outlier, label} = factsOf(row), at = among.indexOf(row);
  $("#one-title").textContent = pathOf(row);
  $("#one-about").textContent = [titleOf(clusterOf(row)), t("distance {0}", distance.toFixed(3)),
    ...(outlier ? [t("outlier")] : []), ...(label ? [t("label {0}", label)] : [])].join(" · ");
  $("#one-ticked").checked = ticked.has(row);
  $("#one-before").disabled = at <= 0;
  $("#one-after").disabled = at < 0 || at + 1 >= among.length;
  const alike = await library.alike([row]);
  await library.facts(alike);
  if (one !== row) return;
  $("#alike-title").hidden = !alike.length;
  $("#alike").replaceChildren(...alike.map(other => {
    const title = `${pathOf(other)} · ${titleOf(clusterOf(other))}`;
    const button = element("button", {type: "button", title, ariaLabel: title}, picture(other, 64),
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
whenMoved.push(() => { if ($("#one").open) showOne(); });
