"""The records of a run as one self-contained HTML page: no script, no network, nothing but pixels in the pictures.

This module turns records into plain frozen values (``Section``, ``Tile``, ``Chart``, ...); all markup is in
``templates/report.html.j2``. Names of files come from strangers: every text that reaches the page goes through
``inert`` and the template's escaping, in one place (``_environment``).
"""

import base64
import math
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageOps

from deepcluster.errors import DataError, UsageError

Row = Mapping[str, str]
Kind = Literal["medoid", "central", "spread", "borderline"]
Picture = Callable[[str], Image.Image | None]

# Base64 of all thumbnails together. The page stays below 5 MB: the rest is for names, tables and styles.
PICTURE_CHARACTERS = 4_000_000
THUMBNAIL = 88  # pixels a side; the medoid is shown twice as wide and high, so it gets twice as many
TINY = 32  # pictures up to this side keep their very pixels: they cost little, and enlarging shows every flaw
MAX_SKIPPED = 200
MAX_NAME = 160  # characters of a path; Linux allows 4096, and 1,600 of those would be the whole page
LONG_HISTORY = 25  # rounds from which the table is folded
PLOT_WIDTH, PLOT_HEIGHT = 264.0, 120.0
NOTHING, MINUS = "\u2013", "\u2212"  # a dash where there is no value; a minus as wide as the plus

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
    "largest_share": "Largest share",
    "reseeded": "Reseeded",
    "lr": "Learning rate",
    "features_seconds": "Features, s",
    "clustering_seconds": "Clustering, s",
    "training_seconds": "Training, s",
    "images_per_second": "Images per s",
    "nmi_labels": "NMI to labels",
}
SHARES = {"changed", "largest_share"}  # columns shown as percentages


@dataclass(frozen=True)
class Tile:
    """One image of a contact sheet. ``source`` is a data URI, or empty where the image could not be read again."""

    path: str
    kind: Kind
    source: str
    title: str


@dataclass(frozen=True)
class Section:
    """One cluster. ``nearest`` is the number of a cluster that is on the page too, when ``linked``."""

    number: int
    name: str
    size: int
    share: str
    bar: float
    mean_distance: str
    nearest: str
    linked: bool
    outliers: int
    labels: tuple[tuple[str, str], ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Line:
    """One line of a chart: ``path`` is SVG path data, ``end`` its last point (None where there is no value)."""

    name: str
    path: str
    last: str
    end: tuple[float, float] | None


@dataclass(frozen=True)
class Chart:
    """A series over the rounds; ``reference`` is a second line to compare with. Ticks are (position, text)."""

    title: str
    line: Line
    reference: Line | None
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


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
    images_per_cluster: int = 16,
    max_clusters: int = 100,
) -> str:
    """The report as text that encodes to UTF-8 whatever the names of the files.

    The rows are those of ``clusters.csv``, ``cluster_summary.csv``, ``history.csv`` and ``skipped.csv``, cells as text,
    an empty cell where there is no value; ``metrics`` is ``metrics.json``, None without labels; of ``run`` the known
    keys are shown (``FACTS`` and ``command``). ``picture(path)`` gives the decoded RGB image of a row, or None when it
    cannot be read again. Above ``max_clusters`` the largest are shown, in order of their numbers all the same. With the
    default limits the page stays below 5 MB: thumbnails lose quality before it grows.
    """
    if images_per_cluster < 1:
        raise UsageError(f"images_per_cluster={images_per_cluster} should be >= 1")
    if max_clusters < 1:
        raise UsageError(f"max_clusters={max_clusters} should be >= 1")
    members = _members(clusters, summary)
    by_size = sorted(summary, key=lambda row: (-int(row["size"]), int(row["cluster"])))
    shown = sorted(by_size[:max_clusters], key=lambda row: int(row["cluster"]))
    hidden = by_size[max_clusters:]
    charts = _charts(history)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            facts=_facts(run),
            command=_command(run.get("command")),
            statements=_statements(members, summary, history, metrics, skipped),
            metrics=_metric_rows(metrics) if metrics else [],
            nmi_average=(metrics or {}).get("nmi_average"),
            sections=_sections(shown, members, picture, images_per_cluster),
            hidden=len(hidden),
            hidden_images=sum(int(row["size"]) for row in hidden),
            charts=charts,
            plot=(PLOT_WIDTH, PLOT_HEIGHT),
            history=_history_table(history),
            rounds=len(history),
            fold_history=len(history) >= LONG_HISTORY,
            skipped=skipped[:MAX_SKIPPED],
            skipped_count=len(skipped),
        )
    )


