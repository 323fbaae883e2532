"""The report without a mouse, in other colours and on small screens, by the rules of axe-core; its HTML by html5lib."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import html5lib
import pytest
from axe_playwright_python.base import AXE_SCRIPT

from deepcluster.runs.apply import apply
from deepcluster.runs.recut import recut
from deepcluster.runs.views import report
from deepcluster.storage.edits_file import Edits
from tests.helpers.browsing import TIMEOUT_MS, Teach, dialogs, parts, press, shown_part
from tests.helpers.report import Page
from tests.helpers.serving import serving

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice", "experimental"]
RUN_AXE = """async tags => (await axe.run({runOnly: tags, resultTypes: ["violations"]})).violations
  .flatMap(({id, nodes}) => nodes.map(({target}) => `${id}: ${target}`))"""


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose page has labels, and clusters that can be split."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("accessible") / "run"))
    recut(run, 10)  # more make axe slow; a question offers eight of the others
    apply(run, Edits(merge=((0, 1),)))  # a cluster that can be split
    report(run)
    return run


@pytest.fixture(scope="module")
def address(run: Path) -> str:
    return serving(run)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address in a page of its own, whose letters typed at once are commands."""
    contexts = []

    def opened(address: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": DESKTOP, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()


def violations(page: Any) -> list[str]:
    """Return the nodes that violate a rule of axe: in light colours on a desktop, and in dark ones on a phone."""
    nodes = []
    for size, scheme in ((PHONE, "dark"), (DESKTOP, "light")):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        nodes += [f"{size['width']} px, {scheme}: {node}" for node in page.evaluate(RUN_AXE, TAGS)]
    return nodes


@pytest.mark.parametrize(
    ("is_served", "walk"), [(True, parts), (True, dialogs), pytest.param(False, parts, marks=pytest.mark.slow)]
)
def test_no_rule_of_axe_is_violated(
    is_served: bool, walk: Callable[[Any], Iterator[str]], run: Path, address: str, open_page: Callable[..., Any]
) -> None:
    page = open_page(address if is_served else (run / "report.html").as_uri())
    page.evaluate(AXE_SCRIPT)
    nodes = [f"{place}, {node}" for place in walk(page) for node in violations(page)]
    assert not nodes, "\n".join(nodes)


FOCUSED = "document.activeElement.id || document.activeElement.alt"


def test_keys_reach_the_clusters_and_their_pictures_and_come_back(run: Path, open_page: Callable[..., Any]) -> None:
    page = open_page((run / "report.html").as_uri())
    page.get_by_role("tab", name="Map").click()
    press(page, "Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert shown_part(page) == ["clusters"] and page.evaluate(FOCUSED) == "cluster-list"
    faces = page.locator("#cluster-0 .sheet img")
    paths = [face.get_attribute("alt") for face in faces.all()]
    page.locator("#cluster-0 .all").focus()
    for key, path in (("Tab", paths[0]), ("ArrowRight", paths[1]), ("ArrowRight", paths[2]), ("ArrowLeft", paths[1])):
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == path
    page.keyboard.press("Enter")
    assert page.locator("#one-title").inner_text() == paths[1]
    page.keyboard.press("Escape")
    assert page.evaluate(FOCUSED) == paths[1]
    faces.nth(3).click()
    page.keyboard.press("Escape")
    assert page.evaluate(FOCUSED) == paths[3]


STYLE = "(place, name) => getComputedStyle(place, name.startsWith('animation') ? '::before' : null)[name]"


def test_a_phone_has_all_words_and_forced_colours_show_the_choice(address: str, open_page: Callable[..., Any]) -> None:
    page = open_page(address, viewport=PHONE, forced_colors="active", reduced_motion="reduce")
    chosen, other = (page.get_by_role("tab", selected=is_chosen).first for is_chosen in (True, False))
    lines = [tab.evaluate(STYLE, "borderBottomColor") for tab in (chosen, other, page.locator("html"))]
    assert lines[0] != lines[1] == page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.evaluate("document.querySelector('#told').classList.add('busy')")
    assert page.locator("#told").evaluate(STYLE, "animationName") == "none"
    page.get_by_role("tab", name="Map").click()
    drag = page.locator("[name=drag] + span")
    assert [choice.evaluate(STYLE, "fontSize") for choice in drag.all()] == ["13px", "13px"]
    backgrounds = [choice.evaluate(STYLE, "backgroundColor") for choice in drag.all()]
    assert backgrounds[0] != backgrounds[1]


def test_a_question_fits_in_a_page_that_is_enlarged_twice(address: str, open_page: Callable[..., Any]) -> None:
    page = open_page(address, viewport={"width": 640, "height": 400})
    teach = Teach(page)
    teach.skip_names()
    teach.likely.nth(7).wait_for()
    assert page.locator("#teach").evaluate("dialog => dialog.scrollHeight - dialog.clientHeight") <= 0


def test_the_page_is_html(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(text)
    page = Page(text)
    assert all(words for level in ("h1", "h2", "h3", "h4") for _, words in page.all(level))
    assert all(words or "hidden" in attributes for attributes, words in page.all("button"))
    assert not [attributes for attributes, _ in page.all("a") if "href" not in attributes and len(attributes) > 2]
