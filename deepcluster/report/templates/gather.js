/* ---- many clusters stand in groups of similar ones, by the merge tree: a view, which nothing keeps ------------------- */
// takes: $, $$, element, onPage, data (report.js); images, t (language.js); cards, sizeOf, nameOf (clusters.js); arrange (cards.js)
//   nodesAt (numbers.js)

const MANY = 12;  /* clusters that a page shows at once; pictures of a closed group */

const opened = new Set();  /* clusters in open groups */

/* A cluster that is in no group stands below the groups. */
function gather({groups, merges, sizes}) {
  $("#open-all").hidden = true;
  if (cards.size <= MANY) return;
  const nodes = [...nodesAt(groups.length, merges, Math.round(Math.sqrt(cards.size)))].sort(([a], [b]) => sizes[b] - sizes[a] || a - b);
  const gathered = nodes.map(([, pieces]) => [...cards.keys()].filter(number => pieces.some(piece => groups[piece] === number)))
    .filter(inside => inside.length > 1);
  if (gathered.length < 2) return;
  $("#cluster-list").prepend(...gathered.map(inside => {
    const each = Math.max(1, Math.floor(MANY / inside.length));
    const pictures = inside.flatMap(number => $$(".sheet img", cards.get(number)).slice(0, each)).slice(0, MANY);
    const about = [images(inside.reduce((sum, number) => sum + sizeOf(number), 0)), inside.map(nameOf).filter(Boolean).join(t(", "))].filter(Boolean).join(" · ");
    const list = element("div", {className: "cards"}, ...inside.map(number => cards.get(number)));
    const group = element("details", {className: "group", open: inside.some(number => opened.has(number))}, element("summary", {}, element("span", {className: "call"}, t("{0} clusters", inside.length)),
      element("span", {className: "quiet"}, about), element("span", {className: "row"}, ...pictures.map(({src, alt}) => element("img", {src, alt})))), list);
    group.addEventListener("toggle", () => inside.forEach(number => group.open ? opened.add(number) : opened.delete(number)));
    return group;
  }));
  arrange();
  $("#open-all").hidden = false;
  $(".plausible")?.removeAttribute("open");
}

onPage.push(() => data.tree && gather(data.tree));