def representatives(rows: Sequence[Row], count: int, *, medoid: str = "") -> list[tuple[Row, Kind]]:
    """Up to ``count`` of a cluster's rows and why each was chosen, in the order in which they are shown.

    First the medoid (the row of path ``medoid``, else the one nearest to the centroid), then central images, then a
    spread over the ranks of the rest that ends with the farthest, and last the borderline ones: those of the smallest
    margin, smallest first. A quarter is central and a quarter borderline; a row without a margin is never borderline.
    """
    ranked = sorted(rows, key=lambda row: _or_infinity(row["distance"]))
    if count < 1 or not ranked:
        return []
    first = next((row for row in ranked if medoid and row["path"] == medoid), ranked[0])
    ranked = [row for row in ranked if row is not first]
    places = min(count, len(rows))

    doubtful = sorted(
        (row for row in ranked if _number(row["margin"]) is not None), key=lambda row: float(row["margin"])
    )
    borderline = doubtful[: places // 4]
    taken = {id(row) for row in borderline}
    ranked = [row for row in ranked if id(row) not in taken]
    central, rest = ranked[: places // 4], ranked[places // 4 :]
    wanted = places - 1 - len(central) - len(borderline)
    spread = [rest[(i + 1) * len(rest) // wanted - 1] for i in range(wanted)]

    chosen: list[tuple[Row, Kind]] = [(first, "medoid")]
    chosen += [(row, "central") for row in central]
    chosen += [(row, "spread") for row in spread]
    chosen += [(row, "borderline") for row in borderline]
    return chosen


def curve(values: Sequence[float | None], *, width: float, height: float, high: float) -> str:
    """SVG path data of a series: 0 at the bottom, ``high`` at the top, the values evenly from left to right.

    None interrupts the line; a value between two gaps becomes a line of no length (a dot, with round line caps).
    """
    steps: list[str] = []
    for i, value in enumerate(values):
        if value is None:
            continue
        x, y = _point(i, value, len(values), width, height, high)
        begins = i == 0 or values[i - 1] is None
        ends = i + 1 == len(values) or values[i + 1] is None
        steps.append(f"{'M' if begins else 'L'}{x:g},{y:g}" + (" h0" if begins and ends else ""))
    return " ".join(steps)


def thumbnail(image: Image.Image, side: int, limit: int) -> bytes:
    """The central square as WebP of at most ``limit`` bytes (if at all possible), from the pixels and nothing else."""
    side = min(side, *image.size)
    square = ImageOps.fit(image.convert("RGB"), (side, side))
    # A new image has no EXIF, comment or colour profile that an encoder could copy, whatever the version of Pillow.
    bare = Image.frombytes("RGB", square.size, square.tobytes())
    if side <= TINY:
        data = _webp(bare, lossless=True)
        if len(data) <= limit:
            return data
    for scale, quality in ((1.0, 75), (1.0, 40), (0.75, 20), (0.5, 10)):
        smaller = max(1, round(side * scale))
        data = _webp(bare.resize((smaller, smaller)) if smaller < side else bare, quality=quality)
        if len(data) <= limit:
            break
    return data


def inert(text: str) -> str:
    r"""Text that can be encoded, and that cannot hide or reorder what stands beside it.

    Bytes that were no UTF-8 (surrogate escapes) and control characters become ``\xNN``; invisible format characters,
    such as those that turn the direction of writing, ``\uNNNN``. The two joiners stay: names in Persian, Hindi or with
    composed emoji need them.
    """
    return "".join(char if char.isprintable() else _visible(char) for char in text)


def _visible(char: str) -> str:
    code = ord(char)
    if unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} or char in "\u200c\u200d":
        return char
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _environment() -> Environment:
    def finalize(value: Any) -> Any:
        """What every ``{{ ... }}`` goes through before it is escaped; markup of the template's own stays as it is."""
        if value is None:
            return ""
        return inert(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = Environment(
        loader=PackageLoader("deepcluster.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"grouped": "{:,}".format, "short": _short}
    return environment


def _members(clusters: Sequence[Row], summary: Sequence[Row]) -> dict[int, list[Row]]:
    """The usable rows of every cluster; both files must tell of the same clusters."""
    for row in summary:
        if not (row["cluster"].isdecimal() and row["size"].isdecimal()):
            raise DataError(
                f"cluster_summary.csv: cluster {row['cluster']!r} of size {row['size']!r} should both be whole numbers"
            )
    members: dict[int, list[Row]] = {int(row["cluster"]): [] for row in summary}
    for row in clusters:
        if row["status"] != "ok":
            continue
        if not row["cluster"].isdecimal() or int(row["cluster"]) not in members:
            raise DataError(
                f"clusters.csv puts {row['path']!r} into cluster {row['cluster']!r}, which is not one of the "
                f"{len(members)} in cluster_summary.csv; are both of the same run?"
            )
        members[int(row["cluster"])].append(row)
    return members


def _sections(
    shown: Sequence[Row], members: Mapping[int, Sequence[Row]], picture: Picture, images_per_cluster: int
) -> list[Section]:
    chosen = [
        representatives(members[int(row["cluster"])], images_per_cluster, medoid=row["medoid_path"]) for row in shown
    ]
    # The medoid covers four places, and may take as many bytes.
    places = sum(len(rows) + 3 for rows in chosen if rows)
    limit = PICTURE_CHARACTERS * 3 // 4 // max(1, places)
    numbers = {row["cluster"] for row in shown}
    largest = max((int(row["size"]) for row in shown), default=0)
    return [
        Section(
            number=int(row["cluster"]),
            name=row["name"] if row["name"] != row["cluster"] else "",
            size=int(row["size"]),
            share=_percent(_number(row["share"])),
            bar=round(100 * int(row["size"]) / max(1, largest), 1),
            mean_distance=_figure(_number(row["mean_distance"])),
            nearest=row["nearest_cluster"],
            linked=row["nearest_cluster"] in numbers,
            outliers=sum(member["is_outlier"] == "1" for member in members[int(row["cluster"])]),
            labels=_frequent_labels(members[int(row["cluster"])]),
            tiles=tuple(_tile(member, kind, picture, limit) for member, kind in rows),
        )
        for row, rows in zip(shown, chosen, strict=True)
    ]


def _tile(row: Row, kind: Kind, picture: Picture, limit: int) -> Tile:
    image = picture(row["path"])
    scale = 2 if kind == "medoid" else 1
    source = ""
    if image is not None:
        data = thumbnail(image, scale * THUMBNAIL, scale * scale * limit)
        source = "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
    about = [
        _short(row["path"].rpartition("/")[2]),
        kind if kind != "spread" else "",
        f"distance {_figure(_number(row['distance']))}",
        f"margin {_figure(_number(row['margin']))}",
        f"label {row['label']}" if row["label"] else "",
        "outlier" if row["is_outlier"] == "1" else "",
    ]
    return Tile(
        path=row["path"],
        kind=kind,
        source=source,
        title=" · ".join(part for part in about if part),
    )


def _frequent_labels(rows: Sequence[Row]) -> tuple[tuple[str, str], ...]:
    """The most frequent label of the labelled rows, and up to two more that reach a tenth."""
    counts = Counter(row["label"] for row in rows if row["label"])
    return tuple(
        (label, _percent(count / counts.total()))
        for i, (label, count) in enumerate(counts.most_common(3))
        if i == 0 or count >= counts.total() / 10
    )


def _charts(history: Sequence[Row]) -> list[Chart]:
    """What tells whether the training went well: a chart for every series that has a value."""
    series: dict[str, list[float | None]] = defaultdict(list)
    for row in history:
        for name in COLUMNS:
            series[name].append(_number(row.get(name)))
    rounds = [row["round"] for row in history]
    charts = []
    for name, title, top in (
        ("loss", "Loss", None),
        ("nmi_previous", "NMI to the previous round", 1.0),
        ("changed", "Images that changed pseudo-label", None),
        ("largest_share", "Largest pseudo-label's share", None),
        ("nmi_labels", "NMI to the labels", 1.0),
    ):
        compared = series["chance_loss"] if name == "loss" else []
        known = [value for value in (*series[name], *compared) if value is not None]
        if not any(value is not None for value in series[name]):
            continue
        high = top or _ceiling(max(known))
        text, tick = (_percent, _percent_tick) if name in SHARES else (_figure, "{:g}".format)
        charts.append(
            Chart(
                title=title,
                line=_line(name, series[name], high, text),
                reference=_line("chance, ln K", compared, high, text) if any(compared) else None,
                x_ticks=_round_ticks(rounds),
                y_ticks=tuple((round(PLOT_HEIGHT * (1 - part), 1), tick(high * part)) for part in (0.0, 0.5, 1.0)),
            )
        )
    return charts


def _line(name: str, values: Sequence[float | None], high: float, text: Callable[[float | None], str]) -> Line:
    last = max((i for i, value in enumerate(values) if value is not None), default=-1)
    value = values[last] if last >= 0 else None
    return Line(
        name=name,
        path=curve(values, width=PLOT_WIDTH, height=PLOT_HEIGHT, high=high),
        last=text(value),
        end=_point(last, value, len(values), PLOT_WIDTH, PLOT_HEIGHT, high) if value is not None else None,
    )


def _point(i: int, value: float, count: int, width: float, height: float, high: float) -> tuple[float, float]:
    x = width * i / (count - 1) if count > 1 else width / 2
    return round(x, 1), round(height * (1 - value / high), 1)


def _round_ticks(rounds: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """The first, the middle and the last round."""
    places = sorted({0, (len(rounds) - 1) // 2, len(rounds) - 1})
    return tuple((_point(i, 0.0, len(rounds), PLOT_WIDTH, PLOT_HEIGHT, 1.0)[0], rounds[i]) for i in places)


def _ceiling(value: float) -> float:
    """A round number at or above ``value`` whose half is round too."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    def text(key: str, value: Any) -> str:
        if key == "seconds":
            return _duration(float(value))
        return f"{value:,}" if isinstance(value, int) and key != "seed" else str(value)

    return [(name, text(key, run[key])) for key, name in FACTS.items() if run.get(key) not in (None, "")]


def _command(command: Any) -> str:
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else str(command or "")


def _statements(
    members: Mapping[int, Sequence[Row]],
    summary: Sequence[Row],
    history: Sequence[Row],
    metrics: Mapping[str, float | str] | None,
    skipped: Sequence[Row],
) -> list[str]:
    """One plain sentence for each main fact, the good and the bad in the same tone."""
    sizes = [int(row["size"]) for row in summary]
    images = sum(sizes)
    told = [f"{_count(images, 'image')} in {_count(len(sizes), 'cluster')}."]
    if len(sizes) > 1 and images:
        told[0] = told[0][:-1] + (
            f"; the largest holds {_percent(max(sizes) / images)} of them, "
            f"the smallest {_percent(min(sizes) / images)}."
        )
    if not history:
        told.append("No round was trained: the clusters are those of the network as it was given.")
    else:
        changed = _number(history[-1].get("changed"))
        told.append(
            f"{_count(len(history), 'round')} of clustering and training"
            + (
                f"; in the last, {_percent(changed)} of the images changed pseudo-label."
                if changed is not None
                else "."
            )
        )
        loss, chance = _number(history[-1].get("loss")), _number(history[-1].get("chance_loss"))
        if loss is not None and chance is not None:
            told.append(f"The last round's loss is {_figure(loss)}; guessing would give {_figure(chance)}.")
    outliers = sum(row["is_outlier"] == "1" for rows in members.values() for row in rows)
    if outliers:
        far = (
            "lies far from every cluster and is an outlier" if outliers == 1 else "lie far from every cluster: outliers"
        )
        told.append(f"{_count(outliers, 'image')} ({_percent(outliers / max(1, images))}) {far}.")
    if metrics:
        told += _verdict(metrics)
    told.append(
        f"{_count(len(skipped), 'file')} could not be used and {'was' if len(skipped) == 1 else 'were'} skipped."
        if skipped
        else "Every file could be used."
    )
    return told


def _verdict(metrics: Mapping[str, float | str]) -> list[str]:
    trained, untrained = _number(metrics.get("acc")), _number(metrics.get("baseline_acc"))
    if trained is None:
        return []
    if untrained is None:
        return [f"Against the labels the clusters reach an accuracy of {trained:.3f}."]
    outcome = "training helped" if trained > untrained else "training did not help"
    return [
        f"Against the labels the clusters reach an accuracy of {trained:.3f}, those of the untrained network "
        f"{untrained:.3f}: by this measure {outcome} in this run."
    ]


def _metric_rows(metrics: Mapping[str, float | str]) -> list[tuple[str, str, str, str]]:
    """(measure, trained, untrained, difference) for every number that is not itself a baseline."""
    names = [name for name in metrics if not name.startswith("baseline_") and name != "nmi_average"]
    names.sort(key=lambda name: list(METRICS).index(name) if name in METRICS else len(METRICS))
    rows = []
    for name in names:
        trained, untrained = _number(metrics[name]), _number(metrics.get(f"baseline_{name}"))
        gain = NOTHING if trained is None or untrained is None else f"{trained - untrained:+.3f}".replace("-", MINUS)
        rows.append((METRICS.get(name, name), _three(trained), _three(untrained), gain))
    return rows


def _history_table(history: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells. A column that this page does not know is shown under its own name."""
    keys = list(dict.fromkeys(key for row in history for key in row))

    def cell(key: str, text: str | None) -> str:
        value = _number(text)
        if value is None:
            return text or ""
        return _percent(value) if key in SHARES else _figure(value)

    return [COLUMNS.get(key, key) for key in keys], [[cell(key, row.get(key)) for key in keys] for row in history]


def _webp(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "WEBP", **options)
    return file.getvalue()


def _number(value: object) -> float | None:
    """A finite number, or None for an empty cell, NaN, infinity and whatever else is no number."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _or_infinity(text: str) -> float:
    value = _number(text)
    return math.inf if value is None else value


def _figure(value: float | None) -> str:
    """Three digits that matter; whole numbers in full."""
    if value is None:
        return NOTHING
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:#.3g}".removesuffix(".") if abs(value) >= 1e-4 else f"{value:.2g}"


def _three(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    if share is None:
        return NOTHING
    return f"{100 * share:.1f}%"


def _percent_tick(share: float) -> str:
    return f"{100 * share:g}%"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min {round(seconds) % 60:02d} s"


def _short(text: str, length: int = MAX_NAME) -> str:
    """The two ends of a text that is too long."""
    return text if len(text) <= length else re.sub(r"\s+$", "", text[: length // 2]) + "…" + text[-length // 2 :]
