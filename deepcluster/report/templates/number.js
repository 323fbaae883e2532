/* ---- the number of clusters: coarser and finer, with what each makes, until she stops; on the page of a server -------------- */
// takes: $, element, onPage (report.js); t, images (language.js); picture (pictures.js); present, nameOf (clusters.js); show, toBar (tabs.js)
//   post, change (change.js)

const MAX_NUMBER = 500;
let shownNumber = 0;

/* Show what a number of clusters makes: some images of each, from the most typical one to the least typical. */
async function openNumber(k) {
  const dialog = $("#number"), list = $("#number-list");
  shownNumber = k = Math.max(2, Math.min(MAX_NUMBER, k));
  $("#number-title").textContent = t("Looking…");
  $("#k").value = k;
  list.replaceChildren();
  offerNumbers($("#number-bar"), k);
  $("#recut-now").textContent = t("Make {0} clusters", k);
  $("#recut-now").disabled = true;
  if (!dialog.open) dialog.showModal();
  const {faces, names} = await post("preview", {change: "recut", k}) ?? {};
  if (shownNumber !== k || !dialog.open) return;
  $("#number-title").textContent = t("{0} clusters", faces?.length ?? k);
  if (!faces) return;
  list.replaceChildren(...faces.map(([number, size, rows]) => element("li", {}, element("span", {className: "row"}, ...rows.map(row => picture(row, 0))),
    element("span", {className: "quiet"}, [names[number], images(size)].filter(Boolean).join(" · ")))));
  $("#recut-now").disabled = false;
  $("#recut-now").focus();
}

/* Offer half and twice a number, beside it. */
function offerNumbers(place, k) {
  const numbers = [["Coarser: {0}", Math.round(k / 2)], ["Finer: {0}", 2 * k]].filter(([, other]) => other > 1 && other <= MAX_NUMBER);
  place.replaceChildren(...numbers.map(([text, other]) => {
    const button = element("button", {type: "button"}, t(text, other));
    button.addEventListener("click", () => openNumber(other));
    return button;
  }));
}

/* The first screen offers them, until a cluster has a name. */
onPage.push(() => {
  const k = present().length;
  $("#numbers").hidden = k < 2 || present().some(nameOf);
  $("#numbers").replaceChildren(t("{0} clusters", k), element("span", {className: "acts"}));
  offerNumbers($("#numbers span"), k);
});
$("#number-open").addEventListener("click", () => openNumber(2 * present().length));
$("#k").addEventListener("change", ({target}) => target.validity.valid && target.value && openNumber(Number(target.value)));
$("#k").addEventListener("keydown", event => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  event.target.dispatchEvent(new Event("change"));
});
$("#number form").addEventListener("submit", async ({submitter}) => {
  if (submitter.value !== "make" || !await change("recut", {k: shownNumber})) return;
  show(0);
  toBar();
});
