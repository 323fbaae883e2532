/* ---- requests to the server (runs/serve.py) ------------------------------------------------------------------------ */

const SILENT = t("The server does not answer. Start it again by {0}, and open the address that it prints.", $("#serve").textContent);
const post = (action, request, signal) => fetch(action, {
  method: "POST", signal, headers: {"Content-Type": "application/json"}, body: JSON.stringify({version: data.served.version, ...request}),
});

/* Let the server make a change, and return if it has. */
async function send(made) {
  const {action, words, standing, told, stays, ...request} = made, {cut} = data.served;
  try {
    const answer = await post(action, words ? {edits: {schema_version: 1, cut, ...words}} : request);
    const {said, error, outdated, sorted, state} = await answer.json();
    isOld ||= outdated;
    if (!answer.ok) {
      if (stays) teacher.close();
      tell(error);
      return false;
    }
    Object.assign(data.served, state);
    if (action === "teach") current.clear();
    const changed = said.match(/[\d,]+ images? changed their cluster/)?.[0] ?? said;  /* the list was seen before */
    const translation = {apply: `${t("Applied.")}${inWords(said.replace(/^.*?: /, ""))}`, undo: t("Taken back."), redo: t("Made again."), recut: t("Cut into {0} clusters.", made.k), teach: translated([changed]).join("")};
    const text = told || (isTranslated ? translation[action] ?? said : changed);
    if (sorted) {
      sessionStorage.setItem("sorted", JSON.stringify({...sorted, at: new Date().toLocaleTimeString([], {timeStyle: "short"})}));
      $("#told").hidden = true;
      tellSorted();
    } else if (stays && teacher.open) stays(state, text);
    else {
      if (state.cut !== cut) {
        for (const [row, {name}] of answered) if (!name) answered.delete(row);  /* the numbers of clusters may have changed */
        reload({told: text, standing: standing ?? [], merged: words?.merge, targets: action === "apply" ? targets : []});
        return true;
      }
      tellDone(text);
      showTexts();
    }
    document.body.inert = unsent.some(other => other !== made && !isText(other) && !other.stays);
    return true;
  } catch {
    tell([SILENT, ...(pendingCount() ? [t("Repeat there what is pending here: this page keeps it until you close it.")] : [])].join(" "));
    return false;
  }
}

/* The tab keeps the choices of the dialog, to sort again after the next corrections. */
function openSorting(best = false) {
  const dialog = $("#sorting"), name = $("#sort-name"), place = $("#sort-place"), {places, duplicates} = data.served;
  const before = JSON.parse(sessionStorage.getItem("sorting") || "{}");
  name.value = before.name ?? data.served.name;
  place.replaceChildren(...Object.entries(places).map(([value, folder]) => {
    const text = t(value === "run" ? "in {0}, beside the run" : "in {0}, beside the images", folder || "/");
    return element("option", {value, textContent: text, selected: before.place === value});
  }));
  $(`[name=copies][value="${before.mode ? 1 : ""}"]`).checked = true;
  $("#sort-best").checked = best || before.duplicates === "first";
  $("#sort-best").closest("p").hidden = !duplicates;
  $("#sort-apart").checked = before.outliers === "separate";
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value !== "sort") return;
    const sorting = {
      name: name.value.trim(), place: place.value, duplicates: duplicates && $("#sort-best").checked ? "first" : "all",
      outliers: $("#sort-apart").checked ? "separate" : "keep",
    };
    if ($("[name=copies]:checked").value) sorting.mode = "copy";
    sessionStorage.setItem("sorting", JSON.stringify(sorting));
    change({action: "export", sorting});
  };
  dialog.showModal();
  $("[value=sort]", dialog).focus();
}

function tellSorted() {
  const place = $("#sorted"), last = JSON.parse(sessionStorage.getItem("sorted") || "null");
  place.hidden = !last;
  if (!last) return;
  const {folder, at, duplicate, missing, skipped, symlink} = last;
  const left = [
    ...(duplicate ? [t("{0} nearly identical to a better one", images(duplicate))] : []), ...(missing ? [t("{0} not found", images(missing))] : []),
    ...(skipped ? [t(skipped === 1 ? "{0} unusable file" : "{0} unusable files", grouped(skipped))] : []),
  ];
  const close = element("button", {type: "button", className: "plain", ariaLabel: t("Close")}, "✕");
  close.addEventListener("click", () => {
    sessionStorage.removeItem("sorted");
    tellSorted();
  });
  const told = [t("{0} sorted at {1} into", images(last.images), at), element("code", {}, folder), "\n",
    ...(symlink ? [t("These are links: keep the originals where they are.")] : []), ...(left.length ? [t("Left out: {0}.", left.join(t(", ")))] : [])];
  const copier = element("button", {type: "button"}, t("Copy"));
  copier.addEventListener("click", () => copy(folder, copier));
  place.replaceChildren(...told.flatMap(part => [part, " "]), copier, close);
}

