/* ---- the page of a server (runs/serve.py), which alone has this part ---------------------------------------------- */

/* Apply the edits, take the last ones back, or sort into folders. An edit that could not be applied stays pending. */
async function send(action, request = {}) {
  if (document.body.inert) return;
  document.body.inert = true;
  $$("dialog[open]").forEach(dialog => dialog.close());
  if (data.served.offer !== RELOAD) data.served.offer = "";
  tellPending();
  tell({apply: "Applying…", undo: "Taking back…", export: "Sorting…"}[action]).classList.add("busy");
  try {
    const answer = await fetch(action, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({version: data.served.version, ...request}),
    });
    const {said, error, outdated, final} = await answer.json();
    if (answer.ok && action !== "export") {
      sessionStorage.setItem("told", said);
      if (action === "apply") sessionStorage.setItem("targets", JSON.stringify(targets));
      else sessionStorage.removeItem("targets");
      return reload();
    }
    tell(said ?? error);
    if (outdated) data.served.offer = RELOAD;
    else if (action === "apply" && !final) data.served.offer = AGAIN;
  } catch {
    tell("The server does not answer: start it again in the terminal, and open the address that it prints.");
    if (pendingCount()) data.served.offer = "Download edits.json";
  }
  document.body.inert = false;
  tellPending();
}

function tell(text) {
  const told = $("#told");
  told.hidden = false;
  told.className = "";
  told.replaceChildren(text);
  return told;
}

/* An old page can only be loaded again: nothing that it sends is accepted. */
function offerReload() {
  data.served.offer = RELOAD;
  tellPending();
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
  tell(error);
  offerReload();
}

/* While the fit goes on, the page follows it; edits and open windows are left alone. */
async function follow() {
  const answer = await fetch("version").catch(() => null), {version} = await answer?.json() ?? {};
  if (!version || version === data.served.version) return;
  if (pendingCount() || $("dialog[open]")) offerReload();
  else reload();
}

if (data.served.going_on) setInterval(follow, 3000);
$("#undo").hidden = !data.served.undo;
$("#into-folders").hidden = false;
$("#into-folders").addEventListener("click", () => send("export"));
if (sessionStorage.getItem("told")) {
  const back = element("button", {type: "button"}, "Undo");
  back.addEventListener("click", takeBack);
  tell(sessionStorage.getItem("told")).append(...(data.served.undo ? [" ", back] : []));
}
sessionStorage.removeItem("told");
$("#told").addEventListener("click", () => { $("#told").hidden = true; });
$("#help .quiet").textContent = "Edits are applied at once. Undo takes back the last one.";
