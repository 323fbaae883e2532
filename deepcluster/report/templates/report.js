/* The script of the report: tabs, edits of the clusters, the map, the number of groups. It asks for nothing, keeps
   nothing, and writes texts from outside with textContent only. Without it the page can be read from top to bottom. */
"use strict";
document.documentElement.classList.add("js");
document.addEventListener("DOMContentLoaded", () => {

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse($("#data").textContent);
const grouped = new Intl.NumberFormat("en-US").format;
const images = count => grouped(count) + (count === 1 ? " image" : " images");

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
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  const before = button.dataset.text ??= button.textContent;
  button.textContent = done ? "Copied" : "Not allowed here";
  setTimeout(() => { button.textContent = before; }, 1500);
}

/* ---- tabs ------------------------------------------------------------------------------------------------------- */

const tabs = $$(".tabs a");
const panels = tabs.map(tab => $(tab.getAttribute("href")));
const whenShown = {};
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
  whenShown[panels[i].id]?.();
}

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
  target.scrollIntoView();
  if (target.matches(".cluster")) choose(target, false);
}

/* Where there is no room beside the sentences, the facts of the run wait behind their heading. */
if (!matchMedia("(min-width: 60rem)").matches) $(".run")?.removeAttribute("open");

/* ---- pictures --------------------------------------------------------------------------------------------------- */

const sheet = data.sheet ? element("img", {src: data.sheet}) : null;
const sheetReady = sheet ? sheet.decode().then(() => true, () => false) : Promise.resolve(false);

/* The picture at a place of the sheet, drawn as soon as the sheet is there. */
function picture(tile, side) {
  const canvas = element("canvas", {width: 1, height: 1, className: "picture"});
  canvas.style.width = canvas.style.height = `${side}px`;
  sheetReady.then(ready => {
    if (!ready || tile < 0) return canvas.classList.add("none");
    const own = sheet.naturalWidth / data.columns;
    canvas.width = canvas.height = own;
    canvas.getContext("2d").drawImage(
      sheet, (tile % data.columns) * own, Math.floor(tile / data.columns) * own, own, own, 0, 0, own, own);
  });
  return canvas;
}

for (const place of $$(".thumb")) place.append(picture(Number(place.dataset.tile), 40));

/* ---- edits ------------------------------------------------------------------------------------------------------ */

const clusters = new Map(data.clusters.map(cluster => [cluster.number, cluster]));
const cards = new Map($$(".cluster").map(card => [Number(card.dataset.number), card]));
const names = new Map();  /* number -> another name than it had */
const into = new Map();  /* number -> the cluster that it is merged into */
const junk = new Set(data.clusters.filter(cluster => cluster.junk).map(cluster => cluster.number));
let saved = true;

function root(number) {
  while (into.has(number)) number = into.get(number);
  return number;
}

const members = number => [...clusters.keys()].filter(other => root(other) === number);
const nameOf = number => names.get(number) ?? clusters.get(number).name;
const titleOf = number => `Cluster ${number}` + (nameOf(number) ? ` · ${nameOf(number)}` : "");

function edits() {
  const roots = [...clusters.keys()].filter(number => !into.has(number));
  return {
    schema_version: 1,
    cut: data.cut,
    names: Object.fromEntries(roots.filter(number => names.has(number)).map(number => [number, names.get(number)])),
    merge: roots.map(number => [number, ...members(number).filter(other => other !== number)])
      .filter(merged => merged.length > 1),
    junk: roots.filter(number => junk.has(number)),
  };
}

function pendingCount() {
  const roots = [...clusters.keys()].filter(number => !into.has(number));
  return into.size + roots.filter(number => names.has(number)).length
    + roots.filter(number => junk.has(number) !== clusters.get(number).junk).length;
}

function edited(...numbers) {
  saved = false;
  for (const number of numbers) paint(number);
  const count = pendingCount();
  $("#pending").textContent = count ? `${count} edit${count === 1 ? "" : "s"} pending` : "";
  $("#download").hidden = count === 0;
  arrange();
  whenEdited.forEach(call => call());
}

