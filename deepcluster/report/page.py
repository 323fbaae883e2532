"""The records of a run as one self-contained HTML page: no network, nothing but pixels in the pictures.

This module turns records into plain values; all markup is in ``templates/``. Every text that reaches the page passes
``inert`` and the templates' escaping, in one place (``templates``), or the JSON of ``script_data``. The only script
that the page allows is ``report.js``, by its SHA-256; without it the parts follow one another.
"""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deepcluster.groups.tree import Parts, Tree
from deepcluster.records import PRELIMINARY
from deepcluster.report.charts import (
    HEIGHT,
    SHARES,
    WIDTH,
    counted,
    histograms,
    training_charts,
)
from deepcluster.report.pictures import columns, on_sheet, tile
from deepcluster.report.sections import (
    Picture,
    Values,
    by_size,
    check_rows,
    confusion,
    problems,
    sections,
    statements,
    suggestions,
)
from deepcluster.report.terms import HEADS, TERMS
from deepcluster.report.text import (
    MINUS,
    NOTHING,
    Row,
    agreement,
    bare,
    count,
    duration,
    figure,
    inert,
    number,
    percent,
    retold,
    short,
    three,
)
from deepcluster.storage.table import Table

MAX_CLUSTERS = 100
LONG_HISTORY = 25  # rounds from which the table is folded

# Only these keys of run.json are shown: others should not be on a page that is passed on (host, absolute paths).
FACTS = {
    "images": "Images",
    "images_count": "Number of images",
    "clusters": "Clusters",
    "pseudo_labels": "Pseudo-labels",
    "backbone": "Backbone",
    "device": "Device",
    "seconds": "Time",
    "seed": "Seed",
    "version": "Version",
    "stopped_because": "Stopped because",
}
METRICS = {"acc": "Accuracy", "nmi": "NMI", "ami": "AMI", "ari": "ARI"}
HISTORY_COLUMNS = {
    "round": "Round",
    "loss": "Loss",
    "chance_loss": "Chance loss",
    "inertia": "Inertia",
    "nmi_previous": "NMI to previous",
    "changed": "Changed",
    "cluster_weight": "Cluster weight",
    "largest_share": "Largest share",
    "reseeded": "Reseeded",
    "lr": "Learning rate",
    "features_seconds": "Features, s",
    "clustering_seconds": "Clustering, s",
    "training_seconds": "Training, s",
    "images_per_second": "Images per s",
    "nmi_labels": "NMI to labels",
}


@dataclass(frozen=True)
class RunData:
    """The records of a run: its JSON files, and rows of its CSV files, cells as text, empty if there is no value.

    Attributes:
        run: run.json, of which ``FACTS``, ``command``, ``candidates``, ``cut`` and ``verdict`` are shown.
        metrics: metrics.json; None without labels.
        picture: Gives the decoded RGB image of a path, or None if it cannot be read again.
        duplicates: None if duplicates were not searched for.
        positions: M x 2, where each image on the sheet is on the map; None leaves the map out.
        tree: Merge tree of the clusters; None leaves the number of groups out.
        sheet: WebP of tiny pictures of the usable images.
        name: The run's name in commands.
        similar: n x m, the images most like each of the n that are in the page (``on_page``), as numbers among these.
        parts: The parts that each cluster can be split into.
        part: The part of its cluster that each of the n images is in.
        originals: The way from the page to the folder that the paths are relative to; empty: no links.
    """

    title: str
    run: Mapping[str, Any]
    clusters: Sequence[Row]
    summary: Sequence[Row]
    history: Sequence[Row]
    metrics: Mapping[str, float | str] | None
    skipped: Sequence[Row]
    picture: Picture
    duplicates: Sequence[Row] | None = None
    positions: npt.NDArray[np.float32] | None = None
    tree: Tree | None = None
    sheet: bytes = b""
    name: str = "RUN"
    similar: npt.NDArray[np.int64] | None = None
    parts: Mapping[int, Parts] = field(default_factory=dict)
    part: npt.NDArray[np.int64] | None = None
    originals: str = ""


