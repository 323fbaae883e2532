/* ---- a name that was typed before completes itself from its first letters; Tab or Enter takes it --------------------------- */
// takes: nameOf, present (clusters.js); answered (teach.js)

/* The names in use, the likeliest kinds first. */
const namesOf = (...likely) => [...new Set([...likely, ...present()].map(nameOf).concat([...answered.values()].map(({name}) => name)))].filter(Boolean);

/* Let a field complete ``names``. What was completed is selected, so that the next letter replaces it, and Delete removes it. */
function complete(field, names) {
  let completed = "";
  field.addEventListener("input", event => {
    const typed = field.value, all = names(), begins = name => name.toLowerCase().startsWith(typed.toLowerCase());
    completed = event.inputType === "insertText" && !event.isComposing && typed && !all.includes(typed) && (all.find(name => name.startsWith(typed)) ?? all.find(begins)) || "";
    if (!completed) return;
    field.value += completed.slice(typed.length);
    field.setSelectionRange(typed.length, completed.length);
  });
  field.addEventListener("keydown", event => {
    if (!completed || !["Tab", "Enter"].includes(event.key) || event.isComposing) return;
    field.value = completed;
    completed = "";
    if (event.key === "Tab") event.preventDefault();
  });
}
