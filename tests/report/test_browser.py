"""The report in a real browser: every tab, map, slider and edits, with no other request and no complaint."""

import re
import shutil
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepcluster.fitting import fit as runs
from deepcluster.fitting.plan import Request
from deepcluster.recipes.presets import read_request
from deepcluster.runs.apply import apply
from deepcluster.runs.condition import made_current
from deepcluster.runs.recut import recut
from deepcluster.runs.serve import redirecting
from deepcluster.runs.views import report as write_report
from deepcluster.runtime.tables import FORMULA, PATH, TEXT, guarded
from deepcluster.storage.edits_file import Edits
from deepcluster.texts import inert
from tests.helpers.browsing import (
    Cards,
    Check,
    Teach,
    choose,
    dialogs,
    enter,
    first_number,
    opened,
    parts,
    press,
    shown_part,
    titles,
)
from tests.helpers.names import FORMULAS, HARMLESS
from tests.helpers.report import page as page_of
from tests.helpers.report import row
from tests.helpers.runs import rows
from tests.helpers.serving import serving

HOSTILE = ["<img src=x onerror=alert(1)>.png", "<!--<script>alert(2)<b>.png", "=1+1.png"]
QUICK = {"backbone": "compact", "rounds": 2, "epochs": 1, "image_size": 16, "pseudo_labels": 12, "precision": "fp32"}
NAME = '"<b>Strand & Meer</b>" 🏖'
PARTS = ["clusters", "map", "problems", "run"]


def now(run: Path) -> list[dict[str, str]]:
    """Read clusters.csv, which a server makes when it rests."""
    made_current(run)
    return table_of(run)


def table_of(run: Path) -> list[dict[str, str]]:
    """Return the rows of clusters.csv, with the paths that the page shows."""
    return [row | {"path": row["path"].removeprefix("./")} for row in rows(run / "clusters.csv")]


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
  const plane = document.querySelector("#plane"), tip = document.querySelector("#tip"), places = {};
  const box = plane.getBoundingClientRect();
  for (let x = box.left; x < box.right; x += 7) for (let y = box.top; y < box.bottom; y += 7) {
    plane.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y}));
    if (!tip.hidden) places[tip.innerText] = [x, y];
  }
  plane.dispatchEvent(new PointerEvent("pointerleave", {pointerType: "mouse"}));
  return places;
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
        for tab, part in zip(page.get_by_role("tab").all(), PARTS, strict=True):
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
        assert page.locator("dialog[open], .title, .junk").count() == 0 and page.locator("#path").is_hidden()
        assert page.locator("#cluster-1 .hints").inner_text().split() == ["perhaps", "daisy", "flower"]
        Cards(page).all_images(0)
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
        assert HOSTILE[0] in titles(tiles)
        assert 0 < len(lasso(page, 0.5, tmp_path / "half.csv")) < len(table)

        # A point tells what it is; hostile names are text everywhere.
        page.get_by_role("button", name="Clear").click()
        assert not page.locator("#selection").is_visible()
        page.locator("#legend button").first.click()
        assert first_number(page.locator("#selected")) > 0
        texts = page.evaluate(HOVER)
        assert all(any(name in text for text in texts) for name in HOSTILE)
        assert all(re.search(r"Cluster [012]( · .*)?\n", text) for text in texts)
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
        assert page.locator("#filtered").inner_text() == "No cluster is called strandj"
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
        sent, cards = refusing(page), Cards(page)
        for text, into in TYPED.items():
            cards.merge(0, text)
            assert page.locator("#merge").is_visible() is (into is None)
            if into is None:
                page.locator("#merge").get_by_role("button", name="Cancel").click()
            else:
                cards.hears("不").click()
                assert sent.pop()["merge"] == [[into, 0]]


