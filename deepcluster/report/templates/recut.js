/* ---- another number of groups, on the page of a server ------------------------------------------------------------- */

function recutInto(k) {
  if (pendingCount()) return tell(t("An edit is not applied yet: try it again, or take it back."));
  history.replaceState(null, "", "#clusters");  /* the page that comes begins with the new groups */
  send("recut", {k});
}

for (const code of $$("[data-k]")) {
  const k = Number(code.dataset.k);
  code.replaceWith(element("button", {type: "button", textContent: t("Make {0} clusters", grouped(k)), onclick: () => recutInto(k)}));
}
if ($("#k")) {
  $("#recut").parentElement.hidden = true;
  $("#recut-now").hidden = false;
  $("#recut-now").addEventListener("click", () => recutInto(Number($("#k-number").value)));
  $("#recut-hint").textContent = t("The neighbour graph is cut anew, without training, so the clusters may differ from this preview.");
}
