/* ---- the page of a server (runs/serve.py), which alone has this part ---------------------------------------------- */

/* Apply the edits, take the last ones back, or sort into folders. An edit that could not be applied stays pending. */
async function send(action, request = {}) {
  const told = $("#told");
  $$("dialog[open]").forEach(dialog => dialog.close());
  document.body.inert = true;
  told.hidden = false;
  told.textContent = {apply: "Applying…", undo: "Taking back…", export: "Sorting…"}[action];
  try {
    const answer = await fetch(action, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({version: data.served.version, ...request}),
    });
    const {said, error, outdated} = await answer.json();
    if (answer.ok && action !== "export") {
      sessionStorage.setItem("told", said);
      return reload();
    }
    told.textContent = said ?? error;
    if (outdated) offerReload();
  } catch {
    told.textContent = "The server does not answer: start it again in the terminal, and open the address that it prints.";
  }
  document.body.inert = false;
}

/* An old page can only be loaded again: nothing that it sends is accepted. */
function offerReload() {
  data.served.outdated = true;
  $("#download").textContent = "Reload";
  $("#download").hidden = false;
}

function reload() {
  saved = true;
  location.reload();
}

/* Find out if an image is missing because the page is old. */
async function checkAge(url) {
  const answer = await fetch(url).catch(() => null), {error, outdated} = await answer?.json() ?? {};
  if (!outdated) return;
  $$("dialog[open]").forEach(dialog => dialog.close());
  $("#told").textContent = error;
  $("#told").hidden = false;
  offerReload();
}

/* While the fit goes on, the page follows it; edits and open windows are left alone. */
async function follow() {
  const answer = await fetch("version").catch(() => null), {version} = await answer?.json() ?? {};
  if (!version || version === data.served.version) return;
  if ($("#pending").textContent || $("dialog[open]")) offerReload();
  else reload();
}

if (data.served.going_on) setInterval(follow, 3000);
$("#undo").hidden = !data.served.undo;
$("#download").textContent = "Try again";
$("#into-folders").hidden = false;
$("#into-folders").addEventListener("click", () => send("export"));
$("#told").textContent = sessionStorage.getItem("told");
$("#told").hidden = !$("#told").textContent;
sessionStorage.removeItem("told");
$("#told").addEventListener("click", () => { $("#told").hidden = true; });
$("#help .quiet").textContent = "Edits are applied at once. Undo takes back the last one.";
