/* ---- the language of the browser, or the one that its tab was switched to: English, or one with a file of phrases ----- */
// takes: languages, $, $$, grouped (report.js)

const language = window.name.match(/^language-(..)$/)?.[1] ?? navigator.language.toLowerCase().split("-")[0];
const phrases = new Map(Object.entries(languages[language] ?? {}));
const isTranslated = phrases.size > 0;
/* A phrase about several things serves for one, if a language (Chinese) has no other for it. */
const phraseOf = key => phrases.get(key)
  ?? phrases.get(key.replace(/(?<=\} (?:junk |unusable )?)(image|cluster|kind|round|name|merge|answer|edit|mark|set|file)\b/g, "$1s"));
const t = (text, ...values) => (phraseOf(text) || text).replace(/\{(\d)\}/g, (_, i) => values[i]);

/* Return the translated nodes of a text in nodes. Its numbers, and the elements, are {0}, {1}, ... of its phrase. */
function translated(nodes) {
  const values = [], elements = nodes.filter(node => typeof node !== "string");
  const text = nodes.map(node => typeof node === "string" ? node : "\0").join("").replace(/\s+/g, " ").trim();
  const key = text.replace(/\0|\d(?:[\d,.]*\d)?%?/g, value => `{${values.push(value === "\0" ? elements.shift() : value) - 1}}`);
  return phraseOf(key)?.split(/(\{\d\})/).map(piece => /^\{\d\}$/.test(piece) ? values[piece[1]] : piece) ?? nodes;
}

/* Translate what the templates say in a body. */
function translate(body) {
  for (const place of $$("*", body)) {
    if (place.closest("[translate=no], script, code, kbd")) continue;
    for (const name of ["title", "aria-label", "placeholder"]) {
      if (place.hasAttribute(name)) place.setAttribute(name, translated([place.getAttribute(name)]).join(""));
    }
    const nodes = [...place.childNodes].map(node => node.nodeType === Node.TEXT_NODE ? node.data : node);
    if (nodes.some(node => /[A-Za-z]/.test(typeof node === "string" ? node : ""))) place.replaceChildren(...translated(nodes));
  }
  if (language === "zh") for (const hint of $$("[data-chinese]:not([data-chinese=''])", body)) hint.textContent = hint.dataset.chinese;
}
if (isTranslated) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : language;
  translate(document.body);
}
const otherLanguage = isTranslated ? "en" : "zh";
Object.assign($("#language"), {textContent: {en: "English", zh: "中文"}[otherLanguage], lang: otherLanguage}).addEventListener("click", () => {
  window.name = `language-${otherLanguage}`;
  location.reload();
});
const images = count => t(count === 1 ? "{0} image" : "{0} images", grouped(count));
