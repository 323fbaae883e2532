"""A person at the page of the report: her verbs at the cards of clusters, at a list of images and at the questions."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_MS = 60_000  # a busy machine is slow


@contextmanager
def opened(
    browser: Any, report: Path | str, originals: int = 0, loads: int = 1, refused: int = 0, **options: Any
) -> Iterator[Any]:
    """The report, or the page at an address, in a page of its own. Whatever it asks for or complains of fails the test
    at the end: it may ask for itself, as often as the test ``loads`` it, and for the files of the images that the test
    enlarges (or for as many actions of a server, of which some are ``refused``)."""
    address = report if isinstance(report, str) else report.as_uri()
    requests, complaints = [], []
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url[:200]))
    page.on("console", lambda message: complaints.append(f"{message.text} {message.location['url']}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    yield page
    context.close()
    pictures = (f"{address}thumb/", f"{address}sheet/")
    requests = [url for url in requests if not url.startswith(("data:", "blob:", *pictures))]
    assert requests.count(address) == loads and len(requests) == loads + originals, requests
    refusals = [text for text in complaints if "409 (Conflict)" in text or "net::ERR_" in text]
    assert len(refusals) == len(complaints) == refused, complaints


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def enter(page: Any, text: str) -> None:
    """Type a text where the focus is."""
    page.keyboard.insert_text(text)
    page.keyboard.press("Enter")


def first_number(place: Any) -> int:
    text = place.inner_text()
    number = re.search(r"\d+", text)
    assert number, text
    return int(number[0])


def shown_part(page: Any) -> list[str]:
    return [part.get_attribute("id") for part in page.locator("main > .part").all() if part.is_visible()]


def titles(places: Any) -> list[str]:
    return [place.get_attribute("title") for place in places.all()]


def choose(page: Any, name: str) -> None:
    """Type a cluster, or the name of a new one, in the dialog that asks for one."""
    page.locator("#merge-filter").fill(name)
    page.keyboard.press("Enter")


class Cards:
    """The cards of the clusters, and the words at the bottom of the page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.message = page.locator("#told")

    def card(self, number: int) -> Any:
        return self.page.locator(f"#cluster-{number}")

    def names(self, *numbers: int) -> list[str]:
        return [self.card(number).locator(".title").input_value() for number in numbers]

    def hears(self, text: str) -> Any:
        """Wait for words, a click on which removes them."""
        self.message.get_by_text(text).wait_for()
        return self.message

    def name(self, number: int, name: str) -> None:
        """Type a name into the title of a card."""
        self.card(number).locator(".title").fill(name)
        self.card(number).locator(".title").press("Enter")

    def rename_next(self, name: str) -> None:
        press(self.page, "j", "n")
        self.page.locator(".title:focus").wait_for()
        enter(self.page, name)

    def merge(self, number: int, into: str) -> None:
        """Type a cluster in the dialog that the menu opens."""
        self.from_menu(number, "merge")
        choose(self.page, into)

    def undo(self) -> None:
        self.page.locator("#undo").click()
        self.hears("taken back")

    def from_menu(self, number: int, act: str) -> None:
        self.card(number).locator(".menu summary").click()
        self.card(number).locator(f"[data-act={act}]").click()

    def all_images(self, number: int) -> "Check":
        """Open all images of a cluster."""
        self.card(number).locator(".all").click()
        images = Check(self.page)
        images.tiles.first.wait_for()
        return images

    def has_focus(self, number: int) -> None:
        """Wait until a dialog that closes has given the focus back: keys would go elsewhere, or lose it again."""
        self.page.locator(f"#cluster-{number}:focus").wait_for()


