/* The script of the report: tabs, pictures, the map, the number of groups; on the page of a server also edits. As a file it
   asks for nothing but an image's own file. It writes texts from outside with textContent only. Without it the page can be
   read from top to bottom. The lines of "//=" are replaced by the files that they name. */
"use strict";
document.documentElement.classList.add("js");
document.addEventListener("DOMContentLoaded", () => {

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse($("#data").textContent);
const grouped = new Intl.NumberFormat("en-US").format;
const images = count => t(count === 1 ? "{0} image" : "{0} images", grouped(count));

/* ---- the language of the browser: English, or one with a file of phrases ----------------------------------------- */

const languages = {zh:
//= phrases/zh.json
};
const language = navigator.language.toLowerCase().split("-")[0];
const phrases = new Map(Object.entries(languages[language] ?? {}));
const isTranslated = phrases.size > 0;
/* A phrase about several things serves for one, if a language (Chinese) has no other for it. */
const phraseOf = key => phrases.get(key)
  ?? phrases.get(key.replace(/(?<=\} (?:junk |unusable )?)(image|cluster|round|name|merge|answer|edit|mark|set|file)\b/g, "$1s"));
const t = (text, ...values) => (phraseOf(text) || text).replace(/\{(\d)\}/g, (_, i) => values[i]);

/* Return the translated nodes of a text in nodes. Its numbers, and the elements, are {0}, {1}, ... of its phrase. */
function translated(nodes) {
  const values = [], elements = nodes.filter(node => typeof node !== "string");
  const text = nodes.map(node => typeof node === "string" ? node : "\0").join("").replace(/\s+/g, " ").trim();
  const key = text.replace(/\0|\d(?:[\d,.]*\d)?%?/g, found => `{${values.push(found === "\0" ? elements.shift() : found) - 1}}`);
  return phraseOf(key)?.split(/(\{\d\})/).map(piece => /^\{\d\}$/.test(piece) ? values[piece[1]] : piece) ?? nodes;
}

/* Translate what the templates say. */
function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : language;
  for (const place of $$("body *")) {
    if (place.closest("[translate=no], script, code, kbd")) continue;
    for (const name of ["title", "aria-label", "placeholder"]) {
      if (place.hasAttribute(name)) place.setAttribute(name, translated([place.getAttribute(name)]).join(""));
    }
    const nodes = [...place.childNodes].map(node => node.nodeType === Node.TEXT_NODE ? node.data : node);
    if (nodes.some(node => /[A-Za-z]/.test(typeof node === "string" ? node : ""))) place.replaceChildren(...translated(nodes));
  }
  if (language === "zh") for (const hint of $$("[data-chinese]:not([data-chinese=''])")) hint.textContent = hint.dataset.chinese;
}
if (isTranslated) translate();

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/* ---- files and the clipboard ------------------------------------------------------------------------------------ */

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

/* ---- tabs ------------------------------------------------------------------------------------------------------- */

const tabs = $$(".tabs a");
const panels = tabs.map(tab => $(tab.getAttribute("href")));
$(".tabs").setAttribute("role", "tablist");
tabs.forEach((tab, i) => {
  tab.id = `tab-${panels[i].id}`;
  tab.setAttribute("role", "tab");
  tab.setAttribute("aria-controls", panels[i].id);
  panels[i].setAttribute("role", "tabpanel");
  panels[i].setAttribute("aria-labelledby", tab.id);
  panels[i].tabIndex = -1;
  tab.addEventListener("click", event => {
    event.preventDefault();
    history.replaceState(null, "", `#${panels[i].id}`);
    show(i);
    toBar();
  });
  tab.addEventListener("keydown", event => {
    const to = {ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: tabs.length - 1}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show((to + tabs.length) % tabs.length, true);
  });
});

function show(i, focus = false) {
  tabs.forEach((tab, j) => {
    tab.setAttribute("aria-selected", i === j);
    tab.tabIndex = i === j ? 0 : -1;
    panels[j].classList.toggle("shown", i === j);
  });
  if (focus) tabs[i].focus();
  tabs[i].scrollIntoView({block: "nearest", inline: "nearest"});
}

