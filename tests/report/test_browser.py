"""The report in a real browser: every tab, map, slider and edits, with no other request and no complaint.

Needs chromium and playwright (CONTRIBUTING.md); without them it is skipped.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepcluster.fitting import fit as runs
from deepcluster.fitting.plan import Request
from deepcluster.recipes.presets import read_request
from deepcluster.report import hints
from deepcluster.runs.apply import apply
from deepcluster.runs.condition import made_current
from deepcluster.runs.recut import recut
from deepcluster.runs.serve import redirecting
from deepcluster.runs.views import report as write_report
from deepcluster.runtime.tables import FORMULA, PATH, TEXT, guarded
from deepcluster.storage.edits_file import Edits
from deepcluster.texts import inert
from tests.helpers.names import FORMULAS, HARMLESS
from tests.helpers.report import page as page_of
from tests.helpers.report import row
from tests.helpers.runs import rows
from tests.helpers.serving import serving

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
HOSTILE = ["<img src=x onerror=alert(1)>.png", "<!--<script>alert(2)<b>.png", "=1+1.png"]
QUICK = {"backbone": "compact", "rounds": 2, "epochs": 1, "image_size": 16, "pseudo_labels": 12, "precision": "fp32"}
NAME = '"<b>Strand & Meer</b>" 🏖'
PARTS = ["clusters", "map", "problems", "run"]
TIMEOUT_MS = 60_000  # a busy machine is slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any,
    report: Path | str,
    originals: int = 0,
    loads: int = 1,
    refused: int = 0,
    **options: Any,
):
    """The report, or the page at an address, in a page of its own. Whatever it asks for or complains of fails the test
    at the end: it may ask for itself, as often as the test ``loads`` it, and for the files of the images that the test
    enlarges (or for as many actions of a server, of which some are ``refused``)."""
    address = report if isinstance(report, str) else report.as_uri()
    asked, said = [], []
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url[:200]))
    page.on("console", lambda message: said.append(f"{message.text} {message.location['url']}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    yield page
    context.close()
    pictures = (f"{address}thumb/", f"{address}sheet/")
    asked = [url for url in asked if not url.startswith(("data:", "blob:", *pictures))]
    assert asked.count(address) == loads and len(asked) == loads + originals
    assert len([text for text in said if "409 (Conflict)" in text or "net::ERR_" in text]) == len(said) == refused


def first_number(place: Any) -> int:
    text = place.inner_text()
    found = re.search(r"\d+", text)
    assert found, text
    return int(found[0])


def shown_part(page: Any) -> list[str]:
    return [part.get_attribute("id") for part in page.locator("main > .part").all() if part.is_visible()]


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def tiles_of(page: Any, number: int) -> Any:
    """Open all images of a cluster."""
    page.locator(f"#cluster-{number} .all").click()
    tiles = page.locator("#images-grid .tile-of")
    tiles.first.wait_for()
    return tiles


def from_menu(page: Any, number: int, act: str) -> None:
    page.locator(f"#cluster-{number} .menu summary").click()
    page.locator(f"#cluster-{number} [data-act={act}]").click()


def now(run: Path) -> list[dict[str, str]]:
    """Read clusters.csv, which a server makes when it rests."""
    made_current(run)
    return rows(run / "clusters.csv")


def rename(page: Any, name: str) -> None:
    """Type a name for the next cluster."""
    press(page, "j", "n")
    page.locator(".title:focus").wait_for()
    page.keyboard.insert_text(name)
    page.keyboard.press("Enter")


def name_of(page: Any, number: int) -> str:
    return page.locator(f"#cluster-{number} .title").input_value()


def wait_for_focus(page: Any, number: int) -> None:
    """Wait until a dialog that closes has given the focus back to a card: keys would go elsewhere, or lose it again."""
    page.locator(f"#cluster-{number}:focus").wait_for()


def saved(page: Any, button: str, path: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    download.value.save_as(path)
    return path


def refusing(page: Any) -> list[Any]:
    """Refuse all edits; the list collects them."""
    sent = []

    def refuse(route: Any) -> None:
        sent.append(route.request.post_data_json["edits"])
        route.fulfill(status=409, json={"error": "不", "outdated": False})

    page.route("**/apply", refuse)
    return sent


def lasso(page: Any, right: float, path: Path) -> list[dict[str, str]]:
    """Draw around the points from the left side to a share of the width, and save what is inside."""
    page.get_by_role("tab", name="Map").click()
    page.locator("#plane").scroll_into_view_if_needed()
    box = page.locator("#plane").bounding_box()
    for i, (x, y) in enumerate(((0.001, 0.001), (right, 0.001), (right, 0.999), (0.001, 0.999))):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    return rows(saved(page, "Save as CSV", path))


# Move over the whole map: a place of each text that is said of a point.
HOVER = """() => {
  const plane = document.querySelector("#plane"), tip = document.querySelector("#tip"), told = {};
  const box = plane.getBoundingClientRect();
  for (let x = box.left; x < box.right; x += 7) for (let y = box.top; y < box.bottom; y += 7) {
    plane.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y}));
    if (!tip.hidden) told[tip.innerText] = [x, y];
  }
  plane.dispatchEvent(new PointerEvent("pointerleave", {pointerType: "mouse"}));
  return told;
}"""


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = Path(shutil.copytree(photos, tmp_path_factory.mktemp("browser") / "photos"))
    for i, name in enumerate(HOSTILE):
        image = Image.open(images / "bars" / f"{i:02}.png")
        image.putpixel((0, 0), (0, 255, 0))  # an image that equals a moved one would move with it
        image.save(images / name)
    out = images.parent / "a run"
    runs.fit(images, Request(out=out, n_clusters=3, recipe=read_request(QUICK), labels="folders", seed=1))
    nouns = (f"{row['path']},daisy,{0.9 if row['cluster'] == '1' else 0.1}" for row in rows(out / "clusters.csv"))
    (out / "nouns.csv").write_text("\n".join(["path,noun,probability", *nouns]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hints, "MIN_HINTED", 5)
        write_report(out)
    return out


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


# Visible buttons of the file that have a text.
BUTTONS = """() => [...document.querySelectorAll("button:not(#legend *)")].filter(button => button.offsetParent)
  .map(button => button.innerText).filter(text => /[A-Za-z]/.test(text))"""
LOOKING = {"All", "Select", "Save", "Enlarge", "Clear"}


def assert_only_looking(page: Any) -> None:
    assert {text.split()[0] for text in page.evaluate(BUTTONS)} <= LOOKING


def test_a_small_run(copied: Path, browser: Any, tmp_path: Path) -> None:
    apply(copied, Edits(names={0: NAME}))
    table = rows(copied / "clusters.csv")
    with opened(browser, copied / "report.html") as page:
        parts = PARTS
        for tab, part in zip(page.get_by_role("tab").all(), parts, strict=True):
            tab.click()
            assert shown_part(page) == [part] and tab.get_attribute("aria-selected") == "true"
            assert page.locator("[role=tab][aria-selected=true]").count() == 1
        for key, part in (("ArrowRight", "clusters"), ("ArrowLeft", "run"), ("2", "map")):
            page.keyboard.press(key)
            assert shown_part(page) == [part]
        assert_only_looking(page)
        assert page.locator("#serve").inner_text() == "deepcluster report run --serve --open"
        page.locator("#tab-clusters").click()
        press(page, "j", "n", "m", "s", "x", "t", "u", "U")  # keys of the served page
        assert page.locator("dialog[open], .title, .junk").count() == 0
        assert page.locator("#cluster-1 .hints").inner_text().split() == ["perhaps", "daisy", "flower"]
        tiles_of(page, 0)
        assert_only_looking(page)
        page.keyboard.press("Escape")

        # The lasso around all: every path is listed as it is, and no cell begins as a formula does.
        listed = lasso(page, 0.999, tmp_path / "all.csv")
        assert [row["path"] for row in listed] == [table[int(row["row"])]["path"] for row in listed]
        assert len(listed) == len(table)
        assert "./=1+1.png" in {row["path"] for row in listed}
        assert {row["cluster"] for row in listed} == {"0", "1", "2"} and NAME in {row["name"] for row in listed}
        assert_only_looking(page)
        assert first_number(page.locator("#selected")) == len(table)
        tiles = page.locator("#selected-grid .tile-of[aria-selected=true]")
        assert HOSTILE[0] in [tile.get_attribute("title") for tile in tiles.all()]
        assert 0 < len(lasso(page, 0.5, tmp_path / "half.csv")) < len(table)

        # A point tells what it is; hostile names are text everywhere.
        page.get_by_role("button", name="Clear").click()
        assert not page.locator("#selection").is_visible()
        page.locator("#legend button").first.click()
        assert first_number(page.locator("#selected")) > 0
        told = page.evaluate(HOVER)
        assert all(any(name in text for text in told) for name in HOSTILE)
        assert all(re.search(r"Cluster [012]( · .*)?\n", text) for text in told)
        assert page.locator("img[src=x], main script, main b").count() == 0

        # A place without images says so.
        page.locator("#plane").hover(position={"x": 3, "y": 3})
        page.mouse.wheel(0, -4000)
        page.get_by_text("No image here").wait_for()
        page.get_by_role("button", name="All", exact=True).click()
        assert not page.locator("#nowhere").is_visible()

        page.locator("#tab-clusters").click()
        page.locator("#filter").fill("strand")
        assert [c.get_attribute("id") for c in page.locator(".cluster").all() if c.is_visible()] == ["cluster-0"]
        page.locator("#filter").press("j")  # a letter in a field is no command
        assert page.locator("#filter").input_value() == "strandj"
        page.locator("h1").click()
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()


# Texts typed in the dialog of cluster 0, and the cluster that each means: none for no number, no whole name, the
# name of two, or the cluster's own number.
TYPED = {
    "1": 1, " cluster 8": 8, "10": 10, "berge": 3, "Cluster 4 · Berge und Seen": 4,
    "": None, "ber": None, "Berge und Seen": None, "12": None, "0": None, "images": None, "01x": None,
}  # fmt: skip


@pytest.mark.slow
def test_a_cluster_is_merged_into_the_one_that_was_typed(copied: Path, browser: Any) -> None:
    """Not into the first of which a number of images, a longer number or a part of its name looks like it."""
    recut(copied, 12)
    names = ("Berge", "Berge und Seen", "1", "Berge und Seen")
    apply(copied, Edits(names=dict(zip(range(3, 7), names, strict=True))))
    count = len([number for number in TYPED.values() if number is not None])
    with opened(browser, serving(copied), originals=count, refused=count) as page:
        sent = refusing(page)
        for text, into in TYPED.items():
            from_menu(page, 0, "merge")
            page.locator("#merge-filter").fill(text)
            page.keyboard.press("Enter")
            assert page.locator("#merge").is_visible() is (into is None)
            if into is None:
                page.locator("#merge").get_by_role("button", name="Cancel").click()
            else:
                page.locator("#told").get_by_text("不").click()
                assert sent.pop()["merge"] == [[into, 0]]


def test_all_images_of_a_cluster_are_one_click_away(run: Path, browser: Any) -> None:
    table = rows(run / "clusters.csv")
    of_largest = [row | {"path": row["path"].removeprefix("./")} for row in table if row["cluster"] == "0"]
    with opened(browser, run / "report.html", originals=2) as page:
        page.locator("#cluster-0").get_by_role("button", name=f"All {len(of_largest)} images").click()
        tiles = page.locator("#images-grid .tile-of")
        tiles.first.wait_for()
        assert sorted(tile.get_attribute("title") for tile in tiles.all()) == sorted(row["path"] for row in of_largest)
        # By keys: walk, select, extend, enlarge, leaf, and back.
        press(page, "End", "Home", "ArrowRight", "Space", "Shift+ArrowRight")
        assert first_number(page.locator("#images .ticked-count")) == 2
        nearest = sorted(of_largest, key=lambda row: float(row["distance"]))
        assert tiles.nth(1).get_attribute("aria-selected") == "true"
        for key, place in (("Enter", 2), ("ArrowRight", 3)):
            page.keyboard.press(key)
            page.get_by_role("link", name="Open the original").wait_for()
            assert page.locator("#one-title").inner_text() == nearest[place]["path"]
            address = page.evaluate("decodeURIComponent(document.querySelector('#one-original').href)")
            assert address.endswith(f"/photos/{nearest[place]['path']}")
            assert page.locator("#one-ticked").is_checked() is (place == 2)
        assert page.locator("#alike li").count() == 8
        page.keyboard.press("Escape")
        page.locator("#images-order").select_option("far")
        assert tiles.first.get_attribute("title") == nearest[-1]["path"]
        page.keyboard.press("Escape")
        wait_for_focus(page, 0)
        assert not page.locator("#images").is_visible()
        # A word leads to its meaning.
        page.locator(".marks").click()
        assert shown_part(page) == ["run"] and page.locator("#word-borderline").is_visible()


def test_a_list_of_the_server_has_all_images_although_the_page_has_a_sample(
    copied: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(copied / "clusters.csv")
    monkeypatch.setattr("deepcluster.report.page.MAX_NAMES", sum(len(row["path"]) for row in table) // 3)
    own = [row | {"path": row["path"].removeprefix("./")} for row in table if row["cluster"] == "0"]
    sizes = Counter(row["cluster"] for row in table)
    with opened(browser, serving(copied), originals=7) as page:
        page.evaluate("document.querySelector('#images').style.width = '100vw'")
        tiles = tiles_of(page, 0)
        page.locator(f"#images-grid .tile-of[title='{own[0]['path']}']").wait_for()
        assert sorted(tile.get_attribute("title") for tile in tiles.all()) == sorted(row["path"] for row in own)
        assert not page.locator("#images-sample").is_visible()
        page.locator("#images-order").select_option("far")
        farthest = max(own, key=lambda row: float(row["distance"]))["path"]
        page.locator(f"#images-grid .tile-of[title='{farthest}']").and_(tiles.first).wait_for()
        page.locator("#images-grid [role=listbox]").focus()
        page.keyboard.press("Enter")
        page.locator("#one-title").get_by_text(farthest, exact=True).wait_for()
        page.locator("#alike li").first.wait_for()
        press(page, "Escape", "Escape")
        page.get_by_role("tab", name="Map").click()
        legend = page.locator("#legend button .quiet").all_inner_texts()
        assert legend == [str(sizes[number]) for number in sorted(sizes)]
        page.locator("#legend button").first.click()
        page.locator("#selected").get_by_text(f"{sizes['0']} images selected").wait_for()


def test_on_a_phone(run: Path, browser: Any) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with opened(browser, run / "report.html", **phone) as page:
        assert page.locator("#cluster-0 .sheet img").first.bounding_box()["y"] <= 200
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_an_edit_is_one_request_and_what_was_typed_stays_if_it_is_refused(copied: Path, browser: Any) -> None:
    for edits in (Edits(move=((0, 3),)), Edits(merge=((0, 3),))):  # number 3 has been given
        apply(copied, edits)
    row_of = {path["path"].removeprefix("./"): row for row, path in enumerate(rows(copied / "clusters.csv"))}
    done: list[Any] = []
    with opened(browser, serving(copied), originals=7, refused=6) as page:
        sent, told = refusing(page), page.locator("#told")

        def refused() -> None:
            told.get_by_text("不").wait_for()
            assert not page.evaluate("document.body.inert")
            told.click()

        rename(page, NAME)
        page.locator("#cluster-0 .title:focus").wait_for()
        refused()
        assert name_of(page, 0) == NAME
        page.locator("#cluster-0 .title").fill("")
        page.locator("#cluster-0 .call").click()
        page.keyboard.press("x")
        refused()
        assert page.locator(".junk").count() == 0
        page.locator("#cluster-2 .call").click()
        page.keyboard.press("m")
        page.locator("#merge-filter").fill("cluster 1")
        page.keyboard.press("Enter")
        refused()
        page.locator("#cluster-1 .size").click()
        page.keyboard.press("s")
        sizes = [int(text.split()[0]) for text in page.locator("#split-parts .quiet").all_inner_texts()]
        assert sum(sizes) == first_number(page.locator("#cluster-1 .size")) and sizes == sorted(sizes, reverse=True)
        page.locator("#split").get_by_role("button", name="Split").click()
        refused()
        page.locator("#cluster-1").get_by_role("button", name="daisy").click()
        refused()
        # A list stays open with its moves, until they are made.
        tiles = tiles_of(page, 0)
        moved = [tiles.nth(place).get_attribute("title") for place in (1, 3)]
        for place in (1, 3):
            tiles.nth(place).locator(".tick").click(force=True)
        page.locator("#images").get_by_role("button", name="Move to").click()
        page.locator("#merge-filter").fill("new ones")
        page.keyboard.press("Enter")
        page.locator("#images-grid :focus").wait_for()  # else Escape closes this dialog and not the one below
        page.keyboard.press("Escape")
        refused()
        assert page.locator("#images").is_visible() and page.locator("#images-undo").is_visible()
        assert page.evaluate("dispatchEvent(new Event('beforeunload', {cancelable: true}))") is False
        page.unroute("**/apply")
        page.locator("#images-close").click()
        told.get_by_text("2 images moved").wait_for()
        assert not page.locator("#images").is_visible()
        assert page.evaluate("dispatchEvent(new Event('beforeunload', {cancelable: true}))") is True
        # Out to a new cluster and back: nothing to do.
        page.locator("#cluster-0 .all").click()
        page.keyboard.press("Space")
        page.locator("#images").get_by_role("button", name="Move to").click()
        page.locator("#merge-list button").first.click()
        page.locator("#images-undo").click()
        page.keyboard.press("Escape")
        wait_for_focus(page, 0)
        done = sent
    cut = done[0]["cut"]
    moves = sorted([row_of[path], 4] for path in moved)
    words = [{name: value for name, value in edits.items() if name not in ("schema_version", "cut")} for edits in done]
    assert {edits["cut"] for edits in done} == {cut} and [row["cluster"] for row in now(copied)].count("4") == 2
    *words, moving = words
    assert words == [
        {"names": {"0": NAME}},
        {"junk": [0]},
        {"merge": [[1, 2]]},
        {"split": [[1, 2]]},
        {"names": {"1": "daisy"}},
    ]
    assert sorted(moving["move"]) == moves and moving["checked"] == [] and moving["names"] == {"4": "new ones"}


def test_when_the_server_is_gone_the_page_says_how_to_start_it(copied: Path, browser: Any) -> None:
    with opened(browser, serving(copied), originals=2, refused=1) as page:
        page.route("**/apply", lambda route: route.abort("connectionrefused"))
        title = page.locator("#cluster-0 .title")
        title.fill(NAME)
        title.press("Enter")
        told = page.locator("#told")
        told.get_by_text("The server does not answer").wait_for()
        assert "deepcluster report run --serve --open" in told.inner_text()
        page.unroute("**/apply")  # it was asleep
        title.press("Enter")
        told.get_by_text("Cluster 0 is now").wait_for()
        assert name_of(page, 0) == NAME


def test_sorting_asks_four_things_remembers_them_and_reads_the_folder_back(
    run: Path, copied: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other server of this machine is sent the choices; the path and the number left out stay on the page."""
    first, second = rows(copied / "clusters.csv")[:2]
    lines = [f"0,{each['path']},0.01" for each in (first, second)]
    (copied / "duplicates.csv").write_text("\n".join(["set,path,distance", *lines]))
    folders: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda folder: bool(folders.append(folder)) or len(folders) > 1)
    with opened(browser, serving(copied), originals=7, loads=2, refused=2) as page:
        page.get_by_role("tab", name="Problems").click()
        with Image.open(run.parent / "photos" / first["path"]) as image:
            told = page.locator("#problems .alike li").first.inner_text()
            assert "{} \N{MULTIPLICATION SIGN} {}, ".format(*image.size) in told
        page.get_by_role("button", name="Sort only the best").click()
        assert page.locator("#sort-best").is_checked()
        page.locator("#sorting").get_by_text("copies", exact=True).click()
        page.locator("#sort-name").fill("meine Bilder")
        page.locator("#sort-place").select_option("images")
        page.locator("#sort-apart").check()
        with page.expect_request("**/export") as request:
            page.keyboard.press("Enter")
        chosen = {"name": "meine Bilder", "place": "images", "mode": "copy"}
        chosen |= {"duplicates": "first", "outliers": "separate"}
        assert request.value.post_data_json["sorting"].items() >= chosen.items()
        told, out = page.locator("#sorted"), run.parent / "meine Bilder"
        told.get_by_text(f"{len(rows(run / 'clusters.csv')) - 1} images sorted").wait_for()
        assert str(out) in told.inner_text() and re.search(r"\b1 image ", told.inner_text())
        page.get_by_role("button", name="Open folder").click()
        page.locator("#told").get_by_text("no file manager").wait_for()
        with page.expect_response(lambda reply: reply.request.method == "POST"):
            page.get_by_role("button", name="Open folder").click()
        assert folders == [out.as_uri()] * 2
        page.locator("#tab-clusters").click()
        rename(page, NAME)
        page.locator("#told").get_by_text("Cluster 0 is now").wait_for()
        assert str(out) in told.inner_text()
        page.locator("#into-folders").click()
        assert not page.locator("#told").is_visible()  # behind a dialog
        page.reload()
        page.locator("#into-folders").click()
        assert page.locator("#sort-name").input_value() == "meine Bilder"
        assert page.locator("#sort-place").input_value() == "images"
        for place in ("#sort-best", "#sort-apart", "[name=copies][value='1']"):
            assert page.locator(place).is_checked(), place
        assert not page.context.cookies()
        page.locator("#sort-name").fill("elsewhere")
        page.get_by_role("button", name="Read it back").click()
        page.locator("#told").get_by_text("sort into it first").click()
        next(path for path in sorted(out.iterdir()) if path.name.startswith("001")).rename(out / "owls")
        page.locator("#into-folders").click()
        page.locator("#sort-name").fill("meine Bilder")
        page.get_by_role("button", name="Read it back").click()
        page.locator("#told").get_by_text("1 name").wait_for()
        assert name_of(page, 1) == "owls"
        page.locator("#undo").click()
        page.locator("#told").get_by_text("taken back").wait_for()
        assert name_of(page, 1) == ""
    shutil.rmtree(out)


