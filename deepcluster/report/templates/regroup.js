/* ---- merges and splits, on the page of a server ---------------------------------------------------------------------------- */
// takes: $, element, onPage (report.js); t, images (language.js); picture (pictures.js)
//   present, callOf, cards, firstFree, base, inPage, sample, placeIn, maySplit (clusters.js); mind, acts (cards.js)
//   edit (change.js); choose (choose.js)

function openMerge(number) {
  const others = present().filter(other => other !== number);
  if (others.length) choose({
    title: t("Merge {0} into", callOf(number)), hint: t("It keeps the number of the cluster that you choose."),
    others, like: number,
    done: async target => {
      if (await edit({merge: [[target, number]]})) mind(target, false);
    },
    back: () => cards.get(number)?.focus({preventScroll: true}),
  });
}

/* The nodes that are so many parts of a cluster's tree, with the pieces inside them: as groups/tree.py has them. */
function nodesAt(pieces, merges, count) {
  const nodes = new Map(Array.from({length: pieces}, (_, piece) => [piece, [piece]]));
  merges.slice(0, pieces - count).forEach(([a, b], j) => {
    nodes.set(pieces + j, [...nodes.get(a), ...nodes.get(b)].sort((x, y) => x - y));
    nodes.delete(a);
    nodes.delete(b);
  });
  return nodes;
}

/* The parts, the largest first. */
function partsAt({sizes, merges}, count) {
  const total = parts => parts.reduce((sum, part) => sum + sizes[part], 0);
  return [...nodesAt(sizes.length, merges, count).values()].sort((a, b) => total(b) - total(a) || a[0] - b[0]);
}

function openSplit(number) {
  const dialog = $("#split"), slider = $("#split-count"), parts = base.get(number).parts, own = inPage(number);
  $("#split-title").textContent = t("Split {0}", callOf(number));
  slider.max = parts.sizes.length;
  slider.value = 2;
  const update = () => {
    const count = Number(slider.value);
    $("#split-value").textContent = count;
    $("#split-parts").replaceChildren(...partsAt(parts, count).map((inside, i) => {
      const inPart = own.filter(row => inside.includes(sample.part[placeIn(row)])), shown = Math.min(9, inPart.length);
      return element("li", {}, element("span", {}, `${i ? firstFree + i - 1 : number}`, element("br"),
        element("span", {className: "quiet"}, images(inside.reduce((sum, part) => sum + parts.images[part], 0)))),
      element("span", {className: "row"}, ...Array.from({length: shown}, (_, k) => picture(inPart[Math.floor(k * inPart.length / shown)], 44))));
    }));
  };
  slider.oninput = update;
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value === "split") edit({split: [[number, Number(slider.value)]]});
  };
  dialog.onclose = () => cards.get(number)?.focus({preventScroll: true});
  update();
  dialog.showModal();
  slider.focus();
}

onPage.push(() => { for (const [number, card] of cards) $("[data-act=split]", card).hidden = !maySplit(number); });

Object.assign(acts, {merge: openMerge, split: openSplit, join: numbers => edit({merge: [numbers]})});
