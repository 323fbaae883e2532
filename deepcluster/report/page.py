"""The records of a run as one self-contained HTML page: no network, nothing but pixels in the pictures.

This module turns records into plain values; all markup is in ``templates/``. Every text that reaches the page passes
``inert`` and the templates' escaping, in one place (``templates``), or the JSON of ``script_data``. The only script
that the page allows is ``report.js``, by its SHA-256; without it the parts follow one another.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from deepcluster import texts
from deepcluster.groups.tree import Parts
from deepcluster.report import sections
from deepcluster.report.hints import chinese
from deepcluster.report.pictures import Thumbnails, columns, on_sheet, sheet_step
from deepcluster.report.sections import Values
from deepcluster.runtime.tables import FORMULA
from deepcluster.storage.content import Row, Table, Tables

MAX_CLUSTERS = 100
MAX_NAMES = 600_000  # characters of file names, above which fewer images are in the page
SCALE = 65_535  # of a coordinate, distance or margin in the script's data

STATIC = "img-src data: file:"  # sources that a page may use
SERVED = "img-src data: 'self'; connect-src 'self'"

# Only these keys of run.json are shown: others should not be on a page that is passed on (host, absolute paths).
FACTS = {
    "images": "Images",
    "images_count": "Number of images",
    "clusters": "Clusters",
    "backbone": "Network",
    "seconds": "Time of the fit",
    "version": "Version",
}


@dataclass(frozen=True)
class RunData:
    """The content of a page. Cells are text, empty if there is no value."""

    result: Tables  # of the run
    skipped: Sequence[Row]
    thumbnails: Thumbnails
    duplicates: Sequence[Row] | None = None  # None if duplicates were not searched for
    sides: Callable[[str], Any] = lambda path: None  # width and height of an image's file; None if it is not at hand
    positions: npt.NDArray[np.float32] | None = None  # M x 2, of the images of the sheet on the map; None: no map
    next_number: int = 0  # of a new cluster; numbers below it that no cluster has now may not be given again
    sheet: bytes = b""  # WebP of tiny pictures of the usable images
    name: str = "RUN"  # in commands
    similar: npt.NDArray[np.int64] | None = None  # n x m: the images in the page most like these, by number there
    parts: Mapping[int, Parts] = field(default_factory=dict)  # that a cluster can be split into, by its number
    near: Mapping[int, Sequence[int]] = field(default_factory=dict)  # the other clusters, the most alike first
    part: npt.NDArray[np.int64] | None = None  # the part of its cluster that an image in the page is in
    originals: str = ""  # the way from the page to the folder that the paths are relative to; empty: no links
    nouns: Sequence[Row] = ()  # hints for names come from these


def render(data: RunData, state: Mapping[str, Any] | None = None) -> str:
    """Return the report as text that encodes to UTF-8 whatever the names of the files.

    Of more than ``MAX_CLUSTERS`` clusters the largest are shown, in order of their numbers. The page stays below 5 MB:
    pictures lose quality instead.

    ``state``: Of the run, for the script of a page that a server (``runs/serve.py``) answers with.
    """
    sources = STATIC if state is None else SERVED
    in_page = len(on_page(data.result.usable)[0])
    parts: dict[str, Any] = {
        "run": _run(data),
        "clusters": _clusters(data),
        "map": None if data.positions is None or not in_page else {"images": len(data.result.usable), "shown": in_page},
        "problems": sections.problems(data.skipped, data.result.usable, data.duplicates) | {"sides": data.sides},
    }
    # Style, script and the script's data are not escaped.
    page = {
        "style": _file("report.css"),
        "script": _script(sources),
        "policy": Markup(policy(sources)),
        "data": Markup(script_data(data, state)),
        "served": state is not None,
    }
    return templates().get_template("report.html.j2").render(**parts, tabs=_tabs(parts), page=page)


@cache
def templates() -> Environment:
    """Return the environment of the templates, in which every text is inert and escaped."""

    def finalize(value: Any) -> Any:
        """Make the text of a ``{{ ... }}`` inert before it is escaped; markup of the templates is left alone."""
        return texts.inert(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = Environment(
        loader=PackageLoader("deepcluster.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    short = partial(texts.short, most=texts.MAX_NAME)
    environment.filters |= {"grouped": "{:,}".format, "short": short, "bare": texts.bare, "chinese": chinese}
    return environment


@cache
def _file(name: str) -> Markup:
    """Return the text of a file in ``templates/``, not escaped."""
    return Markup(PackageLoader("deepcluster.report").get_source(templates(), name)[0])


@cache
def _script(sources: str) -> Markup:
    """Return the script of a page. Only the served page has the files of lines with a plus, which ask a server."""
    text = str(_file("report.js"))
    text = re.sub(r"^//\+ ", "//= ", text, flags=re.MULTILINE) if sources == SERVED else text
    return Markup(re.sub(r"^//= (.+)$", lambda line: _file(line[1]), text, flags=re.MULTILINE))


@cache
def policy(sources: str) -> str:
    """Return the Content-Security-Policy of a page: these sources, and our script by its digest."""
    digest = base64.b64encode(hashlib.sha256(_script(sources).encode()).digest()).decode("ascii")
    return f"default-src 'none'; {sources}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _run(data: RunData) -> Values:
    record = data.result.record
    entries = record.to_json() | {"images_count": len(data.result.usable), "clusters": len(data.result.summary)}

    def fact(key: str, value: Any) -> str:
        if key == "seconds":
            return texts.in_words(float(value))
        return f"{value:,}" if isinstance(value, int) and key != "seed" else str(value)

    return {
        "title": record.images,
        "images": texts.plural(len(data.result.usable), "image"),
        "clusters": _kinds(data.result.summary),
        "name": shlex.quote(texts.inert(data.name)),
        "facts": [(name, fact(key, entries[key])) for key, name in FACTS.items() if entries.get(key) not in (None, "")],
        "command": [words for words in re.split(" (?=-)", texts.retold(str(record.command or ""))) if words],
        "quality": texts.quality_text(data.result.quality) if data.result.quality else None,
        "rounds": _rounds(record.rounds or 0),
    }


def _kinds(summary: Sequence[Row]) -> str:
    """Return the number of kinds, which are clusters of one name, and that of the clusters if it is another one."""
    clusters = texts.plural(len(summary), "cluster")
    kinds = len({row["name"] for row in summary} - {"", *(row["cluster"] for row in summary)})
    if not kinds:
        return clusters
    return texts.plural(kinds, "kind") + (f" · {clusters}" if kinds != len(summary) else "")


def _rounds(rounds: int) -> str:
    if not rounds:
        return "The network was used as it came: it was not trained on these images."
    return f"The network was trained on these images in {texts.plural(rounds, 'round')}."


def _clusters(data: RunData) -> Values:
    ranked = sorted(data.result.summary, key=lambda row: (-int(row["size"]), int(row["cluster"])))
    shown = sorted(ranked[:MAX_CLUSTERS], key=lambda row: int(row["cluster"]))
    hidden = ranked[MAX_CLUSTERS:]
    return {
        "sections": sections.sections(shown, data.result.usable, data.thumbnails, data.nouns),
        "count": len(data.result.summary),
        "hidden": len(hidden),
        "hidden_images": sum(int(row["size"]) for row in hidden),
    }


def _tabs(parts: Mapping[str, Any]) -> list[tuple[str, str, int | None]]:
    """Return (id, title, number of entries) of the parts that the page has."""
    tabs = [
        ("clusters", "Clusters", parts["clusters"]["count"], True),
        ("map", "Map", None, parts["map"]),
        ("problems", "Problems", parts["problems"]["count"], True),
        ("run", "Run", None, True),
    ]
    return [(id, title, entries) for id, title, entries, present in tabs if present]


def script_data(data: RunData, state: Mapping[str, Any] | None = None) -> str:
    """Return the data of the page's script as one JSON text that may be put inside HTML."""
    rows = len(data.result.usable)
    chosen, every = on_page(data.result.usable)
    value = {
        **({} if state is None else {"served": state}),
        "cut": data.result.facts.cut,
        "next": data.next_number,
        "columns": columns(len(on_sheet(rows))),
        "apart": sheet_step(rows),
        "sheet": "data:image/webp;base64," + base64.b64encode(data.sheet).decode("ascii") if data.sheet else None,
        "originals": quote(data.originals, errors="surrogateescape") or None,
        "formulas": {guard: f"^{pattern.pattern}" for guard, pattern in FORMULA.items()},
        "clusters": [_cluster(row, data) for row in data.result.summary],
        "images": _images(data) if chosen else None,
        "points": _points(data.positions[::every]) if data.positions is not None and chosen else None,
    }
    return htmlsafe_json_dumps(value, separators=(",", ":"), allow_nan=False)