# Words outside of names, codes and data that are no Chinese, in the texts and attributes of a page.
ENGLISH = r"""known => {
  const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const data = "[translate=no], script, style, code, kbd, option, .path, .tile-of, .name, #one-title, #alike, strong";
  while (walker.nextNode()) if (!walker.currentNode.parentElement.closest(data)) texts.push(walker.currentNode.data);
  for (const place of document.querySelectorAll("[title], [aria-label], [placeholder]")) {
    for (const name of ["title", "aria-label", "placeholder"]) {
      if (!place.closest(data + ", img, .targets")) texts.push(place.getAttribute(name) ?? "");
    }
  }
  return texts.filter(text => text.match(/[A-Za-z]{2,}/g)?.some(word => !known.split(' ').includes(word)));
}"""
KNOWN = "AMI ARI CSV JavaScript NMI UMAP Ward bars blob checks clusters csv duplicates ln photos"
KNOWN += " history predict reject skipped xmp"


def test_the_page_speaks_the_language_of_the_browser(run: Path, copied: Path, browser: Any) -> None:
    with opened(browser, run / "report.html", locale="zh-CN") as page:
        assert page.locator("#cluster-1 .hints").inner_text().split() == ["也许是", "雏菊", "花"]
        assert page.evaluate(ENGLISH, KNOWN) == []
    with opened(browser, serving(copied), originals=5, refused=3, locale="zh-CN") as page:
        sent, refused = refusing(page), page.locator("#told").get_by_text("不")
        assert page.evaluate(ENGLISH, KNOWN) == []
        from_menu(page, 2, "merge")
        page.locator("#merge-filter").fill("组 1")
        page.keyboard.press("Enter")
        refused.click()
        page.locator("#cluster-1").get_by_role("button", name="雏菊").click()
        refused.click()
        assert (sent[0]["merge"], sent[1]["names"]) == ([[1, 2]], {"1": "雏菊"})
        tiles_of(page, 1)
        page.keyboard.press("Space")
        page.locator("#images").get_by_role("button", name="移到…").click()
        page.locator("#merge-list button").first.click()
        page.locator("#images-grid :focus").wait_for()  # the dialog that closes gives it back, a moment later
        page.keyboard.press("Enter")
        page.locator("#one-original").wait_for()
        assert page.evaluate(ENGLISH, KNOWN) == []
        press(page, "Escape", "Escape")
        refused.click()
        page.locator("#images-undo").click()
        page.keyboard.press("Escape")
        from_menu(page, 0, "split")
        assert page.evaluate(ENGLISH, KNOWN) == []
        page.keyboard.press("Escape")
        from_menu(page, 0, "check")
        page.locator("#images-grid :focus").wait_for()
        assert page.evaluate(ENGLISH, KNOWN) == []
        page.keyboard.press("Escape")
        page.locator("#names-open").click()
        assert "什么" in page.locator("#teach-title").inner_text()
        assert page.evaluate(ENGLISH, KNOWN) == []
        page.keyboard.press("Escape")
        page.get_by_role("tab", name="地图").click()
        page.locator("#legend button").first.click()
        assert page.evaluate(ENGLISH, KNOWN) == []
        page.keyboard.press("1")
        page.locator("#number-open").click()
        page.locator("#number-list li").first.wait_for()
        assert page.evaluate(ENGLISH, KNOWN) == []
    with (copied / "images.csv").open("a") as file:
        file.write("a.png,skipped,cannot be decoded: truncated,,,,,\n")
    with opened(browser, serving(copied), originals=1, locale="zh-CN") as page:
        rename(page, "Close")  # a name is never translated
        page.locator("#told").get_by_text("组 0 现在叫 Close。").wait_for()
        assert page.locator("table.skipped td").last.text_content() == "无法解码: truncated"
        assert "训练" in page.locator(".facts").text_content()
        assert page.locator("#cluster-0 h3").inner_text().startswith("组 0") and name_of(page, 0) == "Close"
        assert page.evaluate(ENGLISH, f"{KNOWN} Close truncated") == []
    with opened(browser, run / "report.html", loads=2, locale="de-DE") as page:
        assert page.locator("html").get_attribute("lang") == "en"
        page.get_by_role("button", name="中文").click()  # by hand, in this tab
        page.locator("html[lang=zh-CN]").wait_for()
        assert page.evaluate(ENGLISH, KNOWN + " English") == []


