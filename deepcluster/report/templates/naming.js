/* ---- the first part of teaching: the names of clusters without one, and images of another kind among them ------------- */
// takes: $, element, $$ (report.js); t, images (language.js); nameOf, sizeOf, library, hintsOf, base, isPresent, clusterOf, ofKinds, maySplit (clusters.js)
//   plain (cards.js); nameCluster (names.js); openSplit (regroup.js); complete, namesOf (complete.js); part, tickable, answered, offer, teacher, goAsking, choices (teach.js)
//   review (review.js); unnamed (path.js)

const MAX_FACES = 8, nameless = new Set();  /* clusters that she does not name */

/* Ask for the names of clusters without one, the largest first. */
async function askKinds(after = goAsking) {
  const left = unnamed().filter(number => !nameless.has(number));
  const [number] = left.sort((a, b) => sizeOf(b) - sizeOf(a) || a - b), field = $("#teach-kind-name");
  if (number === undefined) return after();
  part("kind", "");
  $("#teach-count").textContent = t("{0} without a name", left.length);
  /* From the most typical image to the least typical one, so that a mixture is seen. */
  const near = await library.rows([number], "near"), count = Math.min(MAX_FACES, near.length);
  const faces = Array.from({length: count}, (_, k) => near[Math.floor(k * near.length / count)]);
  await library.facts(faces);
  $("#teach-faces").replaceChildren(...faces.map(row => element("li", {}, tickable(row, 0))));
  $("#teach-hints").replaceChildren(...hintsOf(number).map(hint => element("button", {type: "button"}, hint)));
  $("[data-teach=split]").hidden = !maySplit(number);
  field.dataset.number = number;
  askKind();
}

/* The pictures without a name of their own, and the ticked ones of them, which are of another kind unless all are. */
const facesLeft = () => $$("#teach-faces li:not([hidden]) input");

function ofAnotherKind() {
  const inputs = facesLeft(), ticked = inputs.filter(input => input.checked);
  return ticked.length < inputs.length ? ticked : [];
}

/* Offer the names of the likely kinds: of the images most like the ticked ones, and of the clusters most like this one. */
async function offerKinds() {
  const number = Number($("#teach-kind-name").dataset.number), ticked = ofAnotherKind().map(input => Number(input.value));
  $("#teach-title").textContent = t(ticked.length ? "What are the ticked images?" : "What is this cluster?");
  const alike = ticked.length ? (await library.alike(ticked)).map(clusterOf) : [];
  if (ticked.join() !== ofAnotherKind().map(input => input.value).join()) return;
  offer($("#teach-kinds"), ofKinds([...alike, ...base.get(number).near].filter(each => isPresent(each) && nameOf(each))).slice(0, 9));
}

function askKind() {
  offerKinds();
  $("#teach-kind-name").value = "";
  $("#teach-kind-name").focus();
}

/* Take the name of a cluster, or of ticked images of another kind, which are answers. The pictures of the cluster itself are
   answers only if she says that they are right: one may have been overlooked. */
async function nameKind(name, areRight = false) {
  const number = Number($("#teach-kind-name").dataset.number), ticked = name ? ofAnotherKind() : [];
  if (ticked.length) {
    for (const {value} of ticked) answered.set(Number(value), {path: Number(value), name});
    for (const input of ticked) input.closest("li").hidden = true;
    return askKind();
  }
  if (areRight) for (const {value} of facesLeft()) answered.set(Number(value), {path: Number(value), cluster: number});
  if (!name) nameless.add(number);
  else if (!await nameCluster(number, name)) return;
  askKinds(answered.size ? review : goAsking);
}

function splitKind() {
  teacher.close();
  openSplit(Number($("#teach-kind-name").dataset.number));
}

complete($("#teach-kind-name"), () => namesOf(...choices));
$("#teach-faces").addEventListener("change", offerKinds);
$("#teach-faces").addEventListener("mousedown", event => event.preventDefault());  /* the field keeps the focus */
$("#teach-kind-name").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.isComposing) nameKind(plain(event.target.value), event.shiftKey);
});