def _cluster(row: Row, data: RunData) -> dict[str, Any]:
    """Return a row of the summary for the script."""
    number = int(row["cluster"])
    parts = data.parts.get(number)
    return {
        "number": number,
        "name": texts.inert(row["name"]) if row["name"] != row["cluster"] else "",
        "size": int(row["size"]),
        "junk": row.get("junk") == "1",
        "near": data.near.get(number, ()),
        "parts": {"sizes": parts.sizes, "images": parts.images, "merges": parts.merges} if parts else None,
    }


def on_page(clusters: Sequence[Row]) -> tuple[list[int], int]:
    """Return the rows whose images are in the page, every n-th row with a picture on the sheet, and n."""
    rows = on_sheet(len(clusters))
    every = max(1, -(-sum(map(len, Table.of(clusters).column("path")[rows])) // MAX_NAMES))
    return rows[::every], every


def _images(data: RunData) -> Values:
    """Return columns of the images in the page, every ``step``-th row."""
    chosen, _ = on_page(data.result.usable)
    table = data.result.usable.at(chosen)
    paths = [texts.inert(texts.bare(path)).rpartition("/") for path in table.column("path")]
    folders = {folder: i for i, folder in enumerate(dict.fromkeys(folder + slash for folder, slash, _ in paths))}
    labels = {label: i for i, label in enumerate(sorted({*table.column("label")}))}
    numbers = {row["cluster"]: i for i, row in enumerate((*data.result.summary, {"cluster": "-1"}))}
    distances, margins = (
        np.array([texts.number(cell) or 0.0 for cell in table.column(name)]) for name in ("distance", "margin")
    )
    farthest = max(1e-9, float(distances.max()))
    return {
        "step": chosen[1] if len(chosen) > 1 else 1,
        "distance": _packed(distances / farthest),
        "farthest": farthest,
        "margin": _packed(margins),
        "cluster": _shorts([numbers[cell] for cell in table.column("cluster")]),
        "outlier": np.flatnonzero(table.column("is_outlier") == "1").tolist(),
        "folder": _shorts([min(SCALE, folders[folder + slash]) for folder, slash, _ in paths]),
        "folders": list(folders),
        "names": [name for _, _, name in paths],
        "label": _shorts([min(SCALE, labels[label]) for label in table.column("label")]) if any(labels) else None,
        "labels": [texts.inert(label) for label in labels],
        "alike": 0 if data.similar is None else data.similar.shape[1],
        "similar": None if data.similar is None else _shorts(data.similar),
        "part": None if data.part is None else _shorts(data.part),
    }


def _points(positions: npt.NDArray[np.float32]) -> dict[str, Any]:
    width = max(1e-9, float(np.ptp(positions, axis=0).max()))
    x, y = ((positions - positions.min(0)) / width).T
    return {"x": _packed(x), "y": _packed(y)}


def _packed(shares: npt.NDArray[Any]) -> str:
    """Return numbers from 0 to 1 as base64 of 16-bit integers."""
    return _shorts(np.rint(np.clip(shares, 0, 1) * SCALE))


def _shorts(values: Any) -> str:
    return base64.b64encode(np.asarray(values).astype("<u2").tobytes()).decode("ascii")
