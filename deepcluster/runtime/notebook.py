"""A run in a notebook: what it says, and a table that grows by a row a round, in the output of the cell."""

import html
import sys
import time
from collections.abc import Mapping
from typing import Any

from deepcluster.runtime.terminal import printable

PAUSE = 0.2  # seconds between two updates of the line of progress: each is a message to the browser
COLUMNS = {
    "loss": ".3f",
    "chance_loss": ".2f",
    "nmi_previous": ".3f",
    "changed": ".1%",
    "cluster_weight": ".0%",
    "largest_share": ".1%",
    "reseeded": "d",
    "images_per_second": ",.0f",
}


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which shows HTML and has no terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


class Notebook:
    """Shows a run as one piece of HTML that is replaced as it goes on."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._said: list[tuple[str, str]] = []
        self._rounds: list[str] = []
        self._progress = ""
        self._last = 0.0
        self._handle: Any = display(HTML(self._page()), display_id=True)

    def __enter__(self) -> "Notebook":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress = ""
        self._update()

    def say(self, heading: str, text: str) -> None:
        self._said.append((heading, text))
        self._update()

    def progress(self, phase: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= PAUSE:
            self._progress = f"{phase}: {done:,} of {total:,}"
            self._update()

    def round(self, row: Mapping[str, Any], rounds: int, groups: str) -> None:
        cells = ["" if row[name] == "" else format(row[name], form) for name, form in COLUMNS.items()]
        self._rounds.append(_line("td", [f"{row['round'] + 1}/{rounds}", *cells, groups]))
        self._update()

    def _update(self) -> None:
        self._last = time.monotonic()
        self._handle.update(self._html(self._page()))

    def _page(self) -> str:
        said = "".join(f"<b>{_inert(heading)}</b> {_inert(text)}<br>" for heading, text in self._said)
        heads = _line("th", ["round", *(name.replace("_", " ") for name in COLUMNS), "groups"])
        table = f"<table>{heads}{''.join(self._rounds)}</table>" if self._rounds else ""
        return f"<div>{said}{table}<i>{_inert(self._progress)}</i></div>"


def _line(kind: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{_inert(cell)}</{kind}>" for cell in cells) + "</tr>"


def _inert(text: str) -> str:
    """File names are among what is said."""
    return html.escape(printable(text))
