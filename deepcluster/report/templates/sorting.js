/* ---- sorted images in folders, and back, on the page of a server --------------------------------------------------------------------- */
// takes: $, data, element, grouped (report.js); t, images (language.js); post, change (change.js)

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
    if (!event.submitter.value) return;
    const sorting = {
      name: name.value.trim(), place: place.value, duplicates: duplicates && $("#sort-best").checked ? "first" : "all",
      outliers: $("#sort-apart").checked ? "separate" : "keep",
    };
    if ($("[name=copies]:checked").value) sorting.mode = "copy";
    sessionStorage.setItem("sorting", JSON.stringify(sorting));
    if (event.submitter.value === "read") change("read", {sorting});
    else sort(sorting);
  };
  dialog.showModal();
  $("[value=sort]", dialog).focus();
}

async function sort(sorting) {
  const {sorted} = await change("export", {sorting}) ?? {};
  if (!sorted) return;
  $("#told").hidden = true;
  const {folder, duplicate, missing, skipped, symlink} = sorted, place = $("#sorted"), at = new Date().toLocaleTimeString([], {timeStyle: "short"});
  const left = [
    ...(duplicate ? [t("{0} nearly identical to a better one", images(duplicate))] : []), ...(missing ? [t("{0} not found", images(missing))] : []),
    ...(skipped ? [t(skipped === 1 ? "{0} unusable file" : "{0} unusable files", grouped(skipped))] : []),
  ];
  const lines = [t("{0} sorted at {1} into", images(sorted.images), at), element("code", {}, folder), "\n",
    ...(symlink ? [t("These are links: keep the originals where they are.")] : []), ...(left.length ? [t("Left out: {0}.", left.join(t(", ")))] : [])];
  const buttons = [[t("Open folder"), () => post("open", {sorting})], [t("Read it back"), () => change("read", {sorting})], ["✕", () => { place.hidden = true; }]];
  place.hidden = false;
  place.replaceChildren(...lines.flatMap(part => [part, " "]), ...buttons.map(([text, act]) => {
    const button = element("button", {type: "button"}, text);
    if (text === "✕") button.ariaLabel = t("Close");
    button.addEventListener("click", act);
    return button;
  }));
}

document.addEventListener("click", event => {
  const button = event.target.closest("#into-folders, #keep-best");
  if (button) openSorting(button.id === "keep-best");
});
