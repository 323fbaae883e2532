/* ---- the map ---------------------------------------------------------------------------------------------------- */
// takes: $, whenMoved, element, $$, grouped, data, onPage (report.js); t, images (language.js)
//   shorts, sheetReady, onSheet, sheet, picture (pictures.js)
//   sample, clusterOf, firstFree, nameOf, factsOf, titleOf, callOf, sorted, placeIn, sizeOf, library, moved, present, shortOf, perhaps (clusters.js)
//   tick, makeGrid (grid.js); openImages (images.js)

const first = ["#4c78c8", "#e08a1e", "#3f9e63", "#c9473f", "#8d63c4", "#2aa3b5", "#d667a6", "#8a7a35", "#7f8c9b", "#b5651d"];
const colourOf = i => first[i] ?? `hsl(${(i * 137.508) % 360} ${50 + 20 * (i % 3)}% ${44 + 7 * (i % 4)}%)`;
const ramp = [[68, 60, 140], [48, 108, 160], [36, 158, 140], [120, 196, 84], [240, 208, 52]];

function between(share) {
  const at = Math.min(ramp.length - 1.001, Math.max(0, share) * (ramp.length - 1)), i = Math.floor(at);
  return `rgb(${ramp[i].map((value, c) => Math.round(value + (at - i) * (ramp[i + 1][c] - value))).join(" ")})`;
}

