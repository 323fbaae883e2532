/* ---- the list of changes, each of which can be taken back with those after it; on the page of a server -------------- */
// takes: data, $, element (report.js); t (language.js); picture (pictures.js); wordsOf, change (change.js)

function openHistory() {
  const {done} = data.served, dialog = $("#history");
  const timeOf = at => new Date(at).toLocaleString([], {timeStyle: "short", ...(new Date(at).toDateString() === new Date().toDateString() ? {} : {dateStyle: "short"})});
  $("#history-list").replaceChildren(...done.map(([text, row, moved, at], i) => element("li", {}, element("button", {type: "submit", value: String(i + 1)},
    picture(row, 44), element("span", {}, wordsOf(text) || t("an edit"), element("br"),
      element("span", {className: "quiet"}, [moved && wordsOf(moved), at && timeOf(at)].filter(Boolean).join(t(", "))))))));
  const first = $("#history-first");
  first.textContent = t("Back to the first result…");
  first.onclick = () => {
    if (first.value) {
      dialog.close();
      change("undo", {changes: done.length});
    }
    first.value = "sure";
    first.textContent = t("Take back all changes: {0}", done.length);
  };
  first.value = "";
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value) change("undo", {changes: Number(event.submitter.value)});
  };
  dialog.showModal();
}

$("#history-open").addEventListener("click", openHistory);