def test_corrections_in_series_need_one_opening(copied: Path, browser: Any) -> None:
    """Three pictures to two clusters: open, order, tick and move, then a digit; applied when it closes."""
    before = {row["path"]: row["cluster"] for row in rows(copied / "clusters.csv")}
    with opened(browser, serving(copied), originals=3) as page:
        tiles, moved, offered = tiles_of(page, 0), page.locator("#moved"), page.locator("#merge-list button")
        page.locator("#images-order").select_option("far")
        far = [tiles.nth(place).get_attribute("title") for place in range(5)]
        page.locator("#images-grid [role=listbox]").focus()
        press(page, "ArrowRight", "Space")
        page.locator("#images").get_by_role("button", name="Move to").click()
        assert offered.count() == 3
        page.locator("#merge-filter").fill("dais")  # a part of a hint
        assert [button.get_attribute("value") for button in offered.all() if button.is_visible()] == ["1", "3"]
        page.locator("#merge-filter").fill("")
        page.locator("#merge-list").get_by_text("Cluster 2", exact=True).click()
        moved.get_by_text("1 image will move to cluster 2 ").wait_for()
        assert tiles.first.get_attribute("title") == far[0] and page.locator("#images-order").input_value() == "far"
        page.keyboard.press("1")  # the next picture, to the same cluster
        page.locator("#images .tile-of.at").and_(page.locator(f'[title="{far[3]}"]')).wait_for()
        page.keyboard.press("1")
        page.keyboard.press("Control+z")
        page.keyboard.press("Enter")
        assert page.locator("#one-title").inner_text() == far[3]
        page.locator(f'#one-place img[alt="{far[3]}"]').wait_for()  # else the move asks for the file again
        page.locator("#one-move").click()
        page.locator("#merge-list").get_by_text("Cluster 1 · perhaps daisy", exact=True).click()
        title = page.locator("#one-title")
        sync_api.expect(title).not_to_have_text(far[3], timeout=TIMEOUT_MS)  # after the event of a closed dialog
        assert page.locator("#one .targets").inner_text().split() == ["1", "cluster", "2", "2", "cluster", "1"]
        press(page, "Escape", "Escape")
        told = page.locator("#told")
        told.get_by_text("3 images moved").wait_for()
        assert "deepcluster" not in told.inner_text()
        after = {row["path"]: row["cluster"] for row in now(copied)}
        names = {path.removeprefix("./"): path for path in before}
        wanted = dict(zip((names[path] for path in (far[1], far[2], far[3])), "221", strict=True))
        assert after == before | wanted


