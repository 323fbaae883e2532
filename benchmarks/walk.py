"""From the command to sorted folders: how long does a person wait, look and type until 95 % of her images are right?

    python benchmarks/walk.py DATA [--seeds 0 1 2] [--answers 10] [-k 29]

DATA has zip files of class folders (animals22.zip and the others of KINDS). A seed draws 29 kinds, 14 to 45 images of
each, 651 in all, enlarged to 1,600 px. A simulated person who knows the kinds fits them and looks at the served report
in chromium. She takes the proposed number of clusters that is nearest to hers, names the clusters and the pictures of
other kinds among those that *Teach* shows of each, answers --answers questions, checks the clusters one by one, names
those that she made, and sorts into folders.

results/walk.json gets a row for each seed and step: `waited`, the seconds between an action and the moment the page is
ready for the next one; `person`, her seconds by a keystroke model; keys; clicks; and `right`, the share of images whose
cluster has the name of their kind. A cluster without a name counts by the kind of most of its images.
"""

import argparse
import csv
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from common import save
from PIL import Image

IMAGES, COUNT, LEAST, MOST, SIDE = 651, 29, 14, 45, 1600
ENOUGH = 0.95
SPENT = ("waited", "person", "keys", "clicks")
KINDS = {  # a person's names for the class folders
    "animals22": "bear cat cow deer dog dolphin horse lion shark wolf",
    "canteen_food": "coffee=Coffee cookies=Cookie juice=Juice pasta=Pasta_with_cheese porridge=Porridge tea=Tea",
    "clothing": "dresses=dress hats=hat pants shirts=shirt shoes shorts",
    "flowers5": "daisies=daisy roses sunflowers tulips",
    "landscapes": "fields=bField houses=fResident industry=cIndustry parking=gParking river=dRiverLake woods=eForest",
    "scenes15": "bedroom coast kitchen mountains=mountain office suburb towers=tallbuilding",
    "sports22": "basketball chess football formula1 gymnastics motogp swimming tennis",
    "yoga5": "downdog=Downdog goddess=Goddess tree=Tree warrior=Warrior2",
}
# Seconds of the keystroke model of earlier trials by a script. A wrong image of a check takes a tap and its place.
FIRST_SCREEN, QUESTION, PREVIEW, FACE, TILE, PLACE = 20, 2.3, 8, 0.3, 0.45, 1.75
KEY, LETTER, CLICK = 0.35, 0.28, 1.1
AT_A_GLANCE = 8  # images of a check: if none of them is wrong, the less doubtful ones are not looked at
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
LOADED = "() => !window.isOld && document.readyState === 'complete'"
NEXT = """title => {
  const list = document.querySelector("#images"), now = document.querySelector("#images-title").innerText;
  return !list.open || now.replace(/ · [^·]*$/, "") !== title.replace(/ · [^·]*$/, "");
}"""
READY = """() => {
  const shown = name => !document.querySelector(`#teach-${name}`).hidden;
  if (!document.querySelector("#teach").open) return true;
  if (document.querySelector("#teach-title").textContent.endsWith("…")) return false;
  return shown("kind") || shown("review") || shown("ask") && document.querySelector("#teach-picture img");
}"""


def mixed(data: Path, folder: Path, seed: int) -> dict[str, str]:
    """Write the images of a seed into a folder, and return the kind of each by its name."""
    chance = random.Random(seed)
    entries = [(name, *entry.partition("=")[::2]) for name, some in KINDS.items() for entry in some.split()]
    files = {}
    for name, kind, own in chance.sample(entries, COUNT):
        with ZipFile(data / f"{name}.zip") as packed:
            inside = [one for one in packed.namelist() if one.startswith(f"{name}/{own or kind}/") and one[-1] != "/"]
            files[kind] = [packed.read(one) for one in chance.sample(inside, min(MOST, len(inside)))]
    sizes = dict.fromkeys(files, LEAST)
    share = {kind: chance.random() for kind in files}
    while sum(sizes.values()) < IMAGES:
        (kind,) = chance.choices([*share], [*share.values()])
        sizes[kind] += sizes[kind] < len(files[kind])
    pairs = [(kind, content) for kind, size in sizes.items() for content in files[kind][:size]]
    chance.shuffle(pairs)
    folder.mkdir()

    def enlarge(place: int, content: bytes) -> None:
        image = Image.open(BytesIO(content)).convert("RGB")
        scale = SIDE / max(image.size)
        large = image.resize((round(image.width * scale), round(image.height * scale)))
        large.save(folder / f"{place:03d}.jpg", quality=85)

    with ThreadPoolExecutor() as threads:
        list(threads.map(enlarge, range(IMAGES), [content for _, content in pairs]))
    return {f"{place:03d}.jpg": kind for place, (kind, _) in enumerate(pairs)}


