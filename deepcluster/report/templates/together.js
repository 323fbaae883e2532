/* ---- a kind in several clusters has one card with these inside ------------------------------------------------------------ */
// takes: onPage, element (report.js); t, images (language.js); present, membersOf, ofKinds, nameOf, cards, sizeOf (clusters.js); acts (cards.js)

onPage.push(() => {
  for (const number of ofKinds(present())) {
    const numbers = membersOf(number).filter(each => cards.has(each));
    if (numbers.length < 2) continue;
    const join = element("button", {type: "button", className: "only-served"}, t("Make one cluster of them"));
    const about = `${t("{0} clusters", numbers.length)} · ${images(numbers.reduce((sum, each) => sum + sizeOf(each), 0))}`;
    const kind = element("section", {className: "kind"}, element("div", {className: "about"}, element("h3", {translate: false}, nameOf(number)),
      element("p", {className: "quiet"}, about), join));
    join.addEventListener("click", () => acts.join(numbers));
    cards.get(numbers[0]).before(kind);
    kind.append(...numbers.map(each => cards.get(each)));
  }
});
