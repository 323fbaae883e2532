/* ---- files and the clipboard ------------------------------------------------------------------------------------ */
// takes: element (report.js); t (language.js)

function save(name, text, type) {
  const link = element("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", {value: text});
    (button.closest("dialog") ?? document.body).append(area);  /* beside an open dialog nothing can be selected */
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  const before = button.dataset.text ??= button.textContent;
  button.textContent = t(done ? "Copied" : "Not allowed here");
  setTimeout(() => { button.textContent = before; }, 1500);
}
