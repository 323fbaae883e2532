"""From the command to sorted folders: how long does a person wait, look and type until 95 % of her images are right?

    python benchmarks/walk.py DATA [--kinds 29] [--seeds 21 22 23]

DATA has zip files of class folders. A seed draws 29 kinds of KINDS, 14 to 45 images of each, 651 in all, or (--kinds
55) 650 images of the 55 kinds of WHOLE; all are enlarged to 1,600 px. A simulated person who knows the kinds fits them
and walks the line of steps of the served report in chromium. She doubles the number of clusters while that comes nearer
to hers. She names the clusters; if several of the pictures that the page shows of one are of another kind, she ticks
and names those, and if all others are right, she says so. She checks kind after kind, row by row until a row has no
wrong image, moves the wrong ones, and sorts into folders.

results/walk_29.json and walk_55.json get a row for each seed and step: `waited`, the seconds between an action and the
moment the page is ready for the next one; `person`, her seconds by the model below; keys; clicks; and `right`, the
share of images whose cluster has the name of their kind. A cluster without a name counts by the kind of most of its
images.
"""

import argparse
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

from common import parser_of, save
from PIL import Image

from deepcluster.runs.run import read_run
from deepcluster.storage.run_folder import open_run

IMAGES, COUNT, LEAST, MOST, SIDE = 651, 29, 14, 45, 1600
WHOLE = {"animals22": 250, "canteen_food": 200, "scenes15": 200}  # images of all kinds of these
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
# Seconds of the model. A row is one of pictures, wherever it is shown.
FIRST_SCREEN, ROW, LETTER, KEY, CLICK = 12, 1.2, 0.28, 0.35, 1.1
SIGHT = 6  # rows of a preview of another number that are in sight
SEVERAL = 2  # pictures of another kind that she ticks and names; fewer wait for the check
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
IDLE = "() => !document.body.inert"
LISTED = """() => { const title = document.querySelector("#images-title").textContent;
  return !document.querySelector("#images").open || title !== window.titleBefore; }"""
NAMING = """() => !document.querySelector("#teach").open || !document.querySelector("#teach-review").hidden
  && !document.querySelector("#teach-title").textContent.endsWith("…")
  || !document.querySelector("#teach-kind").hidden && document.querySelector("#teach-kind-name").value === ""
  && document.querySelector("#teach-faces img") && !document.body.inert"""


def whole(data: Path, seed: int) -> list[tuple[str, bytes]]:
    """Return the kind and the content of the images of the mix of 55 kinds."""
    chance = random.Random(seed)
    pairs = []
    for name, count in WHOLE.items():
        with ZipFile(data / f"{name}.zip") as packed:
            inside = sorted(one for one in packed.namelist() if one.count("/") > 1 and one[-1] != "/")
            pairs += [(one.split("/")[1], packed.read(one)) for one in chance.sample(inside, count)]
    chance.shuffle(pairs)
    return pairs


def mixed(data: Path, seed: int) -> list[tuple[str, bytes]]:
    """Return the kind and the content of the images of a mix of 29 kinds."""
    chance = random.Random(seed)
    entries = [(name, *entry.partition("=")[::2]) for name, kinds in KINDS.items() for entry in kinds.split()]
    files = {}
    for name, kind, label in chance.sample(entries, COUNT):
        with ZipFile(data / f"{name}.zip") as packed:
            inside = [one for one in packed.namelist() if one.startswith(f"{name}/{label or kind}/") and one[-1] != "/"]
            files[kind] = [packed.read(one) for one in chance.sample(inside, min(MOST, len(inside)))]
    sizes = dict.fromkeys(files, LEAST)
    share = {kind: chance.random() for kind in files}
    while sum(sizes.values()) < IMAGES:
        (kind,) = chance.choices([*share], [*share.values()])
        sizes[kind] += sizes[kind] < len(files[kind])
    pairs = [(kind, content) for kind, size in sizes.items() for content in files[kind][:size]]
    chance.shuffle(pairs)
    return pairs


def written(pairs: list[tuple[str, bytes]], folder: Path) -> list[str]:
    """Write images into a folder, and return the kind of each by its row."""
    folder.mkdir()

    def enlarge(place: int, content: bytes) -> None:
        image = Image.open(BytesIO(content)).convert("RGB")
        scale = SIDE / max(image.size)
        large = image.resize((round(image.width * scale), round(image.height * scale)))
        large.save(folder / f"{place:03d}.jpg", quality=85)

    with ThreadPoolExecutor() as threads:
        list(threads.map(enlarge, range(len(pairs)), [content for _, content in pairs]))
    return [kind for kind, _ in pairs]