@dataclass
class Person:
    """A person who knows the kind of each image, at a page, with the seconds, keys and clicks so far."""

    page: Any
    truth: dict[str, str]
    run: Path
    waited: float = 0
    person: float = 0
    keys: int = 0
    clicks: int = 0
    acted: float = 0  # the time of the last action

    def act(self) -> None:
        self.acted = time.perf_counter()

    def wait(self, ready: str = "true", arg: object = None) -> None:
        """Count the time from the last action until the page is ready."""
        self.page.wait_for_function(ready, arg=arg)
        self.waited += time.perf_counter() - self.acted

    def look(self, seconds: float) -> None:
        self.person += seconds

    def press(self, key: str, seconds: float = KEY) -> None:
        self.look(seconds)
        self.keys += 1
        self.act()
        self.page.keyboard.press(key)

    def write(self, text: str) -> None:
        for letter in text:
            self.press(letter, LETTER)

    def click(self, place: Any) -> None:
        self.look(CLICK)
        self.clicks += 1
        self.act()
        place.click()

    def leave(self) -> None:
        """Mark the page, so that LOADED waits for the next one."""
        self.page.evaluate("window.isOld = true")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def titles(self, selector: str) -> list[str]:
        return [place.get_attribute("title") for place in self.page.locator(selector).all()]

    def right(self) -> int:
        """Return the number of images whose cluster has the name of their kind."""
        with (self.run / "clusters.csv").open(newline="", encoding="utf-8") as file:
            rows = [(row["cluster"], row["name"], self.truth[row["path"]]) for row in csv.DictReader(file)]
        kinds: dict[str, Counter[str]] = {}
        for cluster, name, kind in rows:
            kinds.setdefault(name or cluster, Counter())[kind] += 1
        return sum(kind == (name or kinds[cluster].most_common(1)[0][0]) for cluster, name, kind in rows)


def choose_number(person: Person) -> None:
    """Make the proposed number of clusters that is nearest to the person's own."""
    present = person.page.locator(".cluster").count()
    proposed = [int(button.get_attribute("data-k")) for button in person.page.locator("button[data-k]").all()]
    best = min([present, *proposed], key=lambda number: abs(number - COUNT))
    if best != present:
        person.leave()
        person.click(person.page.locator(".plausible summary"))
        person.click(person.page.locator(f"button[data-k='{best}']"))
        person.wait(LOADED)


def name_clusters(person: Person) -> bool:
    """Name the clusters by the kind of most pictures that *Teach* shows, and tick and name those of other kinds before.

    Returns:
        If images followed such pictures.
    """
    person.click(person.page.locator("#teach-open"))
    person.wait(READY)
    while person.page.locator("#teach-kind").is_visible():
        faces = [person.truth[path] for path in person.titles("#teach-faces label")]
        person.look(FACE * len(faces))
        (own, _), *others = Counter(faces).most_common()
        for kind, _ in others:
            for face in (face for face, other in enumerate(faces) if other == kind):
                person.click(person.page.locator("#teach-faces label").nth(face))
            name_kind(person, kind)
        name_kind(person, own)
        person.wait(READY)
    is_preview = person.page.locator("#teach-review").is_visible()
    if is_preview:
        follow(person)
    return is_preview


def name_kind(person: Person, kind: str) -> None:
    """Name the ticked images, or the cluster."""
    hint = person.page.locator("#teach-hints button").get_by_text(kind, exact=True)
    if hint.count():
        person.click(hint)
    else:
        person.write(kind)
        person.press("Enter", LETTER)


def teach(person: Person) -> None:
    """Answer until a preview comes, and apply it."""
    while person.page.locator("#teach-ask").is_visible():
        kind = person.truth[person.text("#teach-about").split(" · ")[0]]
        offered = person.titles("#teach-likely button")
        person.look(QUESTION)
        if kind in offered:
            person.press(str(offered.index(kind) + 1))
        else:
            person.press("n")
            person.write(kind)
            person.press("Enter", LETTER)
        person.wait(READY)
    follow(person)


def follow(person: Person) -> None:
    """Apply a preview."""
    person.look(PREVIEW)
    person.press("Enter")
    person.wait(READY)