def render(data: RunData) -> str:
    """The report as text that encodes to UTF-8 whatever the names of the files.

    Of more than ``MAX_CLUSTERS`` clusters the largest are shown, in order of their numbers. The page stays below 5 MB:
    pictures lose quality instead.
    """
    data = replace(data, clusters=Table.of(data.clusters).where("status", "ok"))
    check_rows(data.summary, data.clusters)
    name = shlex.quote(inert(data.name))
    parts: dict[str, Any] = {
        "run": _run(data, name),
        "clusters": _clusters(data),
        "map": _map(data),
        "groups": _groups(data),
        "training": _training(data.history, data.clusters),
        "problems": problems(data.skipped, data.clusters, data.duplicates),
        "labels": _labels(data),
    }
    return (
        templates()
        .get_template("report.html.j2")
        .render(**parts, tabs=_tabs(parts), page=_page(data, name), terms=TERMS, heads=HEADS)
    )


def _run(data: RunData, name: str) -> dict[str, Any]:
    return {
        "title": data.title,
        "preliminary": _preliminary(data.run),
        "images": count(len(data.clusters), "image"),
        "clusters": count(len(data.summary), "cluster"),
        "stability": None if data.run.get("stability") is None else agreement(float(data.run["stability"])),
        "name": name,
        "facts": _facts(data.run),
        "command": [words for words in re.split(" (?=-)", retold(str(data.run.get("command") or ""))) if words],
        "statements": statements(
            data.clusters, data.summary, data.history, data.metrics or {}, data.skipped, data.run.get("verdict") or ""
        ),
    }


def _preliminary(run: Mapping[str, Any]) -> str:
    """A sentence on a result that a run was still to replace; empty for a final one."""
    if run.get("result") != PRELIMINARY:
        return ""
    rounds = int(run.get("rounds") or 0)
    after = f"after {count(rounds, 'round')} of training" if rounds else "before any training"
    return f"Preliminary: the groups as they were {after}. The run replaces this page as it goes on."


def _clusters(data: RunData) -> dict[str, Any]:
    ranked = by_size(data.summary)
    shown = sorted(ranked[:MAX_CLUSTERS], key=lambda row: int(row["cluster"]))
    hidden = ranked[MAX_CLUSTERS:]
    return {
        "sections": sections(shown, data.clusters, data.picture, in_page=on_page(data.clusters)[0]),
        "count": len(data.summary),
        "hidden": len(hidden),
        "hidden_images": sum(int(row["size"]) for row in hidden),
        "suggested": _suggested(data),
    }


def _suggested(data: RunData) -> list[Values]:
    """Return the candidates for the number of groups; none if there are edits, which another cut would lose."""
    if data.tree is None or data.run.get("edits"):
        return []
    return suggestions(data.run.get("candidates") or [], data.tree, len(data.clusters))


def _map(data: RunData) -> dict[str, int] | None:
    if data.positions is None or not data.clusters:
        return None
    return {"images": len(data.clusters), "shown": len(on_page(data.clusters)[0])}


def _groups(data: RunData) -> dict[str, Any] | None:
    """Return the end of the slider; None if the tree offers fewer than two numbers of groups."""
    if data.tree is None or len(data.tree.groups) < 3:
        return None
    return {"most": len(data.tree.groups)}


def _training(history: Sequence[Row], clusters: Sequence[Row]) -> dict[str, Any]:
    columns, rounds = _history_table(history)
    return {
        "columns": columns,
        "rounds": rounds,
        "folded": len(history) >= LONG_HISTORY,
        "charts": training_charts(history),
        "histograms": histograms(clusters),
        "width": WIDTH,
        "height": HEIGHT,
    }


def _labels(data: RunData) -> dict[str, Any]:
    metrics = data.metrics or {}
    rows = _metric_rows(metrics)
    return {
        "metrics": rows,
        "compared": [row for row in rows if row[2] != NOTHING],
        "nmi_average": metrics.get("nmi_average"),
        "confusion": confusion(data.clusters),
    }


