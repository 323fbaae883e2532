/* ---- the map ---------------------------------------------------------------------------------------------------- */
// takes: $, whenMoved, element, $$, grouped, data, onPage (report.js); t, images (language.js)
//   shorts, sheetReady, onSheet, sheet, picture (pictures.js)
//   sample, clusterOf, firstFree, nameOf, factsOf, titleOf, callOf, sorted, placeIn, sizeOf, library, moved, present, perhaps, membersOf, ofKinds (clusters.js)
//   tick, makeGrid (grid.js); openImages (images.js)

const first = ["#4c78c8", "#e08a1e", "#3f9e63", "#c9473f", "#8d63c4", "#2aa3b5", "#d667a6", "#8a7a35", "#7f8c9b", "#b5651d"];
const colourOf = i => first[i] ?? `hsl(${(i * 137.508) % 360} ${50 + 20 * (i % 3)}% ${44 + 7 * (i % 4)}%)`;

function map(points) {
  const x = shorts(points.x), y = shorts(points.y), {step} = sample;
  const count = x.length;
  const highest = y.reduce((most, value) => Math.max(most, value), 1), widest = x.reduce((most, value) => Math.max(most, value), 1);
  const plane = $("#plane"), canvas = $("#points"), marks = $("#marks"), tip = $("#tip");
  let selected = null, size = [0, 0], zoom = 1, shift = [0, 0], lasso = null, under = -1, moving = null;
  const fingers = new Map();
  let pinch = null;

  const scale = () => Math.min((size[0] - 32) / widest, (size[1] - 32) / highest);
  const left = i => (x[i] - widest / 2) * scale() * zoom + size[0] / 2 + shift[0];
  const top = i => (y[i] - highest / 2) * scale() * zoom + size[1] / 2 + shift[1];
  const radius = () => (count < 300 ? 4.5 : count < 1000 ? 3.4 : count < 4000 ? 2.5 : 1.8) * Math.min(2, zoom ** 0.4);

  /* The kind of an image, by its first cluster. A cluster that an edit made gets the next colour. */
  let firsts = new Map();
  const kindAt = i => firsts.get(clusterOf(i * step)) ?? clusterOf(i * step);
  const rank = number => { const at = sample.numbers.indexOf(number); return at < 0 ? sample.numbers.length + number - firstFree : at; };
  const paintOf = kind => colourOf(rank(kind));

  /* The images by what a function says of them. */
  function imagesBy(key) {
    const imagesOf = new Map();
    for (let i = 0; i < count; i++) {
      const inside = imagesOf.get(key(i));
      if (inside) inside.push(i);
      else imagesOf.set(key(i), [i]);
    }
    return imagesOf;
  }

  function cleared(plane) {
    const pen = plane.getContext("2d"), ratio = plane.width / size[0];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, ...size);
    return pen;
  }

  function draw() {
    const pen = cleared(canvas), r = radius(), layers = imagesBy(i => kindAt(i) * 2 + (selected && !selected.has(i) ? 0 : 1));
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
    if (sheetIsReady && zoom >= PICTURES_FROM) drawPictures(pen);
    drawFaces(pen);
    const isSeen = i => left(i) > 0 && top(i) > 0 && left(i) < size[0] && top(i) < size[1];
    $("#nowhere").hidden = [...x.keys()].some(isSeen);
    drawMarks();
  }

  /* Zoomed in, pictures lie on the points, as many as do not cover each other. */
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
      pen.fillStyle = paintOf(kindAt(i));
      pen.fillRect(dx - 2, dy - 2, side + 2, side + 2);
      pen.drawImage(...onSheet(i * step), dx, dy, side - 2, side - 2);
    }
    pen.globalAlpha = 1;
  }

  /* One face of each kind where most of its images are, with its name beside it: the largest first, none over another. */
  function drawFaces(pen) {
    const style = getComputedStyle(document.body), boxes = [], side = size[0] < 500 ? 30 : 40, kinds = middles();
    pen.font = `600 13px ${style.fontFamily}`;
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    for (const [number, i] of kinds) {
      const name = nameOf(number) || String(number), text = name.length > 20 ? `${name.slice(0, 19)}…` : name, width = side + 8 + pen.measureText(text).width;
      const px = Math.max(2, Math.min(size[0] - width - 2, left(i) - side / 2)), py = top(i) - side / 2;
      if (left(i) < 0 || left(i) > size[0] || py < -side || py > size[1]) continue;
      if (boxes.some(([x, y, other]) => x < px + width + 4 && px < x + other + 4 && Math.abs(y - py) < side + 4)) continue;
      boxes.push([px, py, width]);
      pen.fillStyle = style.getPropertyValue("--paper");
      pen.fillRect(px, py, width, side);
      pen.fillStyle = paintOf(number);
      pen.fillRect(px - 2, py - 2, side + 4, side + 4);
      if (sheetIsReady && i * step % data.apart === 0) pen.drawImage(...onSheet(i * step), px, py, side, side);
      pen.fillStyle = style.getPropertyValue("--ink");
      pen.fillText(text, px + side + 5, py + side / 2);
    }
    $("#unlabelled").textContent = boxes.length < kinds.length ? t("{0} of {1} kinds have a face here: zoom in for others.", boxes.length, kinds.length) : "";
  }

  /* The kinds, and the image nearest to the middle of each, the largest first. */
  let places = null;
  function placeKinds() {
    places = null;
    firsts = new Map(present().map(number => [number, membersOf(number)[0]]));
  }

  function middles() {
    if (places) return places;
    const middle = (which, axis) => which.map(i => axis[i]).sort((a, b) => a - b)[which.length >> 1];
    places = [...imagesBy(kindAt)].filter(([number]) => number >= 0).sort((a, b) => b[1].length - a[1].length).map(([number, which]) => {
      const [mx, my] = [middle(which, x), middle(which, y)], away = i => (x[i] - mx) ** 2 + (y[i] - my) ** 2;
      return [number, which.reduce((best, i) => away(i) < away(best) ? i : best)];
    });
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
    let closest = -1, least = within * within;
    for (let i = 0; i < count; i++) {
      const d = (left(i) - px) ** 2 + (top(i) - py) ** 2;
      if (d < least && (!selected || selected.has(i) || d < least / 4)) [closest, least] = [i, d];
    }
    return closest;
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
      const row = under * step, {outlier, label: own} = factsOf(row);
      tip.replaceChildren(
        ...(sheet ? [picture(row, 80)] : []),
        element("div", {}, element("strong", {}, sample.names[under]), element("br"), titleOf(clusterOf(row)), element("br"),
          outlier ? t("outlier") : "", ...(own ? [element("br"), t("label {0}", own)] : [])));
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
        const enclosed = [];
        for (let i = 0; i < count; i++) if (inside(drawn, left(i), top(i))) enclosed.push(i);
        select(enclosed);
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
      grid ??= makeGrid($("#selected-grid"), [60]);
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

  const allOf = async numbers => [...(await library.rows(numbers, "near")).filter(row => !moved.has(row)), ...[...moved.keys()].filter(row => numbers.includes(moved.get(row)))];

  function legend() {
    const kinds = imagesBy(kindAt), sizeOfKind = number => membersOf(number).reduce((sum, each) => sum + sizeOf(each), 0);
    $("#legend").replaceChildren(...ofKinds(present()).map(number => {
      const swatch = element("span", {className: "swatch"});
      swatch.style.background = paintOf(firsts.get(number));
      const button = element("button", {type: "button", ariaPressed: "false"}, swatch, element("span", {className: "path"}, (nameOf(number) || t("cluster {0}", number)) + perhaps(number)),
        element("span", {className: "quiet"}, grouped(sizeOfKind(number))));
      button.addEventListener("click", async () => button.getAttribute("aria-pressed") === "true" ? select(null)
        : select(kinds.get(firsts.get(number)) ?? [], button, data.served ? await allOf(membersOf(number)) : undefined));
      return element("li", {}, button);
    }));
  }

  for (const radio of $$("[name=drag]")) radio.addEventListener("change", () => plane.classList.toggle("moves", radio.value === "move"));
  placeKinds();
  whenMoved.push(placeKinds, legend, () => size[0] && draw());
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
