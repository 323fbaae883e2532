/* ---- the number of clusters ------------------------------------------------------------------------------------------------ */
// takes: $, element, grouped, $$, onPage, data (report.js); t, translated (language.js); picture (pictures.js)
//   shortOf, titleOf, callOf, faceOf, maySplit, base, sizeOf (clusters.js); regroup (regroup.js)

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

const MAX_CHANGES = 6;

function groups(tree) {
  const slider = $("#k");

  function relation(inside) {
    const own = [...new Set(inside.map(piece => tree.clusters[piece]))].sort((a, b) => a - b);
    if (own.length > 1) return {kind: "merged", own, text: t("Clusters {0}", own.map(shortOf).join(" + "))};
    const whole = inside.length === tree.clusters.filter(group => group === own[0]).length;
    return {kind: whole ? "same" : "split", own, text: whole ? titleOf(own[0]) : t("part of {0}", callOf(own[0]))};
  }

  const listed = own => own.length > 12 ? t("{0} and {1} more", own.slice(0, 12).join(t(", ")), own.length - 12)
    : own.length > 1 ? t("{0} and {1}", own.slice(0, -1).join(t(", ")), own.at(-1)) : String(own[0]);

  /* A number above those of the slider has no preview. */
  function update(k = Number(slider.value)) {
    if (document.activeElement !== $("#k-number")) $("#k-number").value = k;
    const inside = nodesAt(tree.clusters.length, tree.merges, Math.min(k, slider.max));
    const nodes = [...inside.keys()].sort((a, b) => tree.sizes[b] - tree.sizes[a] || a - b);
    const relations = nodes.map(node => relation(inside.get(node)));
    const merged = relations.filter(each => each.kind === "merged").map(each => listed(each.own));
    const split = [...new Set(relations.filter(each => each.kind === "split").map(each => each.own[0]))].sort((a, b) => a - b);
    const countOf = number => relations.filter(each => each.kind === "split" && each.own[0] === number).length;
    const told = [
      ...(merged.length ? [t("Clusters {0} merge.", merged.join(t("; ")))] : []),
      ...(split.length ? [t(split.length === 1 ? "Cluster {0} splits." : "Clusters {0} split.", listed(split))] : []),
    ];
    $("#k-told").textContent = told.join(" ") || t("These are the present clusters.");
    $("#k-groups").replaceChildren(...nodes.map((node, i) => {
      const {kind, own, text} = relations[i];
      return element("li", {className: kind}, kind === "same" ? faceOf(own[0], 88) : picture(tree.medoids[node], 88), element("strong", {}, grouped(tree.sizes[node])), element("span", {}, text));
    }));
    $("#as-shown").textContent = t(split.length ? "Split as shown" : "Merge as shown");
    $("#as-shown").hidden = !told.length || k > slider.max || !split.every(number => maySplit(number) && countOf(number) <= base.get(number).parts.sizes.length);
    $("#as-shown").onclick = () => {
      regroup(relations.filter(each => each.kind === "merged").map(each => each.own), split.map(number => [number, countOf(number)]));
    };
    $("#recut-now").textContent = t("Make {0} clusters", grouped(k));
    $("#recut-now").disabled = k === new Set(tree.clusters).size;
  }

  /* The clusters that another number splits or joins, the largest first, by pictures. */
  for (const list of $$(".changes")) {
    const changed = new Map();  /* by the present clusters: the nodes of their parts */
    for (const [node, inside] of nodesAt(tree.clusters.length, tree.merges, Number(list.dataset.k))) {
      const {kind, own} = relation(inside), key = own.join();
      if (kind !== "same") changed.set(key, {own, nodes: [...changed.get(key)?.nodes ?? [], ...(kind === "split" ? [node] : [])]});
    }
    const sizeOfAll = ({own}) => own.reduce((sum, number) => sum + sizeOf(number), 0);
    const sorted = [...changed.values()].sort((a, b) => sizeOfAll(b) - sizeOfAll(a)), pictures = parts => element("span", {}, ...parts);
    list.append(...sorted.slice(0, MAX_CHANGES).map(({own, nodes}) => {
      const now = pictures(own.map(number => faceOf(number, 40)));
      const words = nodes.length ? ["splits ", now, " into ", pictures(nodes.map(node => picture(tree.medoids[node], 40)))] : ["joins ", now];
      return element("li", {}, ...translated(words));
    }), ...(sorted.length > MAX_CHANGES ? [element("li", {}, t("and {0} more", sorted.length - MAX_CHANGES))] : []));
  }

  slider.value = new Set(tree.clusters).size;
  slider.addEventListener("input", () => update());
  $("#k-number").addEventListener("input", ({target}) => {
    if (!target.validity.valid || !target.value) return;
    slider.value = target.value;
    update(Number(target.value));
  });
  update();
}

onPage.push(() => data.tree && $("#k") && groups(data.tree));