function map(points) {
  const x = shorts(points.x), y = shorts(points.y), {label, step} = sample;
  const count = x.length;
  const highest = y.reduce((most, value) => Math.max(most, value), 1), widest = x.reduce((most, value) => Math.max(most, value), 1);
  const plane = $("#plane"), canvas = $("#points"), marks = $("#marks"), tip = $("#tip");
  let colour = "cluster", selected = null, size = [0, 0], zoom = 1, shift = [0, 0], lasso = null, under = -1, moving = null;
  const fingers = new Map();
  let pinch = null;

  /* Distances by rank, so that a few far ones do not make all others look alike. */
  const ranks = new Float32Array(count);
  const rankAll = () => [...sample.far.keys()].sort((a, b) => sample.far[a] - sample.far[b]).forEach((i, rank) => { ranks[i] = rank / Math.max(1, count - 1); });
  rankAll();

  const scale = () => Math.min((size[0] - 32) / widest, (size[1] - 32) / highest);
  const left = i => (x[i] - widest / 2) * scale() * zoom + size[0] / 2 + shift[0];
  const top = i => (y[i] - highest / 2) * scale() * zoom + size[1] / 2 + shift[1];
  const radius = () => (count < 300 ? 4.5 : count < 1000 ? 3.4 : count < 4000 ? 2.5 : 1.8) * Math.min(2, zoom ** 0.4);

  function category(i) {
    if (colour === "distance") return Math.floor(ranks[i] * 31.99);
    return colour === "label" ? label[i] : clusterOf(i * step);
  }

  /* A cluster that an edit made gets the next colour. */
  const rank = number => { const at = sample.numbers.indexOf(number); return at < 0 ? sample.numbers.length + number - firstFree : at; };
  const paintOf = kind => colour === "distance" ? between(kind / 31) : colour === "label" && !sample.labels[kind] ? "#8886" : colour === "label" ? colourOf(kind) : colourOf(rank(kind));

  /* The images by what a function says of them. */
  function imagesBy(key) {
    const groups = new Map();
    for (let i = 0; i < count; i++) {
      const group = groups.get(key(i));
      if (group) group.push(i);
      else groups.set(key(i), [i]);
    }
    return groups;
  }

  function cleared(plane) {
    const pen = plane.getContext("2d"), ratio = plane.width / size[0];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, ...size);
    return pen;
  }

  function draw() {
    const pen = cleared(canvas), r = radius(), layers = imagesBy(i => category(i) * 2 + (selected && !selected.has(i) ? 0 : 1));
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
    pen.globalAlpha = 1;
    if (sheetIsReady && (colour === "cluster" || zoom >= PICTURES_FROM)) drawPictures(pen);
    if (colour !== "distance") drawNames(pen);
    const isSeen = i => left(i) > 0 && top(i) > 0 && left(i) < size[0] && top(i) < size[1];
    $("#nowhere").hidden = [...x.keys()].some(isSeen);
    drawMarks();
  }

  /* Pictures lie on the points, as many as do not cover each other. Other colours than the clusters' need the points to be seen. */
  const PICTURES_FROM = 1.8;
  let sheetIsReady = false;
  sheetReady.then(ready => {
    sheetIsReady = ready;
    if (size[0]) draw();
  });

  function drawPictures(pen) {
    const side = Math.min(64, 22 + 6 * zoom), taken = new Set();
    for (let i = 0; i < count; i++) {
      const px = left(i), py = top(i);
      if (px < -side || py < -side || px > size[0] + side || py > size[1] + side) continue;
      const column = Math.floor(px / side), row = Math.floor(py / side);
      if (taken.has(`${column},${row}`)) continue;
      taken.add(`${column},${row}`);
      const dx = px - side / 2 + 1, dy = py - side / 2 + 1;
      pen.globalAlpha = selected && !selected.has(i) ? 0.35 : 1;
      pen.fillStyle = paintOf(category(i));
      pen.fillRect(dx - 2, dy - 2, side + 2, side + 2);
      pen.drawImage(...onSheet(i * step), dx, dy, side - 2, side - 2);
    }
    pen.globalAlpha = 1;
  }

  /* The name or number of each cluster where most of its images are, the largest first, none over another. */
  function drawNames(pen) {
    const style = getComputedStyle(document.body), boxes = [];
    pen.font = `600 13px ${style.fontFamily}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (const [number, [mx, my]] of middles()) {
      const px = (mx - widest / 2) * scale() * zoom + size[0] / 2 + shift[0], py = (my - highest / 2) * scale() * zoom + size[1] / 2 + shift[1];
      const name = nameOf(number), text = name.length > 28 ? `${number} ${name.slice(0, 27)}…` : name ? `${number} ${name}` : String(number);
      const half = pen.measureText(text).width / 2 + 5;
      if (boxes.some(([x, y, other]) => Math.abs(x - px) < half + other && Math.abs(y - py) < 18)) continue;
      boxes.push([px, py, half]);
      pen.fillStyle = style.getPropertyValue("--paper");
      pen.fillRect(px - half, py - 9, 2 * half, 18);
      pen.fillStyle = style.getPropertyValue("--ink");
      pen.fillText(text, px, py);
    }
  }

  let places = null;
  whenMoved.push(() => {
    places = null;
    rankAll();
  });

  function middles() {
    if (places) return places;
    const middle = (which, axis) => which.map(i => axis[i]).sort((a, b) => a - b)[which.length >> 1];
    places = [...imagesBy(i => clusterOf(i * step))].sort((a, b) => b[1].length - a[1].length).map(([number, which]) => [number, [middle(which, x), middle(which, y)]]);
    return places;
  }

  function drawMarks() {
    const pen = cleared(marks), style = getComputedStyle(document.documentElement);
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
      const row = under * step, {distance, outlier, label: own} = factsOf(row);
      tip.replaceChildren(
        ...(sheet ? [picture(row, 80)] : []),
        element("div", {}, element("strong", {}, sample.names[under]), element("br"), titleOf(clusterOf(row)), element("br"),
          t("distance {0}", distance.toFixed(3)) + (outlier ? t(", ") + t("outlier") : ""), ...(own ? [element("br"), t("label {0}", own)] : [])));
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
    fingers.set(event.pointerId, place(event));
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()];
      pinch = Math.hypot(a[0] - b[0], a[1] - b[1]);
      lasso = moving = null;
      return drawMarks();
    }
    if ($("[name=drag]:checked").value === "move") moving = [event.clientX - shift[0], event.clientY - shift[1]];
    else lasso = [place(event)];
  });
  plane.addEventListener("pointermove", event => {
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, place(event));
    if (pinch) {
      if (fingers.size < 2) return;
      const [a, b] = [...fingers.values()], now = Math.hypot(a[0] - b[0], a[1] - b[1]);
      zoomAt(now / Math.max(1, pinch), [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]);
      pinch = now;
      return;
    }
    if (moving) {
      shift = [event.clientX - moving[0], event.clientY - moving[1]];
      draw();
    } else if (lasso) {
      lasso.push(place(event));
    }
    tell(event);
  });
  const lift = event => {
    fingers.delete(event.pointerId);
    const drawn = lasso, moved = moving, pinched = pinch;
    lasso = moving = null;
    if (!fingers.size) pinch = null;
    if (pinched || event.type === "pointercancel") return drawMarks();
    if (drawn) {
      const across = axis => Math.max(...drawn.map(at => at[axis])) - Math.min(...drawn.map(at => at[axis]));
      if (across(0) + across(1) < 8) {
        const one = nearest(...place(event), 12);
        select(one < 0 ? null : [one]);
        tell(event);
      } else {
        const found = [];
        for (let i = 0; i < count; i++) if (inside(drawn, left(i), top(i))) found.push(i);
        select(found);
        quiet();
      }
    } else if (moved) tell(event);
  };
  plane.addEventListener("pointerup", lift);
  plane.addEventListener("pointercancel", lift);
  const quiet = () => {
    under = -1;
    tip.hidden = true;
    drawMarks();
  };
  /* A finger that is lifted leaves, too: what it tapped stays told. */
  plane.addEventListener("pointerleave", event => { if (event.pointerType !== "touch") quiet(); });
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

  /* The images that were chosen on the map: their places in the columns of the page, or null for none. Their rows are listed
     beside it, and selected; those of a cluster are all, also the ones that the page does not hold. */
  let listed = [], grid = null;

  function select(which, keep = null, rows = (which ?? []).map(i => i * step)) {
    selected = which ? new Set(which) : null;
    listed = rows;
    for (const button of $$("#legend button")) button.setAttribute("aria-pressed", button === keep);
    $("#selection").hidden = !which;
    $("#hint").hidden = Boolean(which);
    tick(listed);
    tellSelected();
    if (which) sheetReady.then(() => {
      grid ??= makeGrid($("#selected-grid"), 60);
      grid.show(listed);
    });
    draw();
  }

  function tellSelected() {
    $("#selected").textContent = t("{0} selected", images(listed.length));
    const counts = new Map();
    for (const row of listed) counts.set(clusterOf(row), (counts.get(clusterOf(row)) ?? 0) + 1);
    const ordered = [...counts].sort((a, b) => b[1] - a[1]);
    $("#selected-clusters").textContent = ordered.slice(0, 6).map(([number, n]) => t("{0} in {1}", grouped(n), callOf(number))).join(t(", "))
      + (ordered.length > 6 ? t(", and in {0} more", ordered.length - 6) : "");
    for (const button of $$("#selection [data-ticked]:not([data-ticked=move]), #enlarge-grid")) button.disabled = !listed.length;
  }

  $("#clear").addEventListener("click", () => select(null));
  $("#enlarge-grid").addEventListener("click", () => openImages({
    rows: async order => [...sorted(listed.filter(row => placeIn(row) >= 0), order), ...listed.filter(row => placeIn(row) < 0)], title: () => t("Selected on the map"), total: () => listed.length, keepTicked: true,
  }));
  /* The clusters of rows that the page does not hold are not known after a change. */
  whenMoved.push(() => listed.every(row => clusterOf(row) !== undefined) ? tellSelected() : select(null));

  const sizeOfKind = kind => colour === "label" ? sample.label_sizes[kind] : sizeOf(kind);
  const allOf = async number => [...(await library.rows(number, "near")).filter(row => !moved.has(row)), ...[...moved.keys()].filter(row => moved.get(row) === number)];

  function legend() {
    const list = $("#legend");
    $("#legend-title").textContent = {cluster: t("Clusters"), label: t("Labels"), distance: t("Distance to the centroid")}[colour];
    if (colour === "distance") {
      const bar = element("div", {className: "ramp"});
      bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(between).join(", ")})`;
      return list.replaceChildren(element("li", {}, bar, element("span", {className: "quiet ends"}, element("span", {}, t("nearest")), element("span", {}, t("farthest")))));
    }
    const kinds = imagesBy(category);
    if (colour === "cluster") for (const number of present()) if (!kinds.has(number)) kinds.set(number, []);
    list.replaceChildren(...[...kinds].sort((a, b) => a[0] - b[0]).map(([kind, which]) => {
      const swatch = element("span", {className: "swatch"});
      swatch.style.background = paintOf(kind);
      const text = colour === "label" ? sample.labels[kind] || t("no label") : shortOf(kind) + perhaps(kind);
      const button = element("button", {type: "button", ariaPressed: "false"}, swatch, element("span", {className: "path"}, text),
        element("span", {className: "quiet"}, grouped(sizeOfKind(kind))));
      button.addEventListener("click", async () => button.getAttribute("aria-pressed") === "true" ? select(null)
        : select(which, button, colour === "cluster" && data.served ? await allOf(kind) : undefined));
      return element("li", {}, button);
    }));
  }

  for (const radio of $$("[name=colour]")) radio.addEventListener("change", () => {
    colour = radio.value;
    legend();
    draw();
  });
  for (const radio of $$("[name=drag]")) radio.addEventListener("change", () => plane.classList.toggle("moves", radio.value === "move"));
  whenMoved.push(legend, () => size[0] && draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(() => {
    size = [plane.clientWidth, plane.clientHeight];
    for (const each of [canvas, marks]) [each.width, each.height] = size.map(side => Math.round(side * devicePixelRatio));
    if (size[0]) draw();
  }).observe(plane);
  legend();
  return {clear: () => select(null), list: () => listed};
}

let mapped = null;

onPage.push(() => { mapped ??= data.points && $("#map") ? map(data.points) : null; });