def test_a_finer_or_coarser_number_shows_what_it_makes(copied: Path, browser: Any) -> None:
    with opened(browser, serving(copied), originals=7, refused=1) as page:
        told, title, faces = page.locator("#told"), page.locator("#number-title"), page.locator("#number-list li")
        assert page.locator("#numbers button").all_inner_texts() == ["Coarser: 2", "Finer: 6"]
        page.get_by_role("button", name="Finer: 6").click()
        title.get_by_text("6 clusters").wait_for()
        page.locator("#number").get_by_role("button", name="Finer: 12").click()
        title.get_by_text("12 clusters").wait_for()
        sizes = [first_number(face) for face in faces.all()]
        assert len(sizes) == 12 and sum(sizes) == len(rows(copied / "clusters.csv"))
        assert {face.locator("img").count() for face in faces.all()} <= {1, 2, 3, 4} and not page.locator(
            "#undo"
        ).is_visible()
        page.keyboard.press("Enter")
        told.get_by_text("12 clusters of").wait_for()
        made = sorted((first_number(size) for size in page.locator(".cluster .size").all()), reverse=True)
        assert made == sizes and not page.locator("#number").is_visible()
        page.locator("#undo").click()
        told.get_by_text("taken back: 3 clusters").wait_for()
        rename(page, NAME)
        told.get_by_text("is now").wait_for()
        assert not page.locator("#numbers").is_visible()  # the steps have it from now on
        page.locator("#number-open").click()
        title.get_by_text("6 clusters").wait_for()
        assert NAME in page.locator("#number-list").inner_text()
        page.locator("#k").fill("400")
        page.keyboard.press("Enter")
        told.get_by_text("400").wait_for()
        assert page.locator("#recut-now").is_disabled()