class Check:
    """A list of images, whose moves are made when it is closed."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.tiles = page.locator("#images-grid .tile-of")
        self.title, self.about, self.moved = (
            page.locator(f"#{name}") for name in ("images-title", "images-about", "moved")
        )
        self.offered = page.locator("#merge-list button")

    def ask_where(self) -> None:
        self.page.locator("#images [data-ticked=move]").click()

    def move_to(self, name: str) -> None:
        """Move the selected images; a name without a cluster makes one."""
        self.ask_where()
        choose(self.page, name)
        self.has_focus()

    def move_out(self) -> None:
        """Move the selected images to a new cluster, in the dialog that asks where to."""
        self.offered.first.click()
        self.has_focus()

    def take_back(self) -> None:
        self.page.locator("#images-undo").click()

    def sort(self, order: str) -> None:
        self.page.locator("#images-order").select_option(order)

    def has_focus(self) -> None:
        """Wait until a dialog that closes has given the focus back: Escape would close this one instead."""
        self.page.locator("#images-grid :focus").wait_for(state="attached")


class Teach:
    """The names of clusters, the questions about images, and the images that follow the answers."""

    def __init__(self, page: Any) -> None:
        self.page = page
        names = ("title", "count", "about", "kind-name")
        self.title, self.count, self.about, self.field = (page.locator(f"#teach-{name}") for name in names)
        self.faces = page.locator("#teach-faces li:not([hidden]) label")
        self.kinds, self.likely = (page.locator(f"#teach-{name} button") for name in ("kinds", "likely"))
        self.ticks = page.locator("#teach-moves input")

    def skip_names(self) -> None:
        """Skip the names, until the page asks about an image."""
        self.page.evaluate("() => document.querySelector('#teach').close()")
        self.page.keyboard.press("t")
        while not self.page.locator("#teach-ask").is_visible():
            self.page.evaluate("() => document.querySelector('[data-teach=pass]').click()")
            self.page.wait_for_timeout(0)
        self.likely.first.wait_for()

    def number(self) -> int:
        """The cluster whose name is asked for."""
        return int(self.field.get_attribute("data-number"))

    def sees(self, text: str) -> None:
        """Wait for a text of the head."""
        self.count.or_(self.title).get_by_text(text).first.wait_for()

    def has_answers(self, count: int) -> None:
        self.count.get_by_text(f"Answers: {count}", exact=True).wait_for()

    def is_asked(self) -> str:
        """Wait for a question; the path of its image."""
        self.about.get_by_text("now in").wait_for()
        return self.about.inner_text().partition(" · ")[0]

    def answer(self, name: str) -> None:
        """By a digit if the name is among the likely ones."""
        names = titles(self.likely)
        if name in names:
            return self.page.keyboard.press(str(names.index(name) + 1))
        self.page.keyboard.press("n")
        return enter(self.page, name)


# ---- walks that show all of the page, in any language ----------------------------------------------------------------


def parts(page: Any) -> Iterator[str]:
    """Show each tab."""
    for tab in page.get_by_role("tab").all():
        tab.click()
        yield tab.inner_text()
    page.locator("#legend button").first.evaluate("legend => legend.click()")
    page.locator("#tab-map").click()
    yield "images selected on the map"
    page.locator("#tab-clusters").click()


def dialogs(page: Any) -> Iterator[str]:
    """Show each dialog of the served page, whose clusters have no names yet."""
    cards, card, teach = Cards(page), page.locator("#cluster-0"), Teach(page)
    for opener in ("#help-open", "#into-folders", "#number-open"):
        page.locator(opener).click()
        if opener == "#number-open":
            page.locator("#number-list li").first.wait_for()
        yield opener
        page.keyboard.press("Escape")
    images = cards.all_images(0)
    page.keyboard.press("Space")
    yield "all images, one of them selected"
    images.ask_where()
    yield "move to"
    images.move_out()
    page.keyboard.press("Enter")
    page.locator("#one-original").wait_for()
    yield "one image, behind it a move"
    page.keyboard.press("Escape")
    images.take_back()
    page.keyboard.press("Escape")
    cards.has_focus(0)
    card.locator(".menu summary").click()
    yield "the menu"
    card.locator(".menu summary").click()
    for act in ("check", "merge", "split"):
        cards.from_menu(0, act)
        yield act
        page.keyboard.press("Escape")
    for title in page.locator(".cluster .title").all()[1:3]:
        title.fill("stripes")
        title.press("Enter")
        cards.hears("stripes").click()
    page.locator(".kind").wait_for()
    yield "a kind"
    page.locator("#history-open").click()
    yield "history"
    page.keyboard.press("Escape")
    page.locator("#names-open").click()
    page.locator("#teach-faces input").first.check()
    teach.kinds.first.wait_for()
    yield "names: what are the ticked images?"
    teach.skip_names()
    yield "teach: a question"
    page.keyboard.press("2")
    teach.likely.first.wait_for()
    page.locator("[data-teach=review]").click()
    page.locator("#teach-moves li").first.wait_for()
    yield "teach: what follows"
