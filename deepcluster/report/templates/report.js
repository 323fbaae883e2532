/* The script of the report: what all its files use, and their order. As a file the page asks for nothing but an image's own
   file. It writes texts from outside with textContent only. Without it the page can be read from top to bottom. The lines of
   "//=" are replaced by the files that they name, and on the page of a server those of "//+", too. Each file is one idea, and
   says what it takes from others; all are in one function. */
"use strict";
document.documentElement.classList.add("js");
document.addEventListener("DOMContentLoaded", () => {

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
let data = JSON.parse($("#data").textContent);
const grouped = new Intl.NumberFormat("en-US").format;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/* Calls for every page: at first, and when the answer to a change brought a page. Calls after those, and after every move of
   images that an open list collects. */
const onPage = [], whenMoved = [];

function showPage() {
  for (const call of [...onPage, ...whenMoved]) call();
}

const languages = {zh:
//= phrases/zh.json
};
//= language.js
//= files.js
//= tabs.js
//= pictures.js
//= clusters.js
//= grid.js
//= images.js
//= one.js
//= cards.js
//+ change.js
//+ library.js
//+ names.js
//+ choose.js
//+ regroup.js
//+ moves.js
//+ check.js
//= together.js
//+ number.js
//+ complete.js
//+ teach.js
//+ naming.js
//+ questions.js
//+ review.js
//+ sorting.js
//+ history.js
//+ path.js
//= map.js
//= keys.js
showPage();
tick([]);
addEventListener("hashchange", showAddressed);
showAddressed();
});
