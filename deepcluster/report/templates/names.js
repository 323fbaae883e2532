/* ---- names and marks, on the page of a server --------------------------------------------------------------------------- */
// takes: onPage, element, $, $$ (report.js); t (language.js); cards, nameOf, base (clusters.js); plain, acts (cards.js); edit (change.js); complete, namesOf (complete.js)

const nameCluster = (number, name) => edit({names: {[number]: name}}, t(name ? "Cluster {0} is now {1}." : "Cluster {0} has no name now.", number, name));

/* The title of a card is a field for its name, and hints are buttons. */
onPage.push(() => {
  for (const [number, card] of cards) {
    const field = element("input", {type: "text", className: "title", value: nameOf(number), maxLength: 200, placeholder: t("name"), ariaLabel: t("Name of cluster {0}", number), title: "n"});
    const keep = () => {
      const name = plain(field.value);
      if (name !== nameOf(number)) return nameCluster(number, name);
    };
    complete(field, namesOf);
    field.addEventListener("keydown", async event => {
      if (event.key === "Escape") field.value = nameOf(number);
      if (!["Enter", "Escape"].includes(event.key) || event.isComposing) return;
      if (await keep() !== null) cards.get(number).focus({preventScroll: true});
    });
    field.addEventListener("change", keep);
    $(".name", card).replaceWith(" ", field);
  }
  for (const hint of $$(".hints [data-chinese]")) {
    const button = element("button", {type: "button", title: t("Take this name")});
    button.dataset.act = "take";
    hint.replaceWith(button);
    button.append(hint);
  }
});

const mark = number => edit({junk: [...base.values()].filter(each => each.junk !== (each.number === number)).map(each => each.number)},
  t(base.get(number).junk ? "Cluster {0} is no longer junk." : "Cluster {0} is junk.", number));

Object.assign(acts, {take: (number, hint) => nameCluster(number, plain(hint.textContent)), junk: mark});