def test_edits_in_series_by_keys_and_back_to_any_of_them(copied: Path, browser: Any) -> None:
    """Names in series need no load, and the list takes back several edits."""
    with opened(browser, serving(copied), originals=6) as page:
        told = page.locator("#told")
        for number, name in enumerate((NAME, "two", "three")):
            rename(page, name)
            told.get_by_text(f"Cluster {number} is now").wait_for()
        assert [name_of(page, i) for i in range(3)] == [NAME, "two", "three"]
        assert {row["name"] for row in now(copied)} == {NAME, "two", "three"}
        page.keyboard.press("U")
        changes = page.locator("#history-list button")
        lines = [text.split("\n") for text in changes.all_inner_texts()]
        assert [line[0] for line in lines] == ["1 name: three", "1 name: two", f"1 name: {NAME}"]
        assert all(re.search(r"\d:\d\d\s[AP]M$", line[1]) for line in lines)
        assert page.locator("#history-list :not(img).picture").count() == 0  # each has a picture
        changes.nth(1).press("Enter")
        told.get_by_text("taken back").wait_for()
        assert [name_of(page, i) for i in range(3)] == [NAME, "", ""]
        page.locator("#redo").click()
        told.get_by_text("made again").wait_for()
        assert [name_of(page, i) for i in range(3)] == [NAME, "two", ""]
        page.locator("#history-open").click()
        assert changes.count() == 2
        first = page.locator("#history-first")
        first.click()  # asks, and does nothing yet
        assert first.inner_text() == "Take back all changes: 2"
        first.click()
        told.get_by_text("taken back").wait_for()
        assert [name_of(page, i) for i in range(3)] == ["", "", ""]