const whenEdited = [];

function paint(number) {
  const card = cards.get(number);
  if (!card) return;
  const gone = into.has(number);
  const others = gone ? [] : members(number).filter(other => other !== number);
  card.classList.toggle("gone", gone);
  card.classList.toggle("junk", junk.has(number) && !gone);
  $(".name", card).textContent = nameOf(number) ? ` · ${nameOf(number)}` : "";
  $(".junk-mark", card).hidden = !junk.has(number) || gone;
  $("[data-act=junk]", card).setAttribute("aria-pressed", junk.has(number));
  const note = $(".note", card);
  note.hidden = !gone && !others.length;
  const total = members(number).reduce((sum, other) => sum + clusters.get(other).size, 0);
  note.textContent = gone ? `Merged into ${titleOf(root(number)).toLowerCase()}.`
    : `With ${others.map(other => `cluster ${other}`).join(", ")}: ${images(total)}.`;
  for (const button of $$("[data-act]", card)) button.hidden = gone !== (button.dataset.act === "undo");
}

/* As the table of clusters takes them: one line of printable text. */
function plain(text) {
  return text.replace(/\p{Z}/gu, " ").replace(/\p{C}/gu, "").trim();
}

function rename(number) {
  const card = cards.get(number), shown = $(".name", card);
  if ($("input", card) || into.has(number)) return;
  const input = element("input", {
    className: "rename", value: nameOf(number), maxLength: 200, placeholder: "name", ariaLabel: `Name of cluster ${number}`,
  });
  let open = true;
  const close = keep => {
    if (!open) return;
    open = false;
    const name = plain(input.value);
    input.remove();
    shown.hidden = false;
    if (keep && name !== nameOf(number)) {
      if (name === clusters.get(number).name) names.delete(number);
      else names.set(number, name);
      edited(number, ...clusters.keys());
    }
    card.focus({preventScroll: true});
  };
  input.addEventListener("keydown", event => {
    if (event.key === "Enter") close(true);
    if (event.key === "Escape") close(false);
  });
  input.addEventListener("blur", () => close(true));
  shown.hidden = true;
  shown.after(input);
  input.select();
}

function mark(number) {
  if (into.has(number)) return;
  if (!junk.delete(number)) junk.add(number);
  edited(number);
}

function unmerge(number) {
  const before = root(number);
  into.delete(number);
  edited(number, before, ...members(number));
}

function openMerge(number) {
  if (into.has(number) || clusters.size < 2) return;
  const dialog = $("#merge"), list = $("#merge-list"), filter = $("#merge-filter");
  $("#merge-title").textContent = `Merge ${titleOf(number).toLowerCase()} into`;
  const nearest = clusters.get(number).nearest;
  const others = [...clusters.keys()].filter(other => other !== number && !into.has(other))
    .sort((a, b) => (b === nearest) - (a === nearest) || a - b);
  list.replaceChildren(...others.map(other => {
    const medoid = cards.has(other) ? $(".medoid img", cards.get(other)) : null;
    const button = element("button", {type: "submit", value: String(other)},
      medoid ? element("img", {src: medoid.src, alt: ""}) : element("span", {className: "tile"}),
      element("span", {}, titleOf(other)),
      element("span", {className: "quiet"}, images(clusters.get(other).size) + (other === nearest ? ", nearest" : "")));
    return element("li", {}, button);
  }));
  const button = other => $(`button[value="${other}"]`, list);
  const typed = () => plain(filter.value).toLowerCase();
  const called = other => plain(nameOf(other)).toLowerCase();
  /* The one cluster that what was typed is the number or the whole name of. A number is that of a cluster first. */
  const meant = () => {
    const text = typed(), number = text.replace(/^cluster /, "");
    if (clusters.has(Number(number)) && /^\d+$/.test(number)) return others.find(other => other === Number(number));
    const named = others.filter(other => text && [called(other), titleOf(other).toLowerCase()].includes(text));
    return named.length === 1 ? named[0] : undefined;
  };
  filter.value = "";
  filter.oninput = () => {
    const text = typed(), one = meant();
    for (const other of others) {
      const like = /^\d+$/.test(text) ? String(other).startsWith(text) || called(other).includes(text)
        : titleOf(other).toLowerCase().includes(text);
      button(other).parentElement.hidden = !like;
      button(other).classList.toggle("meant", other === one);
    }
    if (one !== undefined) list.prepend(button(one).parentElement);
  };
  filter.onkeydown = event => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const one = meant();
    if (one !== undefined && !event.isComposing) button(one).click();
  };
  dialog.onkeydown = event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    const stops = [filter, ...$$("li:not([hidden]) button", list)];
    stops[Math.max(0, Math.min(stops.length - 1, stops.indexOf(document.activeElement) + step))].focus();
  };
  $("form", dialog).onsubmit = event => {
    if (event.submitter.value === "") return;
    const target = Number(event.submitter.value);
    into.set(number, target);
    edited(number, target, ...members(target));
  };
  dialog.onclose = () => cards.get(number).focus({preventScroll: true});
  dialog.showModal();
  filter.focus();
}

