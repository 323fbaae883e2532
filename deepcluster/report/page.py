"""The records of a run as one self-contained HTML page: no network, nothing but pixels in the pictures.

This module turns records into plain values; all markup is in ``templates/``. Every text that reaches the page goes
through ``inert`` and the templates' escaping, in one place (``environment``), or into the JSON of ``data.py``. The
only script that the page lets run is ``report.js``, by its SHA-256; without it all parts stand one after the other.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from deepcluster.groups.merge_tree import Tree
from deepcluster.groups.quality_by_k import Level
from deepcluster.report import numbers, problems
from deepcluster.report.charts import PLOT_HEIGHT, PLOT_WIDTH, SHARES, charts
from deepcluster.report.confusion import confusion
from deepcluster.report.script_data import on_map, script_data
from deepcluster.report.sections import Picture, check, sections
from deepcluster.report.sizes import histograms
from deepcluster.report.summary import statements
from deepcluster.report.text import (
    MINUS,
    NOTHING,
    Row,
    bare,
    duration,
    figure,
    inert,
    number,
    percent,
    retold,
    short,
    three,
)
from deepcluster.report.thumbnails import sheet_uris

MAX_CLUSTERS = 100
MAX_SKIPPED = 200
LONG_HISTORY = 25  # rounds from which the table is folded

# Only these of run.json are shown: it also holds what a page that is passed on should not tell (host, absolute paths).
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
COLUMNS = {
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


def render(
    *,
    title: str,
    run: Mapping[str, Any],
    clusters: Sequence[Row],
    summary: Sequence[Row],
    history: Sequence[Row],
    metrics: Mapping[str, float | str] | None,
    skipped: Sequence[Row],
    picture: Picture,
    duplicates: Sequence[Row] | None = None,
    places: npt.NDArray[np.float32] | None = None,
    tree: tuple[Tree, Sequence[Level]] | None = None,
    sheet: bytes = b"",
    filters: Sequence[tuple[str, Image.Image]] = (),
    name: str = "RUN",
) -> str:
    """The report as text that encodes to UTF-8 whatever the names of the files.

    The rows are those of ``clusters.csv``, ``cluster_summary.csv``, ``history.csv``, ``skipped.csv`` and
    ``duplicates.csv`` (None where nobody looked for any), cells as text, an empty cell where there is no value;
    ``metrics`` is ``metrics.json``, None without labels; of ``run`` the known keys are shown (``FACTS``, ``command``
    and ``cut``). ``picture(path)`` gives the decoded RGB image of a row, or None when it cannot be read again.
    ``places`` (N x 2), ``tree`` and ``sheet`` (WebP) are those of the usable images, ``filters`` are layers and sheets;
    a part of the page that lacks its own is left out. ``name`` is what commands call the run. Above ``MAX_CLUSTERS``
    the largest are shown, in order of their numbers all the same. The page stays below 5 MB: pictures lose quality
    before it grows.
    """
    metrics = metrics or {}
    clusters = [row for row in clusters if row["status"] == "ok"]
    check(summary, clusters)
    by_size = sorted(summary, key=lambda row: (-int(row["size"]), int(row["cluster"])))
    shown = sorted(by_size[:MAX_CLUSTERS], key=lambda row: int(row["cluster"]))
    hidden = by_size[MAX_CLUSTERS:]
    heads, rounds = _history_table(history)
    curves = numbers.curves(tree[1]) if tree else None
    outliers, outliers_count = problems.outliers(clusters)
    alike, alike_count, alike_images = problems.duplicates(duplicates or [], clusters)
    metric_rows, table = _metric_rows(metrics), confusion(clusters)
    has_map = places is not None and len(clusters) > 0
    tabs = [
        ("clusters", "Clusters", len(summary)),
        *([("map", "Map", None)] if has_map else []),
        *([("groups", "Number of groups", None)] if curves else []),
        ("training", "Training", None),
        *([("filters", "Filters", None)] if filters else []),
        ("problems", "Problems", len(skipped) + outliers_count + alike_count),
        *([("labels", "Labels", None)] if metric_rows or table else []),
    ]
    pictures = sheet_uris([image for _, image in filters])
    templates = environment()
    return templates.get_template("report.html.j2").render(
        title=title,
        tabs=tabs,
        facts=_facts(run),
        command=[words for words in re.split(" (?=-)", retold(str(run.get("command") or ""))) if words],
        statements=statements(clusters, summary, history, metrics, skipped, _said(run)),
        metrics=metric_rows,
        compared=[row for row in metric_rows if row[2] != NOTHING],
        nmi_average=metrics.get("nmi_average"),
        confusion=table,
        sections=sections(shown, clusters, picture, taken=sum(map(len, pictures))),
        has_labels=table is not None,
        summary_count=len(summary),
        hidden=len(hidden),
        hidden_images=sum(int(row["size"]) for row in hidden),
        has_map=has_map,
        images=len(clusters),
        shown=len(on_map(clusters)[0]),
        curves=curves,
        curves_width=numbers.WIDTH,
        curves_height=numbers.HEIGHT,
        charts=charts(history),
        histograms=histograms(clusters),
        filters=[(layer, uri) for (layer, _), uri in zip(filters, pictures, strict=True)],
        plot=(PLOT_WIDTH, PLOT_HEIGHT),
        heads=heads,
        rounds=rounds,
        fold_history=len(history) >= LONG_HISTORY,
        skipped=skipped[:MAX_SKIPPED],
        skipped_count=len(skipped),
        outliers=outliers,
        outliers_count=outliers_count,
        duplicates=alike,
        duplicates_count=alike_count,
        duplicates_images=alike_images,
        has_duplicates=duplicates is not None,
        name=shlex.quote(inert(name)),
        style=_own("report.css"),
        script=_own("report.js"),
        script_sha256=base64.b64encode(hashlib.sha256(_own("report.js").encode()).digest()).decode("ascii"),
        data=Markup(
            script_data(
                cut=str(run.get("cut") or ""),
                recut=f"deepcluster recut {shlex.quote(inert(name))} -k ",
                clusters=clusters,
                summary=summary,
                places=places,
                tree=tree,
                sheet=sheet,
            )
        ),
    )


@cache
def _own(name: str) -> Markup:
    """The text of a file in ``templates/``, as it is."""
    loader = PackageLoader("deepcluster.report")
    return Markup(loader.get_source(environment(), name)[0])


@cache
def environment() -> Environment:
    def finalize(value: Any) -> Any:
        """What every ``{{ ... }}`` goes through before it is escaped; markup of the template's own stays as it is."""
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


def _said(run: Mapping[str, Any]) -> list[str]:
    """The verdict, and what the guard of an adapted network decided."""
    guard = run.get("guard")
    told = str(guard.get("text", "")) if isinstance(guard, dict) else ""
    sentences = [str(run.get("verdict") or ""), told and f"{told[0].upper()}{told[1:]}."]
    return [sentence for sentence in sentences if sentence]


def _history_table(history: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells. A column that this page does not know is shown under its own name."""

    def cell(key: str, text: str) -> str:
        value = number(text)
        if value is None:
            return text
        return percent(value) if key in SHARES else figure(value)

    names = list(history[0]) if history else []
    return [COLUMNS.get(name, name) for name in names], [[cell(name, row[name]) for name in names] for row in history]