function tell(text) {
  const told = $("#told");
  told.hidden = false;
  told.className = "";
  told.replaceChildren(text);
  return told;
}

function tellDone(text) {
  if ($("dialog[open]")) return;  /* its button could not be pressed */
  const back = element("button", {type: "button"}, t("Undo"));
  back.addEventListener("click", takeBack);
  tell(text).append(...(data.served.done.length ? [" ", back] : []));
}

function offerReload() {
  isOld = true;
  tellPending();
}

/* Load the page again: what it showed, and what is new, stays in the tab. */
const remain = page => sessionStorage.setItem("page", JSON.stringify(page));

function reload({merged = [], ...after} = {}) {
  isLeaving = true;
  const opened = [...cards.keys()].filter(number => cards.get(number).closest(".group")?.open), number = minded && Number(minded.dataset.number);
  remain({
    opened, targets, moved: lastMoved, answers: [...answered], cut: data.served.cut, follow: $("#follow").checked,
    minded: merged.find(numbers => numbers.includes(number))?.[0] ?? number, ...after, standing: [...standing, ...after.standing ?? []],
  });
  location.reload();
}

/* The keys go on at the cluster where they were before the page was loaded again. */
function mindAgain() {
  for (const [number, other] of lastPage.standing ?? []) if (base.has(number) && base.has(other)) standing.set(number, other);
  arrange();
  if (cards.has(lastPage.minded)) mind(cards.get(lastPage.minded), false);
}

/* Find out if an image is missing because the page is old. */
async function checkAge(url) {
  const answer = await fetch(url).catch(() => null), {error, outdated} = await answer?.json() ?? {};
  if (!outdated) return;
  $$("dialog[open]").forEach(dialog => dialog.close());
  tell(error);
  offerReload();
}

$("#into-folders").addEventListener("click", () => openSorting());
$("#keep-best")?.addEventListener("click", () => openSorting(true));
tellSorted();
const lastPage = JSON.parse(sessionStorage.getItem("page") || "{}");
remain({...lastPage, minded: null, told: ""});
for (const number of lastPage.opened ?? []) cards.get(number)?.closest(".group")?.setAttribute("open", "");
$("#follow").checked = lastPage.follow;
for (const [row, answer] of lastPage.cut === data.cut ? lastPage.answers : []) answered.set(row, answer);
targets.push(...(lastPage.targets ?? []).filter(number => base.has(number)));
nextTarget = targets.length % 9;
tellTargets();
if (lastPage.told) tellDone(lastPage.told);
$("#told").addEventListener("click", () => { $("#told").hidden = true; });
new MutationObserver(() => { if ($("dialog[open]")) $("#told").hidden = true; }).observe(document.body, {subtree: true, attributeFilter: ["open"]});

/* ---- another number of groups, on the page of a server ------------------------------------------------------------- */

function recutInto(k) {
  if (isWaiting()) return;
  history.replaceState(null, "", "#clusters");  /* the page that comes begins with the new groups */
  change({action: "recut", k});
}

for (const button of $$("button[data-k]")) button.addEventListener("click", () => recutInto(Number(button.dataset.k)));
$("#recut-now")?.addEventListener("click", () => recutInto(Number($("#k-number").value)));

/* ---- the list of changes, each of which can be taken back with those after it; on the page of a server -------------- */

/* The words of a change: "2 names, 1 merge: owl, cat". Names stay as they are. */
function inWords(text) {
  const [counts, ...names] = text.split(": ");
  return isTranslated ? [counts.split(/[,;] /).map(part => translated([part]).join("")).join(t(", ")), ...names].join("：") : text;
}

function openHistory() {
  const {done} = data.served, dialog = $("#history");
  if (!done.length) return;
  const timeOf = at => new Date(at).toLocaleString([], {timeStyle: "short", ...(new Date(at).toDateString() === new Date().toDateString() ? {} : {dateStyle: "short"})});
  $("#history-list").replaceChildren(...done.map(([text, tile, moved, at], i) => element("li", {}, element("button", {type: "submit", value: String(i + 1)},
    picture(tile, 44), element("span", {}, inWords(text) || t("an edit"), element("br"),
      element("span", {className: "quiet"}, [moved && inWords(moved), at && timeOf(at)].filter(Boolean).join(t(", "))))))));
  const first = $("#history-first");
  first.textContent = t("Back to the first result…");
  first.onclick = () => {
    if (first.value) change({action: "undo", steps: done.length});
    first.value = "sure";
    first.textContent = t("Take back all changes: {0}", done.length);
  };
  first.value = "";
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value) change({action: "undo", steps: Number(event.submitter.value)});
  };
  dialog.showModal();
}

$("#history-open").addEventListener("click", openHistory);
lastMoved = lastPage.moved ?? null;
showTexts();

