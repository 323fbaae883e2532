/* ---- the first part of teaching: the names of clusters without one, and images of another kind among them ------------- */
// takes: $, element, $$ (report.js); t, images (language.js); present, nameOf, sizeOf, library, hintsOf (clusters.js); plain (cards.js)
//   nameCluster (names.js); part, tickable, answered (teach.js); ask (questions.js); review (review.js)

const MAX_FACES = 8, nameless = new Set();  /* clusters that she does not name */

/* Ask for the names of clusters without one, the largest first. */
async function askKinds(after = ask) {
  const unnamed = present().filter(number => !nameOf(number) && !nameless.has(number));
  const [number] = unnamed.sort((a, b) => sizeOf(b) - sizeOf(a) || a - b), field = $("#teach-kind-name");
  if (number === undefined) return after();
  part("kind", "");
  $("#teach-count").textContent = t("{0} without a name", unnamed.length);
  /* From the most typical image to the least typical one, so that a mixture is seen. */
  const own = await library.rows(number, "near"), count = Math.min(MAX_FACES, own.length);
  const faces = Array.from({length: count}, (_, k) => own[Math.floor(k * own.length / count)]);
  await library.facts(faces);
  $("#teach-faces").replaceChildren(...faces.map(row => element("li", {}, tickable(row, 0))));
  $("#teach-hints").replaceChildren(...hintsOf(number).map(hint => element("button", {type: "button"}, hint)));
  field.dataset.number = number;
  askKind();
}

/* The pictures without a name of their own, and the ticked ones of them, which are of another kind unless all are. */
const facesLeft = () => $$("#teach-faces li:not([hidden]) input");

function ofAnotherKind() {
  const inputs = facesLeft(), ticked = inputs.filter(input => input.checked);
  return ticked.length < inputs.length ? ticked : [];
}

const tellKind = () => { $("#teach-title").textContent = t(ofAnotherKind().length ? "What are the ticked images?" : "What is this cluster?"); };

function askKind() {
  tellKind();
  $("#teach-kind-name").value = "";
  $("#teach-kind-name").focus();
}

const answerFaces = (inputs, given) => inputs.map(({value}) => Number(value)).forEach(row => answered.set(row, {path: row, ...given}));

/* The pictures that are not of another kind are right answers only if she says so: one may have been overlooked. */
function rightFaces() {
  const odd = ofAnotherKind(), faces = facesLeft().filter(input => !odd.includes(input)), field = $("#teach-kind-name");
  answerFaces(faces, {cluster: Number(field.dataset.number)});
  $("#teach-count").textContent = t("Right: {0}.", images(faces.length));
  field.focus();
}

/* Take the name of a cluster, or of ticked images of another kind, which are answers. */
async function nameKind(name) {
  const number = Number($("#teach-kind-name").dataset.number), ticked = name ? ofAnotherKind() : [];
  if (ticked.length) {
    answerFaces(ticked, {name});
    for (const input of ticked) input.closest("li").hidden = true;
    return askKind();
  }
  if (!name) nameless.add(number);
  else if (!await nameCluster(number, name)) return;
  askKinds(answered.size ? review : ask);
}

$("#teach-faces").addEventListener("change", tellKind);
$("#teach-faces").addEventListener("mousedown", event => event.preventDefault());  /* the field keeps the focus */
$("#teach-kind-name").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.isComposing) nameKind(plain(event.target.value));
});