def test_all_images_of_a_cluster_are_one_click_away(run: Path, browser: Any) -> None:
    of_largest = [row for row in table_of(run) if row["cluster"] == "0"]
    nearest = [row["path"] for row in sorted(of_largest, key=lambda row: float(row["distance"]))]
    with opened(browser, run / "report.html", originals=2) as page:
        assert page.locator("#cluster-0 .all").inner_text() == f"All {len(of_largest)} images"
        images = Cards(page).all_images(0)
        assert sorted(titles(images.tiles)) == sorted(nearest)
        # By keys: walk, select, extend, enlarge, leaf, and back.
        press(page, "End", "Home", "ArrowRight", "Space", "Shift+ArrowRight")
        assert first_number(page.locator("#images .ticked-count")) == 2
        assert images.tiles.nth(1).get_attribute("aria-selected") == "true"
        for key, place in (("Enter", 2), ("ArrowRight", 3)):
            page.keyboard.press(key)
            page.get_by_role("link", name="Open the original").wait_for()
            assert page.locator("#one-title").inner_text() == nearest[place]
            address = page.evaluate("decodeURIComponent(document.querySelector('#one-original').href)")
            assert address.endswith(f"/photos/{nearest[place]}")
            assert page.locator("#one-ticked").is_checked() is (place == 2)
        assert page.locator("#alike li").count() == 8
        page.keyboard.press("Escape")
        images.sort("far")
        assert titles(images.tiles)[0] == nearest[-1]
        page.keyboard.press("Escape")
        Cards(page).has_focus(0)
        assert not page.locator("#images").is_visible()
        # A word leads to its meaning.
        page.locator(".marks").click()
        page.locator("#word-borderline").wait_for()  # the event of an address comes later than the click
        assert shown_part(page) == ["run"]