def test_clusters_of_one_name_are_a_kind_with_one_card_one_list_and_one_digit(copied: Path, browser: Any) -> None:
    recut(copied, 6)
    sizes = Counter(row["cluster"] for row in rows(copied / "clusters.csv"))
    apply(copied, Edits(names={1: "twins", 4: "twins", 2: "other"}, junk=(5,)))
    with opened(browser, serving(copied), originals=1) as page:
        kind, steps = page.locator(".kind"), page.locator("#path button span")
        both = sizes["1"] + sizes["4"]
        assert [each.get_attribute("data-number") for each in kind.locator(".cluster").all()] == ["1", "4"]
        assert (
            f"2 clusters · {both} images" in kind.inner_text()
            and "2 kinds · 6 clusters" in page.locator("#counts").inner_text()
        )
        assert steps.all_inner_texts() == ["6", "4 of 6", "0 of 4", ""]  # junk is left out
        page.locator("#cluster-4").locator("[data-act=check]").evaluate("button => button.click()")
        page.locator("#images-title").get_by_text(f"twins · {both} images").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("tab", name="Map").click()
        assert page.locator("#legend button").get_by_text("twins").count() == 1
        page.locator("#tab-clusters").click()
        page.get_by_role("button", name="Make one cluster of them").click()
        page.locator("#told").get_by_text("1 merge").wait_for()
        assert kind.count() == 0 and first_number(page.locator("#cluster-1 .size")) == both
    with opened(browser, copied / "report.html") as page:
        assert page.locator("#path").is_hidden() and page.locator(".kind").count() in (0, 1)


def test_an_old_page_is_refused_and_says_so(copied: Path, browser: Any) -> None:
    with opened(browser, serving(copied), originals=2, loads=2, refused=1) as page:
        apply(copied, Edits(names={0: "one"}))
        page.locator("#cluster-0 .sheet [data-row]").last.click()  # images are the same
        page.locator("#one-original").wait_for()
        page.keyboard.press("Escape")
        rename(page, NAME)
        page.locator("#told").get_by_text("reload the page").wait_for()
        page.reload()
        assert name_of(page, 0) == "one"


def test_questions_are_answered_by_keys_and_others_follow_when_that_is_applied(copied: Path, browser: Any) -> None:
    clusters = {row["path"]: int(row["cluster"]) for row in rows(copied / "clusters.csv")}
    with opened(browser, serving(copied), originals=23) as page:
        previews: list[Any] = []
        page.on("response", lambda response: response.url.endswith("/preview") and previews.append(response))
        page.keyboard.press("t")
        for left in (3, 2, 1):  # clusters without a name, the largest first
            page.locator("#teach-count").get_by_text(f"{left} without a name").wait_for()
            number = int(page.locator("#teach-kind-name").get_attribute("data-number"))
            kinds = Counter(path.partition("/")[0] for path, cluster in clusters.items() if cluster == number)
            page.keyboard.insert_text(kinds.most_common(1)[0][0])
            page.keyboard.press("Enter")
        about = page.locator("#teach-about")
        about.get_by_text("now in").wait_for()
        first = about.inner_text()
        press(page, "s", "1", "z", "z")  # skipped, answered, and both back
        about.get_by_text(first, exact=True).wait_for()
        given: dict[str, str] = {}  # the kind of each image as its name, by a digit if that is there
        while len(given) < 10:
            page.locator("#teach-count").get_by_text(f"Answers: {len(given)}", exact=True).wait_for()
            path = about.inner_text().partition(" · ")[0]
            given[path] = path.rpartition("/")[0] or "=odd"
            names = [button.get_attribute("title") for button in page.locator("#teach-likely button").all()]
            if given[path] in names:
                page.keyboard.press(str(names.index(given[path]) + 1))
            else:
                page.keyboard.press("n")
                page.keyboard.insert_text(given[path])
                page.keyboard.press("Enter")
        title = page.locator("#teach-title")
        title.get_by_text("would move").wait_for()
        # A picture of the preview is enlarged as in a list, and only looked at.
        ticks, enlarged = page.locator("#teach-moves input"), page.locator("#one-title")
        for enlarge in (page.locator("#teach-moves .picture").first.click, partial(ticks.first.press, "Enter")):
            enlarge()
            assert enlarged.is_visible() and enlarged.inner_text() == ticks.first.get_attribute("aria-label")
            assert not page.locator("#one-move").is_visible() and not page.locator("#one .targets").is_visible()
            page.keyboard.press("Escape")
            assert not ticks.first.is_checked()
        # The cluster of wrong ones, by a digit or by its name.
        for way in ("digit", "move"):
            title.get_by_text("would move").wait_for()
            seen, row = previews[-1].json(), int(ticks.last.get_attribute("value"))
            ticks.last.check()
            place = page.locator("#teach-places button").first.get_attribute("title")
            with page.expect_request("**/preview") as request:
                if way == "digit":
                    page.keyboard.press("1")
                else:
                    page.get_by_role("button", name="Move to").click()
                    page.locator("#merge-filter").fill(place)
                    page.keyboard.press("Enter")
            assert {"path": row, "cluster": seen["names"].index(place)} in request.value.post_data_json["taught"][
                "answers"
            ]
            request.value.response().finished()
        title.get_by_text("would move").wait_for()
        count = first_number(title)
        with page.expect_request("**/teach") as request:
            page.keyboard.press("Enter")
        answers = request.value.post_data_json["taught"]["answers"]
        assert len(answers) >= len(given) and sum(answer.get("by") == "drawn" for answer in answers) >= 2
        page.locator("#teach-progress").get_by_text(f"{len(answers)} answers").wait_for()
        about.get_by_text("now in").wait_for()  # the next questions
        page.locator("#teach-count").get_by_text("Answers: 0", exact=True).wait_for()
        assert page.locator(".cluster").count() == len({row["cluster"] for row in now(copied)}) > 3
        page.keyboard.press("Escape")
        page.locator("#told").get_by_text(f"{count} images changed").wait_for()