def check(person: Person) -> None:
    """Move the wrong images of one cluster after another to theirs, until enough are right; name new clusters."""
    page, missing, moved = person.page, ENOUGH * IMAGES - person.right(), 0
    made: dict[str, str] = {}
    person.leave()
    person.click(page.locator("#check-open"))
    while moved < missing and page.locator("#images").is_visible():
        page.locator("#images-grid .tile-of").first.wait_for()
        title = page.locator("#images-title").inner_text()
        own = title.split(" · ")[1]
        paths = person.titles("#images-grid .tile-of")
        kinds = [person.truth[path] for path in paths]
        seen = AT_A_GLANCE
        while {*kinds[seen - AT_A_GLANCE : seen]} - {own}:
            seen += AT_A_GLANCE
        person.look(TILE * len(kinds[:seen]))
        for kind in {*kinds[:seen]} - {own}:
            wrong = [path for path, other in zip(paths, kinds[:seen], strict=False) if other == kind]
            for path in wrong:
                person.click(page.locator(f'#images-grid [title="{path}"]'))
            move_to(person, kind, made)
            moved += len(wrong)
        person.press("n")
        person.wait(NEXT, title)
    if page.locator("#images").is_visible():
        person.press("Escape")
    person.wait(LOADED)
    if made:
        name_clusters(person)
        person.press("Escape")


def move_to(person: Person, kind: str, made: dict[str, str]) -> None:
    """Move the selected images to the cluster of a kind: by its digit, or by its name, or to a new one."""

    def targets() -> list[str]:
        return [title.rpartition(" · ")[2] for title in person.titles("#images .targets button")]

    person.look(PLACE)
    called, known = made.get(kind, kind), targets()
    if called in known:
        person.press(str(known.index(called) + 1))
        return
    person.click(person.page.locator("#images [data-ticked=move]"))
    entries = person.page.locator("#merge-list button span:nth-of-type(1)").all_inner_texts()
    if any(entry.split(" · ")[-1] == called for entry in entries):
        person.write(called.removeprefix("Cluster "))
    else:
        made[kind] = ""
    person.press("ArrowDown")  # to the first one, because Enter takes a name only if no other cluster has it
    person.press("Enter")
    person.wait("() => document.querySelector('#images-grid :focus')")
    if not made.get(kind, kind):
        (made[kind],) = {*targets()} - {*known}


def walk(person: Person, photos: Path, options: argparse.Namespace) -> Iterator[str]:
    """Walk from the command to sorted folders, and yield each step's name after it."""
    program = [sys.executable, "-m", "deepcluster"]
    number = ["-k", str(options.k)] if options.k else []
    person.act()
    subprocess.run([*program, "fit", photos, "-o", person.run, "-q", *number], check=True)
    person.wait()
    yield "fit"
    person.act()
    server = subprocess.Popen([*program, "report", person.run, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        yield from at_the_page(person, server, options.answers)
    finally:
        server.terminate()
        server.wait()


def at_the_page(person: Person, server: "subprocess.Popen[str]", answers: int) -> Iterator[str]:
    """Walk from the first screen of the served report to sorted folders."""
    assert server.stdout
    address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
    person.page.goto(address)
    person.wait()
    person.look(FIRST_SCREEN)
    yield "first screen"
    choose_number(person)
    yield "number"
    followed = name_clusters(person)
    yield "names"
    for _ in range(answers // 10):
        if person.right() < ENOUGH * IMAGES:
            teach(person)
            yield "10 answers"
    person.leave()
    person.press("Escape")
    if answers or followed:
        person.wait(LOADED)
    yield "close"
    if person.right() < ENOUGH * IMAGES:
        check(person)
        yield "check"
    person.click(person.page.locator("#into-folders"))
    person.press("Enter")
    person.wait("() => !document.querySelector('#sorted').hidden")
    yield "sort"


def measured(browser: Any, options: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the row of each step of a seed, and of their sum."""
    with TemporaryDirectory() as folder:
        photos, run = Path(folder, "photos"), Path(folder, "run")
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        # A page that was loaded takes no keys for half a second. She looks at it for longer, which is in her seconds.
        page.add_init_script("const wait = setTimeout; setTimeout = (call, ms) => wait(call, ms === 500 ? 0 : ms)")
        person = Person(page, mixed(options.data, photos, seed), run)
        before = dict.fromkeys(SPENT, 0.0)
        for step in walk(person, photos, options):
            now = {name: getattr(person, name) for name in SPENT}
            right = {"right": round(person.right() / IMAGES, 4)}
            yield {"seed": seed, "step": step, **{name: round(now[name] - before[name], 2) for name in SPENT}, **right}
            before = now
        yield {"seed": seed, "step": "sum", **{name: round(before[name], 1) for name in SPENT}, **right}
        page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-k", type=int, help="fit this number of clusters")
    parser.add_argument("--answers", type=int, default=0)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright  # of the extra dev, which --help does not need

    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for seed in options.seeds:
            for row in measured(browser, options, seed):
                print(row, flush=True)
                rows.append(row)
    save("walk", {"answers": options.answers, "runs": rows})


if __name__ == "__main__":
    main()