@dataclass
class Person:
    """A person who knows the kind of each image, at a page, with the seconds, keys and clicks so far."""

    page: Any
    truth: list[str]  # kinds by rows
    run: Path
    waited: float = 0
    person: float = 0
    keys: int = 0
    clicks: int = 0
    acted: float = 0  # the time of the last action

    def act(self) -> None:
        self.acted = time.perf_counter()

    def wait(self, ready: str = IDLE) -> None:
        """Count the time from the last action until the page is ready."""
        self.page.wait_for_function(ready)
        self.waited += time.perf_counter() - self.acted

    def look(self, rows: float) -> None:
        self.person += ROW * rows

    def press(self, key: str, seconds: float = KEY) -> None:
        self.person += seconds
        self.keys += 1
        self.act()
        self.page.keyboard.press(key)

    def click(self, place: Any, **options: Any) -> None:
        self.person += CLICK
        self.clicks += 1
        self.act()
        place.click(**options)

    def write(self, text: str, field: str) -> None:
        """Type a name until the field has it, which completes names in use."""
        for letter in text:
            self.press(letter, LETTER)
            value = self.page.locator(field).input_value()
            if value == text:
                break
        if value != text:  # a longer name completes it
            self.press("Delete", LETTER)

    def kinds(self, selector: str) -> list[str]:
        """Return the kinds of images, whose paths are their titles."""
        titles = self.page.locator(selector).evaluate_all("places => places.map(place => place.title)")
        return [self.truth[int(title[:3])] for title in titles]

    def right(self) -> int:
        """Return the number of images whose cluster has the name of their kind."""
        run = read_run(open_run(self.run))
        named = [
            (number, run.model.names[number], kind)
            for number, kind in zip(run.clusters.tolist(), self.truth, strict=True)
        ]
        kinds: dict[str, Counter[str]] = {}
        for number, name, kind in named:
            kinds.setdefault(name or str(number), Counter())[kind] += 1
        return sum(kind == (name or kinds[str(number)].most_common(1)[0][0]) for number, name, kind in named)

    def missing(self) -> float:
        return ENOUGH * len(self.truth) - self.right()


def choose_number(person: Person) -> None:
    """Double the number of clusters while that comes nearer to the number of kinds, by ratio."""
    page, kinds = person.page, len({*person.truth})
    finer = page.locator("#numbers button").last
    number = page.locator(".cluster").count()
    while (2 * number / kinds) * (number / kinds) < 1:
        person.click(finer)
        page.wait_for_function("() => document.querySelector('#number-title').textContent.endsWith('…')")
        person.wait("() => document.querySelector('#number-list li')")
        person.look(SIGHT)
        finer = page.locator("#number-bar button").last
        number *= 2
    if page.locator("#number").is_visible():
        person.press("Enter")
        page.locator("#number").wait_for(state="hidden")
        person.wait()


def name_clusters(person: Person) -> None:
    """Name the clusters by the kind of most pictures that the page shows, and tick and name several of another one."""
    page = person.page
    person.click(page.locator("#names-open"))
    person.wait(NAMING)
    while page.locator("#teach-kind").is_visible():
        before = page.locator("#teach-count").inner_text()
        faces = person.kinds("#teach-faces label")
        person.look(1)
        (commonest, _), *others = Counter(faces).most_common()
        for kind, count in others:
            if count < SEVERAL:
                continue
            for face in (face for face, other in enumerate(faces) if other == kind):
                person.click(page.locator("#teach-faces label").nth(face))
            name_kind(person, kind)
            person.wait(NAMING)
        name_kind(person, commonest, are_right=all(kind == commonest or count >= SEVERAL for kind, count in others))
        page.locator("#teach-count").get_by_text(before, exact=True).wait_for(state="hidden")
        person.wait(NAMING)
    if page.locator("#teach-review").is_visible():
        person.look(page.locator("#teach-moves li").count())
        person.press("Enter")
        page.locator("#teach").wait_for(state="hidden")
    page.locator("#images[open] .tile-of").first.wait_for()
    person.wait()


def name_kind(person: Person, kind: str, *, are_right: bool = False) -> None:
    """Name the ticked images, or the cluster, and say that its pictures are right."""
    hint = person.page.locator("#teach-hints button").get_by_text(kind, exact=True)
    if hint.count() and not are_right:
        person.click(hint)
    else:
        person.write(kind, "#teach-kind-name")
        person.press("Shift+Enter" if are_right else "Enter", LETTER)


