/* ---- keys ------------------------------------------------------------------------------------------------------- */
// takes: $, $$ (report.js); tabs, show, toBar (tabs.js); cards (clusters.js); minded, step (cards.js); mapped (map.js)

$("#help-open").addEventListener("click", () => $("#help").showModal());
document.addEventListener("keydown", event => {
  if (document.body.inert) return;
  const field = event.target.matches("input:not([type=radio], [type=range], [type=checkbox]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]") || field) return;
  if (event.key >= "1" && event.key <= String(tabs.length)) {
    show(Number(event.key) - 1, true);
    return toBar();
  }
  if (event.key === "?") return $("#help").showModal();
  if (event.key === "Escape" && $("#map")?.classList.contains("shown")) return mapped?.clear();
  /* The title of a button or field is its key. */
  const button = [$(".bar"), $("#path"), cards.get(minded)].map(place => place && $(`:is(button, input)[title="${CSS.escape(event.key)}"]`, place))
    .find(match => match && !match.hidden && (match.closest(".menu") ?? match).offsetParent);
  const by = $("#clusters").classList.contains("shown") && {j: 1, k: -1}[event.key];
  if (button?.matches("input")) button.select();
  else if (button) button.click();
  else if (by) step(by);
  else return;
  event.preventDefault();
});

document.addEventListener("click", event => {
  for (const menu of $$(".menu[open]")) if (!menu.contains(event.target) || event.target.closest("button")) menu.removeAttribute("open");
});
