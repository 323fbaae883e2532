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
    const {said, error} = await answer.json();
    if (answer.ok && action !== "export") {
      saved = true;
      sessionStorage.setItem("told", said);
      return location.reload();
    }
    told.textContent = said ?? error;
  } catch {
    told.textContent = "The server does not answer: start it again in the terminal, and open the address that it prints.";
  }
  document.body.inert = false;
}

$("#undo").hidden = !data.served.undo;
$("#download").textContent = "Try again";
$("#into-folders").hidden = false;
$("#into-folders").addEventListener("click", () => send("export"));
$("#told").textContent = sessionStorage.getItem("told");
$("#told").hidden = !$("#told").textContent;
sessionStorage.removeItem("told");
$("#told").addEventListener("click", () => { $("#told").hidden = true; });
$("#help .quiet").textContent = "Edits are applied at once. Undo takes back the last one.";