def test_images_of_another_kind_are_named_with_their_cluster(copied: Path, browser: Any) -> None:
    """The name of ticked images is an answer, which another change does not lose. The images beside them are none,
    unless she says so: a stranger may have been overlooked."""
    with opened(browser, serving(copied), originals=5) as page:
        faces, title = page.locator("#teach-faces li:not([hidden]) label"), page.locator("#teach-title")
        field, count = page.locator("#teach-kind-name"), page.locator("#teach-count")

        def name(text: str, then: str) -> None:
            page.keyboard.insert_text(text)
            page.keyboard.press("Enter")
            count.or_(title).get_by_text(then).first.wait_for()

        page.locator("#names-open").click()
        odd = [faces.nth(place).get_attribute("title") for place in (0, 2)]
        for place in (0, 2):
            faces.nth(place).click()
        assert title.inner_text() == "What are the ticked images?"
        name("odd", "What is this cluster?")
        assert faces.count() > 1 and not {face.get_attribute("title") for face in faces.all()} & {*odd}
        name("first", "2 without a name")
        for face in faces.all():
            face.click()
        assert title.inner_text() == "What is this cluster?"  # if all are ticked, none is of another kind
        name("second", "1 without a name")
        paths = [row["path"].removeprefix("./") for row in rows(copied / "clusters.csv")]
        named = [{"path": paths.index(path), "name": "odd"} for path in odd]
        third = int(field.get_attribute("data-number"))
        # First letters complete a name in use; another letter goes on, and a digit is the name of a likely kind.
        likely = [button.get_attribute("title") for button in page.locator("#teach-kinds button").all()]
        assert sorted(likely) == ["first", "second"]
        for typed, value in (("f", "first"), ("a", "fa"), ("Backspace", "f"), ("Backspace", ""), ("S", "Second")):
            page.keyboard.press(typed)
            assert field.input_value() == value
        press(page, "Backspace", "Backspace")
        faces.first.click()
        press(page, str(likely.index("second") + 1))  # of the ticked image
        title.get_by_text("What is this cluster?").wait_for()
        left = [paths.index(face.get_attribute("title")) for face in faces.all()]
        with page.expect_request("**/preview") as request:
            press(page, "s", "Shift+Enter")
            title.get_by_text("would move").wait_for()
        ticked, *right = request.value.post_data_json["taught"]["answers"][len(named) :]
        assert ticked["name"] == "second" and right == [{"path": row, "cluster": third} for row in left]
        assert (
            len(page.locator("#teach-moves strong").all())
            == len({*page.locator("#teach-moves strong").all_inner_texts()})
            <= 3
        )
        assert not page.locator("#told").is_visible()  # behind the dialog
        page.keyboard.press("Enter")
        page.locator("#images-title").get_by_text("image").wait_for()  # the way goes on to the check
        page.keyboard.press("Escape")
        after = {row["path"].removeprefix("./"): row for row in now(copied)}
        assert all(after[path]["name"] == "odd" and after[path]["by"] == "answer" for path in odd)
        assert {row["name"] for row in after.values()} == {"odd", "first", "second"}