def _tabs(parts: Mapping[str, Any]) -> list[tuple[str, str, int | None]]:
    """(id, text, number of entries) of the parts that the page has."""
    labels = parts["labels"]
    tabs = [
        ("clusters", "Clusters", parts["clusters"]["count"], True),
        ("map", "Map", None, parts["map"]),
        ("groups", "Number of groups", None, parts["groups"]),
        ("training", "Training", None, True),
        ("problems", "Problems", parts["problems"]["count"], True),
        ("labels", "Labels", None, labels["metrics"] or labels["confusion"]),
        ("run", "Run", None, True),
    ]
    return [(id, text, count) for id, text, count, present in tabs if present]


def _page(data: RunData, name: str) -> dict[str, Any]:
    """Style, script and the script's data, which are not escaped."""
    script = Markup(re.sub(r"^//= (.+)$", lambda line: _file(line[1]), _file("report.js"), flags=re.MULTILINE))
    return {
        "style": _file("report.css"),
        "script": script,
        "script_sha256": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        "data": Markup(script_data(data, name)),
    }


@cache
def _file(name: str) -> Markup:
    """The text of a file in ``templates/``, not escaped."""
    loader = PackageLoader("deepcluster.report")
    return Markup(loader.get_source(templates(), name)[0])


@cache
def templates() -> Environment:
    def finalize(value: Any) -> Any:
        """Applied to every ``{{ ... }}`` before it is escaped; markup of the templates is left alone."""
        return inert(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = Environment(
        loader=PackageLoader("deepcluster.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"grouped": "{:,}".format, "short": short, "bare": bare}
    return environment


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    def text(key: str, value: Any) -> str:
        if key == "seconds":
            return duration(float(value))
        return f"{value:,}" if isinstance(value, int) and key != "seed" else str(value)

    return [(name, text(key, run[key])) for key, name in FACTS.items() if run.get(key) not in (None, "")]


def _metric_rows(metrics: Mapping[str, float | str]) -> list[tuple[str, str, str, str]]:
    """(measure, trained, at the start, difference) for every number that is not itself a baseline."""
    names = [name for name in metrics if not name.startswith("baseline_") and name not in ("nmi_average", "labelled")]
    names.sort(key=lambda name: list(METRICS).index(name) if name in METRICS else len(METRICS))
    rows = []
    for name in names:
        trained, start = number(metrics[name]), number(metrics.get(f"baseline_{name}"))
        gain = NOTHING if trained is None or start is None else f"{trained - start:+.3f}".replace("-", MINUS)
        rows.append((METRICS.get(name, name), three(trained), three(start), gain))
    return rows


def _history_table(history: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells. A column without a title here is shown under its name."""

    def cell(key: str, text: str) -> str:
        value = number(text)
        if key == "round":
            return counted(text)
        if value is None:
            return text
        return percent(value) if key in SHARES else figure(value)

    names = list(history[0]) if history else []
    return [HISTORY_COLUMNS.get(name, name) for name in names], [
        [cell(name, row[name]) for name in names] for row in history
    ]


NAMES = 600_000  # characters of file names, above which fewer images are in the page
STEPS = 65_535  # between the least and the greatest coordinate or distance


def script_data(data: RunData, name: str) -> str:
    """Return the data of the page's script as one JSON text that may be put inside HTML.

    Args:
        data: Its clusters are the usable rows.
        name: The name of the run in commands, quoted for a shell.
    """
    clusters, sheet, similar, part, positions = data.clusters, data.sheet, data.similar, data.part, data.positions
    chosen, every = on_page(clusters)
    value = {
        "run": str(data.run.get("run") or ""),
        "cut": str(data.run.get("cut") or ""),
        "recut": f"deepcluster recut {name} -k ",
        "columns": columns(len(on_sheet(len(clusters)))),
        "sheet": "data:image/webp;base64," + base64.b64encode(sheet).decode("ascii") if sheet else None,
        "originals": quote(data.originals, errors="surrogateescape") or None,
        "clusters": [_cluster(row, data.parts.get(int(row["cluster"]))) for row in data.summary],
        "images": {
            **_images(clusters, data.summary, chosen, every),
            "alike": 0 if similar is None else similar.shape[1],
            "similar": None if similar is None else _shorts(similar),
            "part": None if part is None else _shorts(part),
        }
        if chosen
        else None,
        "points": _points(positions[::every]) if positions is not None and chosen else None,
        "tree": _tree(data.tree, len(clusters)) if data.tree else None,
    }
    return harmless(json.dumps(value, separators=(",", ":"), allow_nan=False))


def harmless(text: str) -> str:
    """JSON in ASCII without HTML's special characters, so that no text in it can end the element around it."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _cluster(row: Row, parts: Parts | None) -> dict[str, Any]:
    return {
        "number": int(row["cluster"]),
        "name": inert(row["name"]) if row["name"] != row["cluster"] else "",
        "size": int(row["size"]),
        "distance": number(row["mean_distance"]),
        "nearest": int(row["nearest_cluster"]) if row["nearest_cluster"].isdecimal() else None,
        "junk": row.get("junk") == "1",
        "parts": {"sizes": parts.sizes, "images": parts.images, "merges": parts.merges} if parts else None,
    }


def on_page(clusters: Sequence[Row]) -> tuple[list[int], int]:
    """The rows whose images are in the page, every n-th of those with a picture on the sheet, and n."""
    rows = on_sheet(len(clusters))
    every = max(1, -(-sum(len(clusters[i]["path"]) for i in rows) // NAMES))
    return rows[::every], every


def _images(clusters: Sequence[Row], summary: Sequence[Row], chosen: Sequence[int], every: int) -> dict[str, Any]:
    """Columns of the images in the page, which are ``every`` pictures of the sheet, or ``step`` rows, apart."""
    rows = [clusters[i] for i in chosen]
    paths = [inert(bare(row["path"])).rpartition("/") for row in rows]
    folders = {folder: i for i, folder in enumerate(dict.fromkeys(folder + slash for folder, slash, _ in paths))}
    labels = {label: i for i, label in enumerate(sorted({row["label"] for row in rows}))}
    numbers = {row["cluster"]: i for i, row in enumerate(summary)}
    distances = np.array([number(row["distance"]) or 0.0 for row in rows])
    margins = np.array([number(row["margin"]) or 0.0 for row in rows])
    farthest = max(1e-9, float(distances.max()))
    return {
        "every": every,
        "step": chosen[1] if len(chosen) > 1 else 1,
        "distance": _packed(distances / farthest),
        "farthest": farthest,
        "margin": _packed(margins),
        "cluster": _shorts([numbers[row["cluster"]] for row in rows]),
        "outlier": [i for i, row in enumerate(rows) if row["is_outlier"] == "1"],
        "folder": _shorts([min(STEPS, folders[folder + slash]) for folder, slash, _ in paths]),
        "folders": list(folders),
        "names": [name for _, _, name in paths],
        "label": _shorts([min(STEPS, labels[row["label"]]) for row in rows]) if any(labels) else None,
        "labels": [inert(label) for label in labels],
    }


def _points(positions: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the places of the images in the page on the map."""
    corner, width = positions.min(0), max(1e-9, float(np.ptp(positions, axis=0).max()))
    x, y = ((positions - corner) / width).T
    return {"x": _packed(x), "y": _packed(y)}


def _tree(tree: Tree, images: int) -> Mapping[str, Any]:
    """``tiles`` are the positions of the nodes' medoids on the sheet, or -1."""
    return {
        "groups": tree.groups,
        "merges": tree.merges,
        "sizes": tree.sizes,
        "tiles": [tile(row, images) for row in tree.medoids],
    }


def _packed(shares: npt.NDArray[Any]) -> str:
    """Numbers from 0 to 1 as base64 of 16 bits each."""
    return _shorts(np.rint(np.clip(shares, 0, 1) * STEPS))


def _shorts(values: Any) -> str:
    return base64.b64encode(np.asarray(values).astype("<u2").tobytes()).decode("ascii")
