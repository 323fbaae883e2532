/* ---- the list of changes, each of which can be taken back with those after it; on the page of a server -------------- */

/* The words of a change: "2 names, 1 merge: owl, cat". Names stay as they are. */
function inWords(text) {
  const [counts, ...names] = text.split(": ");
  return isChinese ? [counts.split(/[,;] /).map(part => translated([part]).join("")).join(t(", ")), ...names].join("：") : text;
}

function openHistory() {
  const {done} = data.served, dialog = $("#history");
  if (!done.length) return;
  $("#history-list").replaceChildren(...done.map(([text, tile], i) => element("li", {}, element("button", {type: "submit", value: String(i + 1)},
    picture(tile, 44), element("span", {}, inWords(text) || t("an edit"))))));
  $("#history-first").value = done.length;
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value) send("undo", {steps: Number(event.submitter.value)});
  };
  dialog.showModal();
}

$("#history-open").hidden = !data.served.done.length;
$("#history-key").hidden = false;
$("#history-open").addEventListener("click", openHistory);
