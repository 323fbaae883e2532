/* ---- which cluster is meant, on the page of a server --------------------------------------------------------------------- */
// takes: $, element, $$ (report.js); t, images (language.js)
//   firstFree, present, base, ofKinds, newNames, clusterOf, faceOf, titleOf, perhaps, sizeOf, nameOf, hintsOf, isPresent (clusters.js); plain (cards.js); complete (complete.js)

let offeredNames = [];
complete($("#merge-filter"), () => offeredNames);
const nextFree = () => Math.max(firstFree - 1, ...present()) + 1;

/* Ask for a cluster, by its picture, number, name or hint: first those of the images ``alike``, then those like a cluster.
   ``made``: The number of a new one that may be made, by another name. A kind takes images as one. */
function choose({title, hint, others, like, alike = [], made = null, done, back}) {
  const dialog = $("#merge"), list = $("#merge-list"), filter = $("#merge-filter");
  $("#merge-title").textContent = title;
  $("#merge-hint").textContent = hint;
  const rank = number => ((base.get(like)?.near ?? []).indexOf(number) + 1) || Infinity;
  const votes = number => alike.filter(row => clusterOf(row) === number).length;
  others = [...others].sort((a, b) => votes(b) - votes(a) || rank(a) - rank(b) || a - b);
  if (made !== null) others = ofKinds(others);
  offeredNames = made === null ? [] : others.map(nameOf).filter(Boolean);
  const entry = (value, face, text, about) => element("li", {}, element("button", {type: "submit", value: String(value)}, face,
    element("span", {}, text), element("span", {className: "quiet"}, about)));
  list.replaceChildren(...(made === null ? [] : [entry(made, element("span", {className: "tile"}, "+"), t("A new cluster"), t("number {0}", made))]),
    ...others.map(other => entry(other, faceOf(other, 44), titleOf(other) + perhaps(other), images(sizeOf(other)))));
  const button = other => $(`button[value="${other}"]`, list);
  const typed = () => plain(filter.value).toLowerCase();
  const called = other => plain(nameOf(other)).toLowerCase();
  const isLike = (other, text) => /^\d+$/.test(text) ? String(other).startsWith(text) || called(other).includes(text)
    : [titleOf(other), ...hintsOf(other)].some(word => word.toLowerCase().includes(text));
  /* The cluster that was typed: by its number, or by a name or a part of one that no other has. */
  const meant = () => {
    const text = typed(), word = t("cluster {0}", "").trim(), number = text.startsWith(word) ? text.slice(word.length).trim() : text;
    if (isPresent(Number(number)) && /^\d+$/.test(number)) return others.find(other => other === Number(number));
    const named = others.filter(other => text && [called(other), titleOf(other).toLowerCase()].includes(text));
    const candidates = named.length ? named : others.filter(other => text && isLike(other, text));
    return candidates.length === 1 ? candidates[0] : undefined;
  };
  filter.value = "";
  filter.oninput = () => {
    const text = typed(), one = meant();
    if (made !== null) button(made).parentElement.hidden = text && others.some(other => called(other) === text);
    if (made !== null) $("span:nth-of-type(2)", button(made)).textContent = text ? t("A new cluster: {0}", plain(filter.value)) : t("A new cluster");
    for (const other of others) {
      button(other).parentElement.hidden = !isLike(other, text);
      button(other).classList.toggle("meant", other === one);
    }
    if (one !== undefined) list.prepend(button(one).parentElement);
  };
  filter.onkeydown = event => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const one = meant() ?? (typed() && made !== null && $$("li:not([hidden])", list).length === 1 ? made : undefined);
    if (one !== undefined && !event.isComposing) button(one).click();
  };
  dialog.onkeydown = event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    const stops = [filter, ...$$("li:not([hidden]) button", list)];
    stops[Math.max(0, Math.min(stops.length - 1, stops.indexOf(document.activeElement) + step))].focus();
  };
  $("form", dialog).onsubmit = event => {
    const {value} = event.submitter;
    if (Number(value) === made && typed()) newNames.set(made, plain(filter.value));
    if (value !== "") done(Number(value));
  };
  dialog.onclose = back;
  dialog.showModal();
  filter.focus();
}