def check(person: Person) -> None:
    """Move the wrong images of one kind after another to theirs, until enough are right."""
    page, missing, moved = person.page, person.missing(), 0
    while moved < missing and page.locator("#images").is_visible():
        page.locator("#images-grid .tile-of").first.wait_for()
        checked = page.locator("#images-title").inner_text().rpartition(" · ")[0]
        tiles = "#images-grid .tile-of"
        kinds = person.kinds(tiles)
        places = page.locator(tiles).evaluate_all("tiles => tiles.map(tile => [tile.style.transform, tile.title])")
        downs = [float(re.findall(r"[\d.]+", transform)[1]) for transform, _ in places]
        wrong: dict[str, list[str]] = {}
        for down in sorted({*downs}):
            row = [(kind, title) for kind, at, (_, title) in zip(kinds, downs, places, strict=True) if at == down]
            person.look(1)
            strangers = [(kind, title) for kind, title in row if kind != checked]
            for kind, title in strangers:
                wrong.setdefault(kind, []).append(title)
            if not strangers:
                break
        for kind, titles in wrong.items():
            for title in titles:
                person.click(page.locator(f'#images-grid [title="{title}"]'), position={"x": 50, "y": 50})
            move_to(person, kind)
            moved += len(titles)
        page.evaluate("window.titleBefore = document.querySelector('#images-title').textContent")
        person.press("n")
        person.wait(LISTED)
    if page.locator("#images").is_visible():
        person.press("Escape")
        page.locator("#images").wait_for(state="hidden")
    person.wait()


def move_to(person: Person, kind: str) -> None:
    """Move the selected images to a kind: by its digit, or by its name, which may be new."""
    page = person.page
    known = [
        title.rpartition(" · ")[2]
        for title in page.locator("#images .targets button").evaluate_all("all => all.map(one => one.title)")
    ]
    if kind in known:
        person.press(str(known.index(kind) + 1))
        return
    person.click(page.locator("#images [data-ticked=move]"))
    for letter in kind:
        person.press(letter, LETTER)
        if page.locator("#merge-filter").input_value() == kind:
            break
    person.press("Enter")
    page.wait_for_function("() => document.querySelector('#images-grid :focus')")


def walk(person: Person, photos: Path) -> Iterator[str]:
    """Walk from the command to sorted folders, and yield each step's name after it."""
    program = [sys.executable, "-m", "deepcluster"]
    person.act()
    subprocess.run([*program, "fit", photos, "-o", person.run, "-q"], check=True)
    person.waited += time.perf_counter() - person.acted
    yield "fit"
    person.act()
    server = subprocess.Popen([*program, "report", person.run, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        yield from at_the_page(person, server)
    finally:
        server.terminate()
        server.wait()


def at_the_page(person: Person, server: "subprocess.Popen[str]") -> Iterator[str]:
    """Walk from the first screen of the served report to sorted folders."""
    assert server.stdout
    address = next(url[0] for line in server.stdout if (url := re.search(r"http://\S+", line)))
    person.page.goto(address)
    person.wait()
    person.person += FIRST_SCREEN
    yield "first screen"
    choose_number(person)
    yield "number"
    name_clusters(person)
    yield "names"
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
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        pairs = (mixed if options.kinds == COUNT else whole)(options.data, seed)
        person = Person(page, written(pairs, photos), run)
        before = dict.fromkeys(SPENT, 0.0)
        for step in walk(person, photos):
            now = {name: getattr(person, name) for name in SPENT}
            right = {"right": round(person.right() / len(pairs), 4)}
            yield {"seed": seed, "step": step, **{name: round(now[name] - before[name], 2) for name in SPENT}, **right}
            before = now
        yield {"seed": seed, "step": "sum", **{name: round(before[name], 1) for name in SPENT}, **right}
        page.close()


def main() -> None:
    parser = parser_of(__doc__, seeds=(21, 22, 23))
    parser.add_argument("data", type=Path)
    parser.add_argument("--kinds", type=int, choices=(COUNT, 55), default=COUNT)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright  # of the extra dev, which --help does not need

    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for seed in options.seeds:
            for row in measured(browser, options, seed):
                print(row, flush=True)
                rows.append(row)
    save(f"walk_{options.kinds}", {"kinds": options.kinds, "runs": rows})


if __name__ == "__main__":
    main()
