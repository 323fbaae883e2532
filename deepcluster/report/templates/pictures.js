/* ---- pictures: from a server by an address of each, in a file from one sheet of tiny ones ---------------------------- */
// takes: data, element, onPage, $$ (report.js)

const shorts = text => new Uint16Array(Uint8Array.from(atob(text), char => char.charCodeAt(0)).buffer);

const sheetAddress = data.served?.pictures ? `sheet/${data.served.pictures}/0` : data.sheet;
const sheet = sheetAddress ? element("img", {src: sheetAddress}) : null;
const sheetReady = sheet ? sheet.decode().then(() => true, () => false) : Promise.resolve(false);

/* The picture of a row on the sheet: the image, the corner of the picture, and its side. */
function onSheet(row) {
  const edge = sheet.naturalWidth / data.columns, place = row / data.apart;
  return [sheet, (place % data.columns) * edge, Math.floor(place / data.columns) * edge, edge, edge];
}

/* The picture of a row, drawn as soon as it is there; a row below 0 has none. */
function picture(row, side) {
  const isServed = row >= 0 && data.served?.pictures;
  const made = isServed ? element("img", {className: "picture", alt: "", loading: "lazy", src: `thumb/${data.served.pictures}/${row}`})
    : element("canvas", {width: 1, height: 1, className: "picture"});
  if (side) made.style.width = made.style.height = `${side}px`;
  if (!isServed) sheetReady.then(ready => {
    if (!ready || row < 0 || row % data.apart) return made.classList.add("none");
    const [, , , edge] = onSheet(row);
    made.width = made.height = edge;
    made.getContext("2d").drawImage(...onSheet(row), 0, 0, edge, edge);
  });
  return made;
}

onPage.push(() => { for (const place of $$(".thumb")) place.replaceChildren(picture(Number(place.dataset.row), 40)); });