$(".skip").addEventListener("click", event => {
  event.preventDefault();  /* an address that stayed would be gone to after each edit */
  show(0);
  $("#cluster-list").focus();
});

/* A part that is chosen while the page is scrolled down begins at its beginning. */
function toBar() {
  const bar = $(".bar");
  const top = $("main").getBoundingClientRect().top + scrollY - bar.offsetHeight;
  if (scrollY > top) scrollTo({top});
}

function showAddressed() {
  let target = null;
  try { target = document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { /* no such part */ }
  const part = target?.closest("main > .part");
  show(part ? panels.indexOf(part) : 0);
  if (!part || part === target) return;
  if (target.matches(".cluster")) mind(target, false);
  target.scrollIntoView();
}

/* ---- pictures --------------------------------------------------------------------------------------------------- */

const sheet = data.sheet ? element("img", {src: data.sheet}) : null;
const sheetReady = sheet ? sheet.decode().then(() => true, () => false) : Promise.resolve(false);

/* The picture at a place of the sheet, drawn as soon as the sheet is there. */
function picture(tile, side) {
  const canvas = element("canvas", {width: 1, height: 1, className: "picture"});
  if (side) canvas.style.width = canvas.style.height = `${side}px`;
  sheetReady.then(ready => {
    if (!ready || tile < 0) return canvas.classList.add("none");
    const own = sheet.naturalWidth / data.columns;
    canvas.width = canvas.height = own;
    canvas.getContext("2d").drawImage(
      sheet, (tile % data.columns) * own, Math.floor(tile / data.columns) * own, own, own, 0, 0, own, own);
  });
  return canvas;
}

function shorts(text) {
  const bytes = Uint8Array.from(atob(text), char => char.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

const whenEdited = [];  /* called after every move of images */

for (const place of $$(".thumb")) place.append(picture(Number(place.dataset.tile), 40));

//= grid.js
//= edits.js
//= regroup.js
//= moves.js
//= gather.js
//= teach.js
//= served.js
/* ---- the list of clusters --------------------------------------------------------------------------------------- */

let minded = null;

function mind(card, scroll = true) {
  minded?.classList.remove("chosen");
  minded = card;
  card.classList.add("chosen");
  card.tabIndex = -1;
  card.closest(".group")?.setAttribute("open", "");
  if (scroll) {
    card.focus({preventScroll: true});
    card.scrollIntoView({block: "start"});
  }
}

function step(by) {
  const shown = $$(".cluster:not([hidden])");
  const at = shown.indexOf(minded);
  const next = shown[at < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, at + by))];
  if (next) mind(next);
}

/* The pictures of a card are one stop of Tab, and arrows walk them. A dialog gives the focus back to the picture that opened it. */
for (const card of cards.values()) $$("[data-image] > *", card).forEach((face, k) => Object.assign(face, {role: "button", tabIndex: k ? -1 : 0}));
$("#clusters").addEventListener("keydown", event => {
  const faces = $$("[data-image] > *", event.target.closest(".sheet") ?? event.target), at = faces.indexOf(event.target);
  const next = faces[at + ({ArrowLeft: -1, ArrowRight: 1}[event.key] ?? NaN)];
  if (at < 0) return;
  if (next) next.focus();
  else if (event.key === "Enter" || event.key === " ") event.target.click();
  else return;
  event.preventDefault();
});

/* As the table of clusters takes them: one line of printable text. */
function plain(text) {
  return text.replace(/\p{Z}/gu, " ").replace(/\p{C}/gu, "").trim();
}

const orders = {
  number: (a, b) => placeOf(a) - placeOf(b),
  size: (a, b) => sizeOf(b) - sizeOf(a) || a - b,
  distance: (a, b) => (base.get(a).distance ?? Infinity) - (base.get(b).distance ?? Infinity) || a - b,
  name: (a, b) => !nameOf(a) - !nameOf(b) || nameOf(a).localeCompare(nameOf(b)) || a - b,
};

function arrange() {
  if (!$("#sort")) return;
  const wanted = plain($("#filter").value).toLowerCase();
  const sorted = [...cards.keys()].sort(orders[$("#sort").value]);
  let found = 0;
  for (const number of sorted) {
    const text = `${titleOf(number)} ${hintsOf(number)} ${$(".labels", cards.get(number))?.textContent ?? ""}`.toLowerCase();
    cards.get(number).hidden = !text.includes(wanted);
    found += text.includes(wanted);
  }
  for (const list of [...$$(".cards"), $("#cluster-list")]) {
    const inside = sorted.map(number => cards.get(number)).filter(card => card.parentElement === list), group = list.closest(".group");
    list.append(...inside);
    if (group) group.hidden = inside.every(card => card.hidden);
    if (group && wanted) group.open = true;
  }
  $("#filtered").textContent = !wanted ? "" : found ? t("{0} of {1}", found, cards.size) : t("No cluster is called {0}", $("#filter").value.trim());
}

$("#open-all")?.addEventListener("click", () => $$(".group").forEach(group => { group.open = true; }));
$("#sort")?.addEventListener("change", arrange);
$("#filter")?.addEventListener("input", arrange);

/* ---- colours ---------------------------------------------------------------------------------------------------- */

const first = ["#4c78c8", "#e08a1e", "#3f9e63", "#c9473f", "#8d63c4", "#2aa3b5", "#d667a6", "#8a7a35", "#7f8c9b", "#b5651d"];
const colourOf = i => first[i] ?? `hsl(${(i * 137.508) % 360} ${50 + 20 * (i % 3)}% ${44 + 7 * (i % 4)}%)`;
const ramp = [[68, 60, 140], [48, 108, 160], [36, 158, 140], [120, 196, 84], [240, 208, 52]];

function between(share) {
  const at = Math.min(ramp.length - 1.001, Math.max(0, share) * (ramp.length - 1)), i = Math.floor(at);
  return `rgb(${ramp[i].map((value, c) => Math.round(value + (at - i) * (ramp[i + 1][c] - value))).join(" ")})`;
}

//= map.js
//= numbers.js
/* ---- words that say what they mean ------------------------------------------------------------------------------- */

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

/* ---- keys ------------------------------------------------------------------------------------------------------- */

/* Letters typed ahead, while the page was loaded, are no commands. */
let isFresh = true;
setTimeout(() => { isFresh = false; }, 500);

$("#help-open").addEventListener("click", () => $("#help").showModal());
document.addEventListener("keydown", event => {
  if (document.body.inert) return;
  const field = event.target.matches("input:not([type=radio], [type=range], [type=checkbox]), select, textarea");
  if (isFresh && event.key.length === 1 && !field) return event.preventDefault();
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !field && data.served) {
    event.preventDefault();
    return takeBack();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
  if (field) return;
  if (event.key >= "1" && event.key <= String(tabs.length)) {
    show(Number(event.key) - 1, true);
    return toBar();
  }
  if (event.key === "?") return $("#help").showModal();
  if (event.key === "Escape" && $("#map")?.classList.contains("shown")) return mapped?.clear();
  /* The title of a button or field is its key. */
  const button = [$(".bar"), minded].map(place => place && $(`:is(button, input)[title="${CSS.escape(event.key)}"]`, place))
    .find(found => found && !found.hidden && (found.closest(".menu") ?? found).offsetParent);
  const by = $("#clusters").classList.contains("shown") && {j: 1, k: -1}[event.key];
  if (button?.matches("input")) button.select();
  else if (button) button.click();
  else if (by) step(by);
  else return;
  event.preventDefault();
});

document.addEventListener("click", event => {
  for (const menu of $$(".menu[open]")) if (!menu.contains(event.target) || event.target.closest("button")) menu.removeAttribute("open");
});

tick([]);
if (data.served) mindAgain();
addEventListener("hashchange", showAddressed);
showAddressed();
});