def test_a_list_of_the_server_has_all_images_although_the_page_has_a_sample(
    copied: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(copied)
    monkeypatch.setattr("deepcluster.report.page.MAX_NAMES", sum(len(row["path"]) for row in table) // 3)
    members = [row for row in table if row["cluster"] == "0"]
    sizes = Counter(row["cluster"] for row in table)
    with opened(browser, serving(copied), originals=7) as page:
        page.evaluate("document.querySelector('#images').style.width = '100vw'")
        images = Cards(page).all_images(0)
        page.locator(f"#images-grid .tile-of[title='{members[0]['path']}']").wait_for()
        assert sorted(titles(images.tiles)) == sorted(row["path"] for row in members)
        assert not page.locator("#images-sample").is_visible()
        images.sort("far")
        farthest = max(members, key=lambda row: float(row["distance"]))["path"]
        page.locator(f"#images-grid .tile-of[title='{farthest}']").and_(images.tiles.first).wait_for()
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


ASKS_BEFORE_IT_IS_LEFT = "!dispatchEvent(new Event('beforeunload', {cancelable: true}))"


def test_an_edit_is_one_request_and_what_was_typed_stays_if_it_is_refused(copied: Path, browser: Any) -> None:
    for edits in (Edits(move=((0, 3),)), Edits(merge=((0, 3),))):  # number 3 has been given
        apply(copied, edits)
    row_of = {path["path"]: row for row, path in enumerate(table_of(copied))}
    with opened(browser, serving(copied), originals=7, refused=6) as page:
        sent, cards = refusing(page), Cards(page)

        def refused() -> None:
            message = cards.hears("不")
            assert not page.evaluate("document.body.inert")
            message.click()

        cards.rename_next(NAME)
        page.locator("#cluster-0 .title:focus").wait_for()
        refused()
        assert cards.names(0) == [NAME]
        page.locator("#cluster-0 .title").fill("")
        page.locator("#cluster-0 .call").click()
        page.keyboard.press("x")
        refused()
        assert page.locator(".junk").count() == 0
        page.locator("#cluster-2 .call").click()
        page.keyboard.press("m")
        choose(page, "cluster 1")
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
        images = cards.all_images(0)
        moved = [titles(images.tiles)[place] for place in (1, 3)]
        for place in (1, 3):
            images.tiles.nth(place).locator(".tick").click(force=True)
        images.move_to("new ones")
        page.keyboard.press("Escape")
        refused()
        assert page.locator("#images").is_visible() and page.locator("#images-undo").is_visible()
        assert page.evaluate(ASKS_BEFORE_IT_IS_LEFT)
        page.unroute("**/apply")
        page.locator("#images-close").click()
        cards.hears("2 images moved")
        assert not page.locator("#images").is_visible() and not page.evaluate(ASKS_BEFORE_IT_IS_LEFT)
        # Out to a new cluster and back: nothing to do.
        cards.all_images(0)
        page.keyboard.press("Space")
        images.ask_where()
        images.move_out()
        images.take_back()
        page.keyboard.press("Escape")
        cards.has_focus(0)
    assert len({edits["cut"] for edits in sent}) == 1 and [row["cluster"] for row in now(copied)].count("4") == 2
    words = [{name: value for name, value in edits.items() if name not in ("schema_version", "cut")} for edits in sent]
    *words, moving = words
    assert words == [
        {"names": {"0": NAME}},
        {"junk": [0]},
        {"merge": [[1, 2]]},
        {"split": [[1, 2]]},
        {"names": {"1": "daisy"}},
    ]
    assert sorted(moving["move"]) == sorted([row_of[path], 4] for path in moved)
    assert moving["checked"] == [] and moving["names"] == {"4": "new ones"}


def test_without_a_server_or_beside_another_change_the_page_says_what_to_do(copied: Path, browser: Any) -> None:
    with opened(browser, serving(copied), originals=4, loads=2, refused=2) as page:
        cards = Cards(page)
        page.route("**/apply", lambda route: route.abort("connectionrefused"))
        cards.name(0, NAME)
        cards.hears("The server does not answer")
        assert "deepcluster report run --serve --open" in cards.message.inner_text()
        page.unroute("**/apply")  # it was asleep
        page.locator("#cluster-0 .title").press("Enter")
        cards.hears("Cluster 0 is now")
        assert cards.names(0) == [NAME]
        # Another process changes the run: the images are the same, and an edit needs the page of today.
        apply(copied, Edits(names={0: "one"}))
        page.locator("#cluster-0 .sheet [data-row]").last.click()
        page.locator("#one-original").wait_for()
        page.keyboard.press("Escape")
        cards.name(1, "two")
        cards.hears("reload the page")
        page.reload()
        assert cards.names(0, 1) == ["one", ""]


def test_sorting_asks_four_things_remembers_them_and_reads_the_folder_back(
    run: Path, copied: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other server of this machine is sent the choices; the path and the number left out stay on the page."""
    first, second = rows(copied / "clusters.csv")[:2]
    lines = [f"0,{image['path']},0.01" for image in (first, second)]
    (copied / "duplicates.csv").write_text("\n".join(["set,path,distance", *lines]))
    folders: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda folder: bool(folders.append(folder)) or len(folders) > 1)
    with opened(browser, serving(copied), originals=6, loads=2, refused=1) as page:
        cards, outcome, out = Cards(page), page.locator("#sorted"), run.parent / "meine Bilder"
        page.get_by_role("tab", name="Problems").click()
        with Image.open(run.parent / "photos" / first["path"]) as image:
            alike = page.locator("#problems .alike li").first.inner_text()
            assert "{} \N{MULTIPLICATION SIGN} {}, ".format(*image.size) in alike
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
        outcome.get_by_text(f"{len(rows(run / 'clusters.csv')) - 1} images sorted").wait_for()
        assert str(out) in outcome.inner_text() and re.search(r"\b1 image ", outcome.inner_text())
        page.get_by_role("button", name="Open folder").click()
        cards.hears("no file manager")
        with page.expect_response(lambda reply: reply.request.method == "POST"):
            page.get_by_role("button", name="Open folder").click()
        assert folders == [out.as_uri()] * 2
        page.locator("#tab-clusters").click()
        cards.rename_next(NAME)
        cards.hears("Cluster 0 is now")
        assert str(out) in outcome.inner_text()
        page.locator("#into-folders").click()
        assert not cards.message.is_visible()  # behind a dialog
        page.reload()
        page.locator("#into-folders").click()
        assert page.locator("#sort-name").input_value() == "meine Bilder"
        assert page.locator("#sort-place").input_value() == "images"
        for place in ("#sort-best", "#sort-apart", "[name=copies][value='1']"):
            assert page.locator(place).is_checked(), place
        assert not page.context.cookies()
        next(path for path in sorted(out.iterdir()) if path.name.startswith("001")).rename(out / "owls")
        page.get_by_role("button", name="Read it back").click()
        cards.hears("1 name")
        assert cards.names(1) == ["owls"]
        cards.undo()
        assert cards.names(1) == [""]
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
KNOWN = "AMI ARI CSV English JavaScript NMI UMAP Ward bars blob checks clusters csv duplicates ln photos"
KNOWN += " history png predict reject skipped truncated xmp"


def is_chinese(page: Any) -> bool:
    return page.evaluate(ENGLISH, KNOWN) == []


def test_the_page_speaks_the_language_of_the_browser(run: Path, copied: Path, browser: Any) -> None:
    with opened(browser, run / "report.html", locale="zh-CN") as page:
        assert page.locator("#cluster-1 .hints").inner_text().split() == ["也许是", "雏菊", "花"]
        assert is_chinese(page)
    with (copied / "images.csv").open("a") as file:
        file.write("a.png,skipped,cannot be decoded: truncated,,,,,\n")
    with opened(browser, serving(copied), originals=13, refused=2, locale="zh-CN") as page:
        sent, cards = refusing(page), Cards(page)
        assert page.locator("table.skipped td").last.text_content() == "无法解码: truncated"
        assert "训练" in page.locator(".facts").text_content()
        cards.merge(2, "组 1")
        cards.hears("不").click()
        page.locator("#cluster-1").get_by_role("button", name="雏菊").click()
        cards.hears("不").click()
        assert (sent[0]["merge"], sent[1]["names"]) == ([[1, 2]], {"1": "雏菊"})
        page.unroute("**/apply")
        for place in chain(parts(page), dialogs(page)):
            assert page.evaluate(ENGLISH, f"{KNOWN} stripes") == [], place
        page.keyboard.press("Escape")
        cards.name(0, "Close")  # a name is never translated
        cards.hears("组 0 现在叫 Close。")
        assert page.locator("#cluster-0 h3").inner_text().startswith("组 0") and cards.names(0) == ["Close"]
        assert page.evaluate(ENGLISH, f"{KNOWN} stripes Close") == []
    with opened(browser, run / "report.html", loads=2, locale="de-DE") as page:
        assert page.locator("html").get_attribute("lang") == "en"
        page.get_by_role("button", name="中文").click()  # by hand, in this tab
        page.locator("html[lang=zh-CN]").wait_for()
        assert is_chinese(page)


def test_corrections_in_series_need_one_opening(copied: Path, browser: Any) -> None:
    """Three pictures to two clusters: open, order, tick and move, then a digit; applied when it closes."""
    before = {row["path"]: row["cluster"] for row in table_of(copied)}
    with opened(browser, serving(copied), originals=3) as page:
        cards, title = Cards(page), page.locator("#one-title")
        images = cards.all_images(0)
        images.sort("far")
        far = titles(images.tiles)[:5]
        page.locator("#images-grid [role=listbox]").focus()
        press(page, "ArrowRight", "Space")
        images.ask_where()
        assert images.offered.count() == 3
        page.locator("#merge-filter").fill("dais")  # a part of a hint
        assert [button.get_attribute("value") for button in images.offered.all() if button.is_visible()] == ["1", "3"]
        page.locator("#merge-filter").fill("")
        page.locator("#merge-list").get_by_text("Cluster 2", exact=True).click()
        images.moved.get_by_text("1 image will move to cluster 2 ").wait_for()
        assert titles(images.tiles)[0] == far[0] and page.locator("#images-order").input_value() == "far"
        page.keyboard.press("1")  # the next picture, to the same cluster
        page.locator("#images .tile-of.at").and_(page.locator(f'[title="{far[3]}"]')).wait_for()
        press(page, "1", "Control+z", "Enter")
        title.get_by_text(far[3], exact=True).wait_for()
        page.locator(f'#one-place img[alt="{far[3]}"]').wait_for()  # else the move asks for the file again
        page.locator("#one-move").click()
        page.locator("#merge-list").get_by_text("Cluster 1 · perhaps daisy", exact=True).click()
        title.filter(has_not_text=far[3]).wait_for()  # after the event of a closed dialog
        assert page.locator("#one .targets").inner_text().split() == ["1", "cluster", "2", "2", "cluster", "1"]
        press(page, "Escape", "Escape")
        cards.hears("3 images moved")
        assert "deepcluster" not in cards.message.inner_text()
        after = {row["path"]: row["cluster"] for row in now(copied)}
        assert after == before | dict(zip(far[1:4], "221", strict=True))


def test_a_finer_or_coarser_number_shows_what_it_makes(copied: Path, browser: Any) -> None:
    with opened(browser, serving(copied), originals=7, refused=1) as page:
        cards, title, faces = Cards(page), page.locator("#number-title"), page.locator("#number-list li")
        assert page.locator("#numbers button").all_inner_texts() == ["Coarser: 2", "Finer: 6"]
        page.get_by_role("button", name="Finer: 6").click()
        title.get_by_text("6 clusters").wait_for()
        page.locator("#number").get_by_role("button", name="Finer: 12").click()
        title.get_by_text("12 clusters").wait_for()
        sizes = [first_number(face) for face in faces.all()]
        assert len(sizes) == 12 and sum(sizes) == len(rows(copied / "clusters.csv"))
        assert {face.locator("img").count() for face in faces.all()} <= {1, 2, 3, 4}
        assert not page.locator("#undo").is_visible()
        page.keyboard.press("Enter")
        cards.hears("12 clusters of")
        made = sorted((first_number(size) for size in page.locator(".cluster .size").all()), reverse=True)
        assert made == sizes and not page.locator("#number").is_visible()
        cards.undo()
        cards.rename_next(NAME)
        cards.hears("is now")
        assert not page.locator("#numbers").is_visible()  # the steps have it from now on
        page.locator("#number-open").click()
        title.get_by_text("6 clusters").wait_for()
        assert NAME in page.locator("#number-list").inner_text()
        page.locator("#k").fill("400")
        page.keyboard.press("Enter")
        cards.hears("400")
        assert page.locator("#recut-now").is_disabled()


def test_edits_in_series_by_keys_and_back_to_any_of_them(copied: Path, browser: Any) -> None:
    """Names in series need no load, and the list takes back several edits."""
    with opened(browser, serving(copied), originals=6) as page:
        cards, changes = Cards(page), page.locator("#history-list button")
        for number, name in enumerate((NAME, "two", "three")):
            cards.rename_next(name)
            cards.hears(f"Cluster {number} is now")
        assert cards.names(0, 1, 2) == [NAME, "two", "three"]
        assert {row["name"] for row in now(copied)} == {NAME, "two", "three"}
        page.keyboard.press("U")
        lines = [text.split("\n") for text in changes.all_inner_texts()]
        assert [line[0] for line in lines] == ["1 name: three", "1 name: two", f"1 name: {NAME}"]
        assert all(re.search(r"\d:\d\d\s[AP]M$", line[1]) for line in lines)
        assert page.locator("#history-list :not(img).picture").count() == 0  # each has a picture
        changes.nth(1).press("Enter")
        cards.hears("taken back")
        assert cards.names(0, 1, 2) == [NAME, "", ""]
        page.locator("#redo").click()
        cards.hears("made again")
        assert cards.names(0, 1, 2) == [NAME, "two", ""]
        page.locator("#history-open").click()
        assert changes.count() == 2
        first = page.locator("#history-first")
        first.click()  # asks, and does nothing yet
        assert first.inner_text() == "Take back all changes: 2"
        first.click()
        cards.hears("taken back")
        assert cards.names(0, 1, 2) == ["", "", ""]


def test_clusters_of_one_name_are_a_kind_with_one_card_one_list_and_one_digit(copied: Path, browser: Any) -> None:
    recut(copied, 6)
    sizes = Counter(row["cluster"] for row in table_of(copied))
    apply(copied, Edits(names={1: "twins", 4: "twins", 2: "other"}, junk=(5,)))
    with opened(browser, serving(copied), originals=1) as page:
        kind, both = page.locator(".kind"), sizes["1"] + sizes["4"]
        assert [card.get_attribute("data-number") for card in kind.locator(".cluster").all()] == ["1", "4"]
        assert f"2 clusters · {both} images" in kind.inner_text()
        assert "2 kinds · 6 clusters" in page.locator("#counts").inner_text()
        assert page.locator("#path button span").all_inner_texts() == ["6", "4 of 6", "0 of 4", ""]  # without junk
        page.locator("#cluster-4").locator("[data-act=check]").evaluate("button => button.click()")
        Check(page).title.get_by_text(f"twins · {both} images").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("tab", name="Map").click()
        assert page.locator("#legend button").get_by_text("twins").count() == 1
        page.locator("#tab-clusters").click()
        page.get_by_role("button", name="Make one cluster of them").click()
        Cards(page).hears("1 merge")
        assert kind.count() == 0 and first_number(page.locator("#cluster-1 .size")) == both


def test_questions_are_answered_by_keys_and_others_follow_when_that_is_applied(copied: Path, browser: Any) -> None:
    clusters = {row["path"]: int(row["cluster"]) for row in table_of(copied)}
    with opened(browser, serving(copied), originals=23) as page:
        cards, teach = Cards(page), Teach(page)
        previews: list[Any] = []
        page.on("response", lambda response: response.url.endswith("/preview") and previews.append(response))
        page.keyboard.press("t")
        for left in (3, 2, 1):  # clusters without a name, the largest first
            teach.sees(f"{left} without a name")
            number = teach.number()
            kinds = Counter(path.partition("/")[0] for path, cluster in clusters.items() if cluster == number)
            enter(page, kinds.most_common(1)[0][0])
        teach.is_asked()
        first = teach.about.inner_text()
        press(page, "s", "1", "z", "z")  # skipped, answered, and both back
        teach.about.get_by_text(first, exact=True).wait_for()
        given: dict[str, str] = {}  # the kind of each image as its name
        while len(given) < 10:
            teach.has_answers(len(given))
            path = teach.is_asked()
            given[path] = path.rpartition("/")[0] or "=odd"
            teach.answer(given[path])
        teach.sees("would move")
        # A picture of the preview is enlarged as in a list, and only looked at.
        ticks, enlarged = teach.ticks, page.locator("#one-title")
        for enlarge in (page.locator("#teach-moves .picture").first.click, partial(ticks.first.press, "Enter")):
            enlarge()
            enlarged.get_by_text(ticks.first.get_attribute("aria-label"), exact=True).wait_for()
            assert not page.locator("#one-move").is_visible() and not page.locator("#one .targets").is_visible()
            page.keyboard.press("Escape")
            assert not ticks.first.is_checked()
        # The cluster of wrong ones, by a digit or by its name.
        for way in ("digit", "move"):
            teach.sees("would move")
            seen, row = previews[-1].json(), int(ticks.last.get_attribute("value"))
            ticks.last.check()
            place = page.locator("#teach-places button").first.get_attribute("title")
            with page.expect_request("**/preview") as request:
                if way == "digit":
                    page.keyboard.press("1")
                else:
                    page.get_by_role("button", name="Move to").click()
                    choose(page, place)
            answers = request.value.post_data_json["taught"]["answers"]
            assert {"path": row, "cluster": seen["names"].index(place)} in answers
            request.value.response().finished()
        teach.sees("would move")
        count = first_number(teach.title)
        with page.expect_request("**/teach") as request:
            page.keyboard.press("Enter")
        answers = request.value.post_data_json["taught"]["answers"]
        assert len(answers) >= len(given) and sum(answer.get("by") == "drawn" for answer in answers) >= 2
        page.locator("#teach-progress").get_by_text(f"{len(answers)} answers").wait_for()
        teach.is_asked()  # the next questions
        teach.has_answers(0)
        assert page.locator(".cluster").count() == len({row["cluster"] for row in now(copied)}) > 3
        page.keyboard.press("Escape")
        cards.hears(f"{count} images changed")


def test_images_of_another_kind_are_named_with_their_cluster(copied: Path, browser: Any) -> None:
    """The name of ticked images is an answer, which another change does not lose. The images beside them are none,
    unless she says so: a stranger may have been overlooked."""
    with opened(browser, serving(copied), originals=5) as page:
        teach = Teach(page)
        faces = teach.faces
        page.locator("#names-open").click()
        odd = [faces.nth(place).get_attribute("title") for place in (0, 2)]
        for place in (0, 2):
            faces.nth(place).click()
        assert teach.title.inner_text() == "What are the ticked images?"
        enter(page, "odd")
        teach.sees("What is this cluster?")
        assert faces.count() > 1 and not {*titles(faces)} & {*odd}
        enter(page, "first")
        teach.sees("2 without a name")
        for face in faces.all():
            face.click()
        assert teach.title.inner_text() == "What is this cluster?"  # if all are ticked, none is of another kind
        enter(page, "second")
        teach.sees("1 without a name")
        paths = [row["path"] for row in table_of(copied)]
        third, likely = teach.number(), titles(teach.kinds)
        # First letters complete a name in use; another letter goes on, and a digit is the name of a likely kind.
        assert sorted(likely) == ["first", "second"]
        for typed, value in (("f", "first"), ("a", "fa"), ("Backspace", "f"), ("Backspace", ""), ("S", "Second")):
            page.keyboard.press(typed)
            assert teach.field.input_value() == value
        press(page, "Backspace", "Backspace")
        faces.first.click()
        press(page, str(likely.index("second") + 1))  # of the ticked image
        teach.sees("What is this cluster?")
        left = [paths.index(path) for path in titles(faces)]
        with page.expect_request("**/preview") as request:
            press(page, "s", "Shift+Enter")
            teach.sees("would move")
        named = request.value.post_data_json["taught"]["answers"]
        assert named[:2] == [{"path": paths.index(path), "name": "odd"} for path in odd]
        assert named[2]["name"] == "second" and named[3:] == [{"path": row, "cluster": third} for row in left]
        headings = page.locator("#teach-moves strong").all_inner_texts()
        assert len(headings) == len({*headings}) <= 3
        assert not Cards(page).message.is_visible()  # behind the dialog
        page.keyboard.press("Enter")
        Check(page).title.get_by_text("image").wait_for()  # the way goes on to the check
        page.keyboard.press("Escape")
        after = {row["path"]: row for row in now(copied)}
        assert all(after[path]["name"] == "odd" and after[path]["by"] == "answer" for path in odd)
        assert {row["name"] for row in after.values()} == {"odd", "first", "second"}


def test_of_too_many_images_some_are_asked_about_and_refused_answers_stay(
    copied: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applied ones would be taught again. Clusters of one name have one digit."""
    monkeypatch.setattr("deepcluster.runs.serve.MAX_CHECKED", 10)
    apply(copied, Edits(names={0: "first", 1: "twins", 2: "twins"}))
    with opened(browser, serving(copied), originals=10, refused=1) as page:
        page.route("**/teach", lambda lesson: lesson.fulfill(status=409, json={"error": "不"}))
        teach, step = Teach(page), page.locator("#check-open")
        assert step.inner_text() == "Questions 0 answers" and "too many to check" in step.get_attribute("title")
        step.click()
        teach.is_asked()
        assert sorted(titles(teach.likely)) == ["first", "twins"]
        page.keyboard.press("1")
        teach.has_answers(1)
        page.get_by_role("button", name="What follows").click()
        teach.sees("would move")
        page.keyboard.press("Enter")
        page.locator("#teach #told").get_by_text("不").click()
        teach.has_answers(1)
        page.unroute("**/teach")
        page.route("**/ask", lambda more: more.fulfill(json={"questions": [[], []]}))
        with page.expect_request("**/preview"):  # of all answers, as no question is left
            page.locator("[data-teach=apply]").click()
        page.locator("#progress-text").get_by_text("1 answer").wait_for()


def test_doubtful_images_of_one_kind_after_another_are_checked(copied: Path, browser: Any) -> None:
    """A click marks a wrong image, a digit moves it, also to a new kind; N is the next. It is applied at the end."""
    apply(copied, Edits(names={1: "twins", 2: "twins"}))
    before = {row["path"]: row for row in table_of(copied)}
    with opened(browser, serving(copied), originals=1) as page:
        check, targets, moved = Check(page), page.locator("#images .targets button"), []
        press(page, "j", "c")
        check.title.get_by_text("Cluster 0").wait_for()
        assert check.about.inner_text() == "2 left to check" and targets.count() == 1  # kinds
        for is_last, kind in enumerate((["0"], ["1", "2"])):
            moved.append(titles(check.tiles)[0])
            margins = [float(row["margin"]) for row in before.values() if row["cluster"] in kind]
            assert float(before[moved[-1]]["margin"]) == min(margins)
            check.tiles.first.click(position={"x": 40, "y": 40})  # not on its corner alone
            if is_last:
                press(page, str([button.inner_text().split()[-1] for button in targets.all()].index("owls") + 1))
            else:
                check.move_to("owls")  # a new kind
            check.moved.get_by_text("1 image will move to cluster 3 · owls").wait_for()
            page.keyboard.press("n")
            (page.locator("#told") if is_last else check.title).get_by_text(
                "2 images moved" if is_last else "twins"
            ).wait_for()
        # It is remembered: all other images were seen and left.
        assert page.locator("#check-open").inner_text() == "Check 3 of 3"
        table = now(copied)
        assert sorted(row["path"] for row in table if row["name"] == "owls") == sorted(moved)
        assert Counter(row["by"] for row in table) == {"answer": 2, "checked": len(table) - 2}


def test_the_check_follows_the_names_and_goes_on_behind_a_cluster_that_it_has_emptied(
    copied: Path, browser: Any
) -> None:
    apply(copied, Edits(names={0: "a", 1: "gone", 2: "c"}))
    sizes = Counter(row["cluster"] for row in table_of(copied))
    with opened(browser, serving(copied), originals=1) as page:
        check, step = Check(page), page.locator("#check-open")
        assert step.inner_text() == "Check 0 of 3" and step.get_attribute("aria-current") == "step"
        page.locator("#names-open").click()
        check.title.get_by_text("images").wait_for()
        page.keyboard.press("Escape")
        check.title.wait_for(state="hidden")
        press(page, "j", "j", "c")
        check.title.get_by_text("gone").wait_for()
        page.keyboard.press("Control+a")
        check.move_to("a")
        for left in ("2 left to check", "1 left to check"):
            page.keyboard.press("n")
            check.about.get_by_text(left).wait_for()
        page.keyboard.press("n")
        Cards(page).hears(f"{sizes['1']} images moved")
    assert not [row for row in now(copied) if row["cluster"] == "1"]


def test_a_file_leads_the_browser_to_the_server(copied: Path, browser: Any) -> None:
    address = serving(copied)
    with redirecting(copied, address) as file:
        page = browser.new_page()
        page.goto(file.as_uri())
        page.wait_for_url(address, timeout=60_000)
        page.close()


def test_a_saved_table_guards_its_cells_as_the_program_does(browser: Any, tmp_path: Path) -> None:
    cells = [*FORMULAS, *HARMLESS]
    table = [row(f" ={i}.png", label=cell) for i, cell in enumerate(cells)]
    (tmp_path / "report.html").write_text(page_of(clusters=table, sheet=b"RIFF    WEBP")[0], encoding="utf-8")
    with opened(browser, tmp_path / "report.html") as page:
        Cards(page).all_images(0)
        listed = rows(saved(page, "Save as CSV", tmp_path / "selection.csv"))
        assert {line["path"] for line in listed} == {f"./ ={i}.png" for i in range(len(cells))}
        assert {line["label"] for line in listed} == {guarded("label", inert(cell)) for cell in cells}
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
