/* ---- the path from a number of clusters to sorted folders, with what is left to do; on the page of a server ---------------- */
// takes: $, $$, onPage, data, grouped (report.js); t (language.js); present, nameOf, base, ofKinds, membersOf (clusters.js); openTeach, openNames (teach.js)
//   isChecked, openCheck (check.js)

/* A check looks at rows of pictures: of 5,000 images they are some 450, of which she looks at the first, the doubtful ones. */
const MAX_CHECKED = 5000;
const isLarge = () => data.served.images > MAX_CHECKED;

const unnamed = () => present().filter(number => !nameOf(number) && !base.get(number).junk);
const unchecked = () => ofKinds(present()).filter(number => !base.get(number).junk && !membersOf(number).every(isChecked));

/* The way on from the names: a check of the clusters, or questions about single images if these are too many for that. */
const goOn = () => isLarge() ? openTeach() : openCheck();

onPage.push(() => {
  const count = present().length, kinds = ofKinds(present()).length, {answers, done} = data.served;
  const left = {number: !done.length && unnamed().length === count, names: unnamed().length, check: isLarge() ? !answers : unchecked().length, sort: true};
  const about = {
    number: grouped(count), names: t("{0} of {1}", grouped(count - left.names), grouped(count)),
    check: isLarge() ? t(answers === 1 ? "{0} answer" : "{0} answers", grouped(answers)) : t("{0} of {1}", grouped(kinds - left.check), grouped(kinds)), sort: "",
  };
  const [current] = Object.entries(left).find(([, some]) => some);
  for (const button of $$("#path button")) {
    const {step} = button.dataset;
    button.classList.toggle("main-act", step === current);
    button.setAttribute("aria-current", step === current ? "step" : "false");
    $("span", button).textContent = about[step];
  }
  $("#check-open b").textContent = t(isLarge() ? "Questions" : "Check");
  $("#check-open").title = isLarge() ? t("{0} images are too many to check: answer questions about single ones", grouped(data.served.images)) : "";
  $("#teach-open").hidden = isLarge();
});
$("#names-open").addEventListener("click", () => unnamed().length ? openNames() : goOn());
$("#check-open").addEventListener("click", goOn);
