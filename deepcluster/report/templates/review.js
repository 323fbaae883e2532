/* ---- the third part of teaching: what follows from the answers ------------------------------------------------------------ */
// takes: data, $, grouped, element, $$ (report.js); t, images, translated (language.js)
//   library, placedOf, clusterOf, base, isPresent, present, ofKinds (clusters.js); tick, isSelecting, whenTicked, ticked (grid.js); openOne (one.js)
//   lastMoved, change (change.js); choose, nextFree (choose.js)
//   teacher, part, choices, inquire, tickable, answered, offer (teach.js); askKinds (naming.js); asked, queue (questions.js)

let goals = new Map(), count = 0;  /* the kinds of shown images after the answers, and how many images move */

async function review() {
  if (!answered.size && !data.served.answers) return teacher.close();
  part("review", t("Looking…"));
  choices = [];
  $("#teach-moves").replaceChildren();
  tick([]);
  const {moves, names, quality} = await inquire("preview") ?? {};
  if (!moves || !teacher.open) return;
  goals = new Map(moves.flatMap(([to, , rows]) => rows.map(row => [row, to])));
  await library.facts([...goals.keys()]);
  count = moves.reduce((sum, [, moving]) => sum + moving, 0);
  const called = number => names[number] || t("cluster {0}", number);
  $("#teach-title").textContent = t("{0} would move", images(count)) + (moves.length > 1 ? ` · ${t("into {0} kinds", moves.length)}` : "");
  $("#teach-progress").textContent = translated([quality]).join("");
  $("#teach-moves").replaceChildren(...moves.map(([to, moving, shown]) => {
    const faces = shown.map(row => tickable(row, 64));
    const rest = moving > shown.length ? [t("and {0} more", grouped(moving - shown.length))] : [];
    return element("li", {}, element("strong", {}, `${called(to)} ← ${images(moving)}`), element("span", {className: "row"}, ...faces, ...rest));
  }));
  offerPlaces();
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
  for (const row of wrong()) answered.set(row, {path: row, cluster});
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
  const before = lastMoved;
  lastMoved = count;
  if (!await change("teach", {taught: {answers: [...answered.values()]}})) return void (lastMoved = before);
  answered.clear();
  asked.length = queue.length = 0;
  askKinds();
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
