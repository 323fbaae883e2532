/* ---- the tabs, which are the parts of the page -------------------------------------------------------------------- */
// takes: $$, $ (report.js); mind (cards.js)

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
  if (target.matches(".cluster")) mind(Number(target.dataset.number), false);
  target.scrollIntoView();
}