def test_the_way_on_from_the_names_is_a_check_or_questions_if_the_images_are_too_many(
    copied: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(copied, Edits(names={0: "first", 1: "second", 2: "third"}))
    with opened(browser, serving(copied)) as page:
        step = page.locator("#check-open")
        assert step.inner_text() == "Check 0 of 3" and step.get_attribute("aria-current") == "step"
        page.locator("#names-open").click()
        page.locator("#images-title").get_by_text("images").wait_for()
        page.keyboard.press("Escape")
    monkeypatch.setattr("deepcluster.runs.serve.MAX_CHECKED", 10)
    with opened(browser, serving(copied), originals=4) as page:
        assert page.locator(
            "#check-open"
        ).inner_text() == "Questions 0 answers" and "too many to check" in page.locator("#check-open").get_attribute(
            "title"
        )
        page.locator("#check-open").click()
        page.locator("#teach-about").get_by_text("now in").wait_for()


def test_applied_answers_are_gone_and_refused_ones_stay(copied: Path, browser: Any) -> None:
    """They would be taught again. Clusters of one name have one digit."""
    apply(copied, Edits(names={0: "first", 1: "twins", 2: "twins"}))
    with opened(browser, serving(copied), originals=10, refused=1) as page:
        page.route("**/teach", lambda lesson: lesson.fulfill(status=409, json={"error": "不"}))
        count, likely = page.locator("#teach-count"), page.locator("#teach-likely button")
        page.keyboard.press("t")
        likely.first.wait_for()
        assert sorted(button.get_attribute("title") for button in likely.all()) == ["first", "twins"]
        page.keyboard.press("1")
        count.get_by_text("Answers: 1", exact=True).wait_for()
        page.get_by_role("button", name="What follows").click()
        page.locator("#teach-title").get_by_text("would move").wait_for()
        page.keyboard.press("Enter")
        page.locator("#teach #told").get_by_text("不").click()
        count.get_by_text("Answers: 1", exact=True).wait_for()
        page.unroute("**/teach")
        page.route("**/ask", lambda more: more.fulfill(json={"questions": [[], []]}))
        page.locator("[data-teach=apply]").click()
        page.locator("#progress-text").get_by_text("1 answer").wait_for()


def test_doubtful_images_of_one_kind_after_another_are_checked(copied: Path, browser: Any) -> None:
    """A click marks a wrong image, a digit moves it, also to a new kind; N is the next. It is applied at the end."""
    apply(copied, Edits(names={1: "twins", 2: "twins"}))
    before = {row["path"].removeprefix("./"): row for row in rows(copied / "clusters.csv")}
    with opened(browser, serving(copied), originals=1) as page:
        title, about, targets = (page.locator(f"#images{place}") for place in ("-title", "-about", " .targets button"))
        press(page, "j", "c")
        title.get_by_text("Cluster 0").wait_for()
        assert about.inner_text() == "2 left to check" and targets.count() == 1  # kinds
        moved = {}
        for place, (kind, target) in enumerate(((["0"], "owls"), (["1", "2"], "owls"))):
            wrong = page.locator("#images-grid .tile-of").first
            path = wrong.get_attribute("title")
            own = [float(row["margin"]) for row in before.values() if row["cluster"] in kind]
            assert float(before[path]["margin"]) == min(own)
            wrong.click(position={"x": 40, "y": 40})  # not on its corner alone
            moved[path] = target
            if place:
                press(page, str([button.inner_text().split()[-1] for button in targets.all()].index("owls") + 1))
            else:
                page.locator("#images [data-ticked=move]").click()
                page.locator("#merge-filter").fill(target)  # a new kind
                page.keyboard.press("Enter")
            page.locator("#moved").get_by_text("1 image will move to cluster 3 · owls").wait_for()
            page.keyboard.press("n")
            (page.locator("#told") if place else title).get_by_text("2 images moved" if place else "twins").wait_for()
        # It is remembered: all other images were seen and left.
        assert page.locator("#check-open").inner_text() == "Check 3 of 3"
        table = now(copied)
        after = {row["path"].removeprefix("./"): row for row in table}
        assert {path: after[path]["name"] for path in moved} == moved
        assert Counter(row["by"] for row in table) == {"answer": 2, "checked": len(table) - 2}


def test_the_check_goes_on_behind_a_cluster_that_it_has_emptied(copied: Path, browser: Any) -> None:
    apply(copied, Edits(names={0: "a", 1: "gone", 2: "c"}))
    sizes = Counter(row["cluster"] for row in rows(copied / "clusters.csv"))
    with opened(browser, serving(copied), originals=1) as page:
        press(page, "j", "j", "c")
        title = page.locator("#images-title")
        title.get_by_text("gone").wait_for()
        page.keyboard.press("Control+a")
        page.locator("#images [data-ticked=move]").click()
        press(page, "a", "Enter")
        page.locator("#images-grid :focus").wait_for(state="attached")
        for left in ("2 left to check", "1 left to check"):
            page.keyboard.press("n")
            page.locator("#images-about").get_by_text(left).wait_for()
        page.keyboard.press("n")
        page.locator("#told").get_by_text(f"{sizes['1']} images moved").wait_for()
    assert not [row for row in now(copied) if row["cluster"] == "1"]


def test_an_empty_filter_says_so(run: Path, browser: Any) -> None:
    with opened(browser, run / "report.html") as page:
        page.locator("#filter").fill("zzz")
        assert page.locator("#filtered").inner_text() == "No cluster is called zzz"


def test_a_file_leads_the_browser_to_the_server(copied: Path, browser: Any) -> None:
    address = serving(copied)
    with redirecting(copied, address) as file:
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(file.as_uri())
        page.wait_for_url(address)
        page.close()


def test_a_saved_table_guards_its_cells_as_the_program_does(browser: Any, tmp_path: Path) -> None:
    cells = [*FORMULAS, *HARMLESS]
    table = [row(f" ={i}.png", label=cell) for i, cell in enumerate(cells)]
    (tmp_path / "report.html").write_text(page_of(clusters=table, sheet=b"RIFF    WEBP")[0], encoding="utf-8")
    with opened(browser, tmp_path / "report.html") as page:
        tiles_of(page, 0)
        listed = rows(saved(page, "Save as CSV", tmp_path / "selection.csv"))
        assert {line["path"] for line in listed} == {f"./ ={i}.png" for i in range(len(cells))}
        assert {line["label"] for line in listed} == {guarded({"label": inert(cell)})["label"] for cell in cells}
        script = "cells => Object.values(JSON.parse(document.querySelector('#data').textContent).formulas)"
        script += ".map(pattern => cells.map(cell => new RegExp(pattern, 'u').test(cell)))"
        assert page.evaluate(script, cells) == [[bool(FORMULA[g].match(cell)) for cell in cells] for g in (PATH, TEXT)]


def test_without_script_everything_can_be_read(run: Path, browser: Any) -> None:
    with opened(browser, run / "report.html", java_script_enabled=False) as page:
        assert shown_part(page) == PARTS
        assert all(card.is_visible() for card in page.locator(".cluster").all())
        assert page.locator("#serve").inner_text() == "deepcluster report 'a run' --serve --open"
        assert not any(button.is_visible() for button in page.locator("button, select, canvas, input").all())
        assert page.locator("img").evaluate_all("images => images.every(image => image.alt)")
