/* ---- the third part of teaching: what follows from the answers ------------------------------------------------------------ */
// takes: $, grouped, element, $$ (report.js); t, images, translated (language.js)
//   library, moved, placedOf, clusterOf, base, isPresent, present (clusters.js); tick, isSelecting, whenTicked, ticked (grid.js); openOne (one.js)
//   lastMoved, change (change.js); choose, nextFree (choose.js); ofKinds, forget, right, seenNow, applied (moves.js)
//   current, teacher, part, choices, inquire, tickable, answered, offer (teach.js); askKinds (kinds.js); asked, queue (questions.js)

let goals = new Map(), count = 0;  /* the clusters of shown images after the answers, and how many images move */

async function review() {
  if (!current.size) return teacher.close();
  part("review", t("Looking…"));
  choices = [];
  $("#teach-moves").replaceChildren();
  tick([]);
  const {moves, names, quality} = await inquire("preview") ?? {};
  if (!moves || !teacher.open) return;
  goals = new Map(moves.flatMap(([, to, , rows]) => rows.map(row => [row, to])));
  await library.facts([...goals.keys()]);
  count = moves.reduce((sum, [, , some]) => sum + some, 0);
  const called = number => names[number] || t("cluster {0}", number);
  $("#teach-title").textContent = t("{0} would move", images(count));
  $("#teach-progress").textContent = translated([quality]).join("");
  $("#teach-moves").replaceChildren(...moves.map(([from, to, some, shown]) => {
    const faces = shown.map(row => tickable(row, 64));
    const rest = some > shown.length ? [t("and {0} more", grouped(some - shown.length))] : [];
    return element("li", {}, element("strong", {}, `${called(from)} → ${called(to)} · ${images(some)}`), element("span", {className: "row"}, ...faces, ...rest));
  }));
  offerPlaces();
  $("#teach-review [data-teach=more]").hidden = current !== answered;
  $("[data-teach=only]").hidden = current === answered || !moved.size;
  $("[data-teach=apply]").focus();
}

/* The images of a preview, and the ticked ones of them. */
const previewed = (which = "input") => $$(`#teach-moves ${which}`).map(input => Number(input.value));
const wrong = () => previewed(":checked");

/* The clusters that ticked images may belong to. */
async function offerPlaces() {
  const rows = wrong(), now = new Set(rows.map(row => goals.get(row))), alike = await library.alike(rows);
  if (rows.join() !== wrong().join()) return;
  const near = [...rows.map(placedOf), ...alike.map(clusterOf), ...[...now, ...rows.map(placedOf)].flatMap(number => base.get(number)?.near ?? [])];
  offer($("#teach-places"), ofKinds([...now, ...near.filter(isPresent)]).filter(number => !now.has(number)).slice(0, 9));
  $("[data-teach=move]").disabled = !near.length;
}

function placeWrong(cluster) {
  for (const row of wrong()) current.set(row, {path: row, cluster});
  review();
}

async function chooseForWrong() {
  const rows = wrong();
  choose({
    title: t("Move {0} to", images(rows.length)), hint: "", others: present(), made: nextFree(), like: placedOf(rows[0]),
    alike: await library.alike(rows), done: placeWrong, back: () => {},
  });
}

async function applyAnswers() {
  const isOfList = current !== answered, before = lastMoved;
  lastMoved = count;
  if (!await change("teach", {taught: {answers: [...current.values()]}})) return void (lastMoved = before);
  current.clear();
  asked.length = queue.length = 0;
  if (!isOfList) return askKinds();
  current = answered;
  forget();
  teacher.close();
  $("#images").close();
}

/* As in a list of images: a click enlarges, or ticks in the mode for that; Enter enlarges. */
$("#teach-moves").addEventListener("change", event => tick([Number(event.target.value)], event.target.checked));
$("#teach-moves").addEventListener("click", event => {
  if (isSelecting || !event.target.matches(".picture")) return;
  event.preventDefault();
  openOne(Number(event.target.previousSibling.value), previewed());
});
whenTicked.push(() => {
  for (const input of $$("#teach-moves input")) input.checked = ticked.has(Number(input.value));
  if (teacher.open) offerPlaces();
});

/* Let images follow the answers of an open list: those that are right, and those that moved. */
function reviewList() {
  const given = [...[...right].map(row => [row, clusterOf(row)]), ...moved].map(([path, cluster]) => ({path, cluster}));
  const checked = seenNow().map(path => ({path, cluster: clusterOf(path), by: "checked"}));
  current = new Map([...checked, ...given].map(answer => [answer.path, answer]));
  review();
}

/* Moves whose followers are not wanted are moves alone. */
async function closeReview() {
  if (current === answered) return;
  current = answered;
  if (await applied()) $("#images").close();
}

function markRight(list) {
  for (const row of list) right.add(row);
  $("#moved").textContent = t("Right: {0}.", images(list.length));
  tick([]);
}