const acts = {rename, merge: openMerge, junk: mark, undo: unmerge};
$("#clusters").addEventListener("click", event => {
  const card = event.target.closest(".cluster"), button = event.target.closest("[data-act]");
  if (card) choose(card, false);
  if (button) acts[button.dataset.act](Number(card.dataset.number));
});
$("#download").addEventListener("click", () => {
  save("edits.json", JSON.stringify(edits(), null, 2) + "\n", "application/json");
  saved = true;
});
addEventListener("beforeunload", event => {
  if (!saved && pendingCount()) event.preventDefault();
});

/* ---- the list of clusters --------------------------------------------------------------------------------------- */

let chosen = null;

function choose(card, scroll = true) {
  chosen?.classList.remove("chosen");
  chosen = card;
  card.classList.add("chosen");
  card.tabIndex = -1;
  if (scroll) {
    card.focus({preventScroll: true});
    card.scrollIntoView({block: "start"});
  }
}

function step(by) {
  const shown = $$(".cluster:not([hidden])");
  const at = shown.indexOf(chosen);
  const next = shown[at < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, at + by))];
  if (next) choose(next);
}

const orders = {
  number: (a, b) => a - b,
  size: (a, b) => clusters.get(b).size - clusters.get(a).size || a - b,
  distance: (a, b) => (clusters.get(a).distance ?? Infinity) - (clusters.get(b).distance ?? Infinity) || a - b,
  name: (a, b) => !nameOf(a) - !nameOf(b) || nameOf(a).localeCompare(nameOf(b)) || a - b,
};

function arrange() {
  if (!$("#sort")) return;
  const wanted = plain($("#filter").value).toLowerCase();
  const sorted = [...cards.keys()].sort(orders[$("#sort").value]);
  let found = 0;
  for (const number of sorted) {
    const text = `${titleOf(number)} ${$(".labels", cards.get(number))?.textContent ?? ""}`.toLowerCase();
    cards.get(number).hidden = !text.includes(wanted);
    found += text.includes(wanted);
  }
  const list = $("#cluster-list");
  if (sorted.some((number, i) => list.children[i] !== cards.get(number))) list.append(...sorted.map(number => cards.get(number)));
  $("#filtered").textContent = wanted ? `${found} of ${cards.size}` : "";
}

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

/* ---- the map ---------------------------------------------------------------------------------------------------- */

