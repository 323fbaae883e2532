/* ---- many clusters stand in groups of similar ones, by the merge tree: a view, which nothing keeps ------------------- */

const MANY = 12;  /* clusters that a page shows at once; pictures of a closed group */

/* A cluster that is in no group stands below the groups. */
function gather({groups, merges, sizes}) {
  if (cards.size <= MANY) return;
  const nodes = [...nodesAt(groups.length, merges, Math.round(Math.sqrt(cards.size)))].sort(([a], [b]) => sizes[b] - sizes[a] || a - b);
  const gathered = nodes.map(([, pieces]) => [...cards.keys()].filter(number => pieces.some(piece => groups[piece] === number)))
    .filter(inside => inside.length > 1);
  if (gathered.length < 2) return;
  $("#cluster-list").prepend(...gathered.map(inside => {
    const each = Math.max(1, Math.floor(MANY / inside.length));
    const pictures = inside.flatMap(number => $$(".sheet img", cards.get(number)).slice(0, each)).slice(0, MANY);
    const about = element("span", {className: "quiet"});
    const tellNames = () => {
      about.textContent = [images(inside.reduce((sum, number) => sum + sizeOf(number), 0)), inside.map(nameOf).filter(Boolean).join(t(", "))].filter(Boolean).join(" · ");
    };
    tellNames();
    whenEdited.push(tellNames);
    const list = element("div", {className: "cards"}, ...inside.map(number => cards.get(number)));
    return element("details", {className: "group"}, element("summary", {}, element("span", {className: "call"}, t("{0} clusters", inside.length)),
      about, element("span", {className: "row"}, ...pictures.map(image => image.cloneNode()))), list);
  }));
  $("#open-all").hidden = false;
  $(".plausible")?.removeAttribute("open");
}

if (data.tree) gather(data.tree);
