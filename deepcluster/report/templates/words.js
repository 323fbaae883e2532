/* ---- words that say what they mean ------------------------------------------------------------------------------- */
// takes: $, $$ (report.js)

const tip = $("#term-tip");
let explained = null;

function explain(word) {
  explained = word;
  tip.hidden = !word;
  for (const other of $$("[aria-describedby=term-tip]")) other.removeAttribute("aria-describedby");
  if (!word) return;
  tip.textContent = $(`${word.getAttribute("href")} dd`).textContent;
  word.setAttribute("aria-describedby", "term-tip");
  (word.closest("dialog") ?? document.body).append(tip);
  const box = word.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${box.bottom + 6 + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
}

const wordOf = event => event.target.closest?.(".term") ?? null;
for (const [name, shows] of [["mouseover", true], ["mouseout", false], ["focusin", true], ["focusout", false]]) {
  document.addEventListener(name, event => { if (wordOf(event)) explain(shows ? wordOf(event) : null); });
}
document.addEventListener("click", event => {
  if (!wordOf(event)) return explain(null);
  event.preventDefault();
  explain(wordOf(event));
});
addEventListener("scroll", () => explained && explain(null), {passive: true});