function shorts(text) {
  const bytes = Uint8Array.from(atob(text), char => char.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

function map(points) {
  const x = shorts(points.x), y = shorts(points.y), cluster = shorts(points.cluster), far = shorts(points.distance);
  const folder = shorts(points.folder), label = points.label ? shorts(points.label) : null;
  const count = x.length, outlier = new Set(points.outlier);
  const highest = y.reduce((most, value) => Math.max(most, value), 1), widest = x.reduce((most, value) => Math.max(most, value), 1);
  const plane = $("#plane"), canvas = $("#points"), marks = $("#marks"), tip = $("#tip");
  const numbers = data.clusters.map(each => each.number);
  let colour = "cluster", selected = null, size = [0, 0], zoom = 1, shift = [0, 0], lasso = null, under = -1, moving = null;

  const pathOf = i => points.folders[folder[i]] + points.names[i];
  const distanceOf = i => far[i] / 65535 * points.farthest;
  const clusterOf = i => root(numbers[cluster[i]]);
  const tileOf = i => i * points.every;

  /* Distances by rank, so that a few far ones do not make all others look alike. */
  const ranks = new Float32Array(count);
  [...far.keys()].sort((a, b) => far[a] - far[b]).forEach((i, rank) => { ranks[i] = rank / Math.max(1, count - 1); });

  const scale = () => Math.min((size[0] - 32) / widest, (size[1] - 32) / highest);
  const left = i => (x[i] - widest / 2) * scale() * zoom + size[0] / 2 + shift[0];
  const top = i => (y[i] - highest / 2) * scale() * zoom + size[1] / 2 + shift[1];
  const radius = () => (count < 300 ? 4.5 : count < 1000 ? 3.4 : count < 4000 ? 2.5 : 1.8) * Math.min(2, zoom ** 0.4);

  function category(i) {
    if (colour === "distance") return Math.floor(ranks[i] * 31.99);
    return colour === "label" ? label[i] : numbers.indexOf(clusterOf(i));
  }

  const paintOf = kind => colour === "distance" ? between(kind / 31) : colour === "label" && !points.labels[kind] ? "#8886" : colourOf(kind);

  function draw() {
    const pen = canvas.getContext("2d"), ratio = canvas.width / size[0];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, ...size);
    const layers = new Map();
    for (let i = 0; i < count; i++) {
      const key = category(i) * 2 + (selected && !selected.has(i) ? 0 : 1);
      if (!layers.has(key)) layers.set(key, []);
      layers.get(key).push(i);
    }
    const r = radius();
    for (const strong of [0, 1]) {
      pen.globalAlpha = strong ? 0.82 : 0.2;
      for (const [key, which] of layers) {
        if (key % 2 !== strong) continue;
        pen.fillStyle = paintOf(key >> 1);
        pen.beginPath();
        for (const i of which) {
          const px = left(i), py = top(i);
          pen.moveTo(px + r, py);
          pen.arc(px, py, r, 0, 7);
        }
        pen.fill();
      }
    }
    drawMarks();
  }

  function drawMarks() {
    const pen = marks.getContext("2d"), ratio = marks.width / size[0];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, ...size);
    const style = getComputedStyle(document.documentElement);
    pen.strokeStyle = style.getPropertyValue("--ink");
    pen.fillStyle = style.getPropertyValue("--veil");
    pen.lineWidth = 1.5;
    if (lasso) {
      pen.beginPath();
      lasso.forEach(([px, py]) => pen.lineTo(px, py));
      pen.closePath();
      pen.fill();
      pen.stroke();
    }
    if (under >= 0) {
      pen.beginPath();
      pen.arc(left(under), top(under), radius() + 3, 0, 7);
      pen.stroke();
    }
  }

  function nearest(px, py, within) {
    let found = -1, least = within * within;
    for (let i = 0; i < count; i++) {
      const d = (left(i) - px) ** 2 + (top(i) - py) ** 2;
      if (d < least && (!selected || selected.has(i) || d < least / 4)) [found, least] = [i, d];
    }
    return found;
  }

  function inside(polygon, px, py) {
    let is = false;
    for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
      const [ax, ay] = polygon[i], [bx, by] = polygon[j];
      if (ay > py !== by > py && px < (bx - ax) * (py - ay) / (by - ay) + ax) is = !is;
    }
    return is;
  }

  function tell(event) {
    const at = place(event);
    under = lasso || moving ? -1 : nearest(...at, 12);
    tip.hidden = under < 0;
    if (under >= 0) {
      tip.replaceChildren(
        ...(sheet ? [picture(tileOf(under), 96)] : []),
        element("div", {}, element("strong", {}, points.names[under]), element("br"), titleOf(clusterOf(under)), element("br"),
          `distance ${distanceOf(under).toFixed(3)}${outlier.has(under) ? ", outlier" : ""}`,
          ...(label && points.labels[label[under]] ? [element("br"), `label ${points.labels[label[under]]}`] : [])));
      tip.style.left = `${Math.min(at[0] + 14, Math.max(0, size[0] - tip.offsetWidth - 4))}px`;
      tip.style.top = `${at[1] + 14 + tip.offsetHeight > size[1] ? Math.max(0, at[1] - tip.offsetHeight - 10) : at[1] + 14}px`;
    }
    drawMarks();
  }

  const place = event => {
    const box = plane.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  plane.addEventListener("pointerdown", event => {
    if (event.button) return;
    plane.setPointerCapture(event.pointerId);
    if ($("[name=drag]:checked").value === "move") moving = [event.clientX - shift[0], event.clientY - shift[1]];
    else lasso = [place(event)];
  });
  plane.addEventListener("pointermove", event => {
    if (moving) {
      shift = [event.clientX - moving[0], event.clientY - moving[1]];
      draw();
    } else if (lasso) {
      lasso.push(place(event));
    }
    tell(event);
  });
  plane.addEventListener("pointerup", event => {
    const drawn = lasso, moved = moving;
    lasso = moving = null;
    if (drawn) {
      const across = axis => Math.max(...drawn.map(at => at[axis])) - Math.min(...drawn.map(at => at[axis]));
      if (across(0) + across(1) < 8) {
        const one = nearest(...place(event), 12);
        select(one < 0 ? null : [one]);
      } else {
        const found = [];
        for (let i = 0; i < count; i++) if (inside(drawn, left(i), top(i))) found.push(i);
        select(found);
      }
    }
    if (drawn || moved) tell(event);
  });
  plane.addEventListener("pointerleave", () => {
    under = -1;
    tip.hidden = true;
    drawMarks();
  });
  plane.addEventListener("wheel", event => {
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY / 400), place(event));
  }, {passive: false});

  function zoomAt(factor, [px, py] = [size[0] / 2, size[1] / 2]) {
    const before = zoom;
    zoom = Math.min(40, Math.max(1, zoom * factor));
    shift = zoom === 1 ? [0, 0] : [px, py].map((at, axis) => at - size[axis] / 2 - (at - size[axis] / 2 - shift[axis]) * zoom / before);
    draw();
  }

  $("#zoom-in").addEventListener("click", () => zoomAt(1.6));
  $("#zoom-out").addEventListener("click", () => zoomAt(1 / 1.6));
  $("#zoom-all").addEventListener("click", () => zoomAt(0));

  /* The images that are listed: an array of points, or null for none. */
  const LISTED = 300;
  let listed = [];

  function select(which, keep = null) {
    selected = which ? new Set(which) : null;
    listed = which ?? [];
    for (const button of $$("#legend button")) button.setAttribute("aria-pressed", button === keep);
    $("#selection").hidden = !which;
    $("#hint").hidden = Boolean(which);
    if (which) {
      $("#selected").textContent = `${images(listed.length)} selected`;
      const counts = new Map();
      for (const i of listed) counts.set(clusterOf(i), (counts.get(clusterOf(i)) ?? 0) + 1);
      const ordered = [...counts].sort((a, b) => b[1] - a[1]);
      $("#selected-clusters").textContent = ordered.slice(0, 6).map(([number, n]) => `${grouped(n)} in ${titleOf(number).toLowerCase()}`).join(", ")
        + (ordered.length > 6 ? `, and in ${ordered.length - 6} more` : "");
      $("#selected-list").replaceChildren(...listed.slice(0, LISTED).map(i => element("li", {title: pathOf(i)},
        ...(sheet ? [picture(tileOf(i), 32)] : []), element("span", {className: "path"}, pathOf(i)))));
      $("#selected-rest").textContent = listed.length > LISTED ? `And ${grouped(listed.length - LISTED)} more; all are copied and saved.` : "";
      for (const id of ["copy-paths", "save-csv"]) $(`#${id}`).disabled = !listed.length;
    }
    draw();
  }

  $("#clear").addEventListener("click", () => select(null));
  $("#copy-paths").addEventListener("click", event => copy(listed.map(pathOf).join("\n") + "\n", event.target));
  $("#save-csv").addEventListener("click", () => {
    const heads = ["row", "path", "cluster", "name", "distance", ...(label ? ["label"] : [])];
    const rows = listed.map(i => [
      i * points.step, guarded(pathOf(i), "./"), clusterOf(i), guarded(nameOf(clusterOf(i)), "'"), distanceOf(i).toFixed(4),
      ...(label ? [guarded(points.labels[label[i]], "'")] : []),
    ]);
    save("selection.csv", [heads, ...rows].map(row => row.map(cell).join(",") + "\n").join(""), "text/csv");
  });
  const cell = value => /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
  /* No cell may begin as a formula does: a path gets ./ in front, another text a quote. */
  const guarded = (text, guard) => /^[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(text) ? guard + text : text;

  function legend() {
    const list = $("#legend");
    $("#legend-title").textContent = {cluster: "Clusters", label: "Labels", distance: "Distance to the centroid"}[colour];
    if (colour === "distance") {
      const bar = element("div", {className: "ramp"});
      bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(between).join(", ")})`;
      return list.replaceChildren(element("li", {}, bar, element("span", {className: "quiet ends"}, element("span", {}, "nearest"), element("span", {}, "farthest"))));
    }
    const kinds = new Map();
    for (let i = 0; i < count; i++) {
      const kind = category(i);
      if (!kinds.has(kind)) kinds.set(kind, []);
      kinds.get(kind).push(i);
    }
    list.replaceChildren(...[...kinds].sort((a, b) => a[0] - b[0]).map(([kind, which]) => {
      const swatch = element("span", {className: "swatch"});
      swatch.style.background = paintOf(kind);
      const text = colour === "label" ? points.labels[kind] || "no label" : titleOf(numbers[kind]).replace("Cluster ", "");
      const button = element("button", {type: "button", ariaPressed: "false"}, swatch, element("span", {className: "path"}, text),
        element("span", {className: "quiet"}, grouped(which.length)));
      button.addEventListener("click", () => button.getAttribute("aria-pressed") === "true" ? select(null) : select(which, button));
      return element("li", {}, button);
    }));
  }

  for (const radio of $$("[name=colour]")) radio.addEventListener("change", () => {
    colour = radio.value;
    legend();
    draw();
  });
  for (const radio of $$("[name=drag]")) radio.addEventListener("change", () => plane.classList.toggle("moves", radio.value === "move"));
  whenEdited.push(legend, draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(() => {
    size = [plane.clientWidth, plane.clientHeight];
    for (const each of [canvas, marks]) [each.width, each.height] = size.map(side => Math.round(side * devicePixelRatio));
    if (size[0]) draw();
  }).observe(plane);
  legend();
  return {clear: () => select(null)};
}

const mapped = data.points && $("#map") ? map(data.points) : null;

/* ---- the number of groups --------------------------------------------------------------------------------------- */

function groups(tree) {
  const pieces = tree.groups.length, slider = $("#k"), present = new Set(tree.groups).size;
  const from = Number(slider.min), to = Number(slider.max), across = $("#groups svg .grid").x2.baseVal.value;
  const inside = [...tree.groups.keys()].map(i => [i]);
  for (const [a, b] of tree.merges) inside.push([...inside[a], ...inside[b]]);
  const piecesOf = new Map();
  for (const group of tree.groups) piecesOf.set(group, (piecesOf.get(group) ?? 0) + 1);

  function nodesAt(k) {
    const nodes = new Set(tree.groups.keys());
    for (let i = 0; i < pieces - k; i++) {
      for (const node of tree.merges[i]) nodes.delete(node);
      nodes.add(pieces + i);
    }
    return [...nodes].sort((a, b) => tree.sizes[b] - tree.sizes[a] || a - b);
  }

  function relation(node) {
    const own = [...new Set(inside[node].map(piece => tree.groups[piece]))].sort((a, b) => a - b);
    if (own.length > 1) return {kind: "merged", own, text: own.map(titleOf).join(" + ").replaceAll(" + Cluster", " +")};
    const whole = inside[node].length === piecesOf.get(own[0]);
    return {kind: whole ? "same" : "split", own, text: whole ? titleOf(own[0]) : `part of ${titleOf(own[0]).toLowerCase()}`};
  }

  /* A group that is a cluster now has that one's picture, which is larger than those on the sheet. */
  function face(node, kind, own) {
    const medoid = kind === "same" && cards.has(own[0]) ? $(".medoid img", cards.get(own[0])) : null;
    return medoid ? element("img", {src: medoid.src, alt: "", className: "picture"}) : picture(tree.tiles[node], 88);
  }

  const listed = own => own.length > 12 ? `${own.slice(0, 12).join(", ")} and ${own.length - 12} more`
    : [own.slice(0, -1).join(", "), own.at(-1)].filter(text => text !== "").join(" and ");

  function move(selector, at) {
    for (const line of $$(selector)) for (const [name, value] of [["visibility", "visible"], ["x1", at], ["x2", at]]) line.setAttribute(name, value);
  }

  const figure = value => value === null || value === undefined ? "–" : value.toFixed(2).replace("-", "−");

  function update() {
    const k = Number(slider.value), at = across * (k - from) / Math.max(1, to - from);
    move(".k-line", at);
    $("#k-value").textContent = k;
    const level = tree.levels.find(each => each[0] === k);
    $("#k-figures").textContent = `silhouette ${figure(level?.[1])}, stability ${figure(level?.[2])}${k === present ? ", as now" : ""}`;
    const nodes = nodesAt(k), relations = nodes.map(relation);
    const merged = relations.filter(each => each.kind === "merged").map(each => listed(each.own));
    const split = [...new Set(relations.filter(each => each.kind === "split").map(each => each.own[0]))].sort((a, b) => a - b);
    const told = [
      ...(merged.length ? [`Clusters ${merged.join("; ")} merge.`] : []),
      ...(split.length ? [split.length === 1 ? `Cluster ${split[0]} splits.` : `Clusters ${listed(split)} split.`] : []),
    ];
    $("#k-told").textContent = told.join(" ") || "These are the present clusters.";
    $("#k-groups").replaceChildren(...nodes.map((node, i) => {
      const {kind, own, text} = relations[i];
      return element("li", {className: kind}, face(node, kind, own), element("strong", {}, grouped(tree.sizes[node])), element("span", {}, text));
    }));
    $("#recut").textContent = data.recut + k;
  }

  slider.value = Math.min(to, Math.max(from, present));
  if (present >= from && present <= to) move(".k-now", across * (present - from) / Math.max(1, to - from));
  slider.addEventListener("input", update);
  $("#copy-recut").addEventListener("click", event => copy($("#recut").textContent, event.target));
  whenEdited.push(update);
  update();
}

if (data.tree && $("#k")) groups(data.tree);

/* ---- keys ------------------------------------------------------------------------------------------------------- */

$("#help-open").addEventListener("click", () => $("#help").showModal());
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
  if (event.target.matches("input:not([type=radio], [type=range]), select, textarea")) return;
  if (event.key >= "1" && event.key <= String(tabs.length)) {
    show(Number(event.key) - 1, true);
    return toBar();
  }
  if (event.key === "?") return $("#help").showModal();
  if (event.key === "Escape" && $("#map")?.classList.contains("shown")) return mapped?.clear();
  if (!$("#clusters").classList.contains("shown")) return;
  const number = chosen && !chosen.hidden ? Number(chosen.dataset.number) : null;
  const act = {
    j: () => step(1), k: () => step(-1),
    n: () => number !== null && rename(number), m: () => number !== null && openMerge(number), x: () => number !== null && mark(number),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

for (const number of cards.keys()) paint(number);
addEventListener("hashchange", showAddressed);
showAddressed();
});
