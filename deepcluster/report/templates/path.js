/* ---- the path from a number of clusters to sorted folders, with what is left to do; on the page of a server ---------------- */
// takes: $, $$, onPage, data, grouped (report.js); t (language.js); present, nameOf, base, ofKinds, membersOf, sample (clusters.js); openTeach, openNames (teach.js)
//   isChecked, openCheck (check.js)

const isLarge = () => data.served.large;

const isJunk = number => base.get(number)?.junk;
const unnamed = () => present().filter(number => !nameOf(number) && !isJunk(number));
/* The kinds that are not checked yet, those with the most doubtful images first: images that lie half as clearly in their
   cluster as most do. */
function unchecked() {
  const typical = [...sample.margins].sort((a, b) => a - b)[sample.count >> 1] / 2, doubts = new Map();
  sample.margins.forEach((margin, i) => margin < typical && doubts.set(sample.cluster[i], (doubts.get(sample.cluster[i]) ?? 0) + 1));
  const doubtOf = number => membersOf(number).reduce((sum, each) => sum + (doubts.get(each) ?? 0), 0);
  return ofKinds(present()).filter(number => !isJunk(number) && !membersOf(number).every(isChecked)).sort((a, b) => doubtOf(b) - doubtOf(a));
}

/* The way on from the names: a check of the clusters, or questions about single images if these are too many for that. */
const goOn = () => isLarge() ? openTeach() : openCheck();

onPage.push(() => {
  const count = present().length, kinds = ofKinds(present()).filter(number => !isJunk(number)).length, {answers, done} = data.served;
  const left = {number: !done.length && unnamed().length === count, names: unnamed().length, check: isLarge() ? !answers : unchecked().length, sort: true};
  const about = {
    number: grouped(count), names: t("{0} of {1}", grouped(count - left.names), grouped(count)),
    check: isLarge() ? t(answers === 1 ? "{0} answer" : "{0} answers", grouped(answers)) : t("{0} of {1}", grouped(kinds - left.check), grouped(kinds)), sort: "",
  };
  const [current] = Object.entries(left).find(([, count]) => count);
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
