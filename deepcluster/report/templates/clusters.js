/* ---- the clusters and the images of the page ------------------------------------------------------------------------- */
// takes: onPage, data, $$, $, element (report.js); t (language.js); shorts, picture (pictures.js)

/* The clusters and their cards by number, their sizes with the moves that a list has collected, the first number that no
   cluster ever had, and the images in the page: all, or every n-th of many, in columns. */
let base, cards, sizes, firstFree, sample;
let moved = new Map();  /* rows that a list has moved, and their new clusters */
const known = new Map();  /* facts about rows that are not in the page */
const newNames = new Map();  /* of clusters that a list makes by its moves */

onPage.push(() => {
  base = new Map(data.clusters.map(cluster => [cluster.number, cluster]));
  cards = new Map($$(".cluster").map(card => [Number(card.dataset.number), card]));
  firstFree = Math.max(data.next - 1, ...base.keys()) + 1;
  sample = data.images && unpacked(data.images);
  known.clear();
  takeMoves([]);
});

function unpacked(packed) {
  const numbers = [...data.clusters.map(each => each.number), -1];  /* of rejected images */
  return {
    ...packed, numbers, count: packed.names.length, cluster: [...shorts(packed.cluster)].map(each => numbers[each]), folder: shorts(packed.folder),
    far: shorts(packed.distance), margins: shorts(packed.margin), outliers: new Set(packed.outlier),
    label: packed.label ? shorts(packed.label) : null, similar: packed.similar ? shorts(packed.similar) : null, part: packed.part ? shorts(packed.part) : [],
  };
}

/* Show moves, each of rows to a cluster, before they are made. */
function takeMoves(moves) {
  moved = new Map(moves.flatMap(([rows, target]) => rows.map(row => [row, target])));
  sizes = new Map(data.clusters.map(cluster => [cluster.number, cluster.size]));
  for (const [row, target] of moved) {
    if (placedOf(row) === target) moved.delete(row);
    for (const [number, by] of [[placedOf(row), -1], [target, 1]]) sizes.set(number, (sizes.get(number) ?? 0) + by);
  }
}

/* The place of a row in the columns of the page; -1 if it is not there. */
const placeIn = row => sample && row % sample.step === 0 && row / sample.step < sample.count ? row / sample.step : -1;

/* The facts about an image; those of an image that is not in the page may lack all but its cluster, or be missing. */
function factsOf(row) {
  const i = placeIn(row);
  return i < 0 ? known.get(row) ?? {} : {
    path: sample.folders[sample.folder[i]] + sample.names[i], cluster: sample.cluster[i], distance: sample.far[i] / 65535 * sample.farthest,
    outlier: sample.outliers.has(i), label: sample.label ? sample.labels[sample.label[i]] : "",
  };
}

const pathOf = row => factsOf(row).path ?? "";
const placedOf = row => factsOf(row).cluster;
const clusterOf = row => moved.get(row) ?? placedOf(row);

/* The images of the page in an order of lists. */
const orderings = {
  near: (i, j) => sample.far[i] - sample.far[j],
  far: (i, j) => sample.far[j] - sample.far[i],
  doubt: (i, j) => sample.margins[i] - sample.margins[j],
  path: () => 0,
};
const sorted = (rows, order) => rows.map(placeIn).sort((i, j) => orderings[order](i, j) || i - j).map(i => i * sample.step);
const inPage = (...numbers) => [...sample.cluster.keys()].filter(i => numbers.includes(sample.cluster[i])).map(i => i * sample.step);

/* The images that are asked for: a file has those in the page. All answers are promises: rows of clusters in an order, whether
   facts about rows have come, and the rows most like some. */
const library = {
  rows: async (numbers, order) => sorted(inPage(...numbers), order),
  facts: async () => false,
  alike: async rows => rows.map(placeIn).flatMap(i => i < 0 || !sample.similar ? [] : [...sample.similar.slice(i * sample.alike, (i + 1) * sample.alike)])
    .map(i => i * sample.step),
};

const sizeOf = number => sizes.get(number) ?? 0;
const isPresent = number => sizeOf(number) > 0;
const present = () => [...sizes.keys()].filter(isPresent);
const maySplit = number => Boolean(sample && base.get(number)?.parts);
const nameOf = number => base.get(number)?.name ?? newNames.get(number) ?? "";
const withName = (text, number) => text + (nameOf(number) ? ` · ${nameOf(number)}` : "");
const titleOf = number => number < 0 ? t("no cluster") : withName(t("Cluster {0}", number), number);
const callOf = number => withName(t("cluster {0}", number), number);  /* inside a sentence */
const hintsOf = number => cards.has(number) ? $$(".hints:not([hidden]) [data-chinese]", cards.get(number)).map(hint => hint.textContent) : [];
const perhaps = number => hintsOf(number).slice(0, 1).map(hint => ` · ${t("perhaps")} ${hint}`).join("");

/* A kind is all clusters of one name, or one without a name. It goes by its first cluster. */
const kindOf = number => nameOf(number) || number;
const membersOf = number => present().filter(other => kindOf(other) === kindOf(number));
const ofKinds = choices => choices.filter((choice, k) => choices.findIndex(other => kindOf(other) === kindOf(choice)) === k);

/* The picture of a cluster. */
function faceOf(number, side) {
  const medoid = cards.has(number) ? $(".sheet img", cards.get(number)) : null;
  if (medoid) return element("img", {src: medoid.src, alt: "", className: "picture"});
  const [first] = [[...moved].find(([, target]) => target === number)?.[0], ...(sample ? inPage(number) : [])].filter(row => row !== undefined);
  return first === undefined ? element("span", {className: "tile"}) : picture(first, side);
}
