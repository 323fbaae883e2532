/* ---- a name that was typed before completes itself from its first letters; Tab or Enter takes it --------------------------- */
// takes: nameOf, present (clusters.js); answered (teach.js)

/* The names in use, the likeliest kinds first. */
const namesOf = (...likely) => [...new Set([...likely, ...present()].map(nameOf).concat([...answered.values()].map(({name}) => name)))].filter(Boolean);

/* Let a field complete ``names``. What was completed is selected, so that the next letter replaces it, and Delete removes it. */
function complete(field, names) {
  field.addEventListener("input", event => {
    const typed = field.value.toLowerCase(), all = names();
    if (event.isComposing || event.inputType !== "insertText" || !typed || all.some(name => name.toLowerCase() === typed)) return;
    const name = all.find(each => each.toLowerCase().startsWith(typed));
    if (!name) return;
    field.value = name;
    field.setSelectionRange(typed.length, name.length);
  });
  field.addEventListener("keydown", event => {
    if (event.key !== "Tab" || event.shiftKey || field.selectionStart === field.selectionEnd || field.selectionStart === 0) return;
    event.preventDefault();
    field.setSelectionRange(field.value.length, field.value.length);
  });
}
