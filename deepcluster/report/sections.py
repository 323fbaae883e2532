"""The clusters of the page: the figures of each, its labels, and its contact sheet of pictures."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deepcluster.errors import DiskError
from deepcluster.report.representatives import Kind, representatives
from deepcluster.report.text import Row, figure, number, percent, short
from deepcluster.report.thumbnails import data_uri, fair_share
from deepcluster.storage.table import Table

Picture = Callable[[str], Image.Image | None]

IMAGES = 17  # pictures of a cluster
MANY, FEWER = 50, 11  # of more than MANY clusters only FEWER, so that each is large enough to look at
MEDOID = 2  # times as wide and high as the others


@dataclass(frozen=True)
class Tile:
    """One image of a contact sheet.

    ``source`` is a data URI, or empty if the image could not be read again; ``image`` its number among those that the
    script has.
    """

    path: str
    kind: Kind
    source: str
    title: str
    outlier: bool
    image: int | None


@dataclass(frozen=True)
class Section:
    """One cluster. ``nearest`` is the number of another, which is on the page too if ``linked``."""

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
    junk: bool
    tiles: tuple[Tile, ...]


def check_rows(summary: Sequence[Row], clusters: Sequence[Row]) -> None:
    """Check that counts are integers and that both tables list the same clusters."""
    for row in summary:
        if not (row["cluster"].isdecimal() and row["size"].isdecimal()):
            raise DiskError(
                f"cluster_summary.csv: cluster {row['cluster']!r} of size {row['size']!r} should both be whole numbers"
            )
    numbers = {row["cluster"] for row in summary}
    table = Table.of(clusters)
    words, cluster = table.words("cluster")
    for i, word in enumerate(words):
        if word not in numbers and (cluster == i).any():
            row = table[int((cluster == i).argmax())]
            raise DiskError(
                f"clusters.csv puts {row['path']!r} into cluster {row['cluster']!r}, which is not one of the "
                f"{len(numbers)} in cluster_summary.csv; are both of the same run?"
            )


def sections(
    shown: Sequence[Row], clusters: Sequence[Row], picture: Picture, *, in_page: Sequence[int] = ()
) -> list[Section]:
    """A section for each cluster.

    Args:
        shown: Their rows of the summary.
        clusters: The usable rows of clusters.csv.
        picture: As in ``page.RunData``.
        in_page: The rows whose images the script has.
    """
    images = {clusters[row]["path"]: i for i, row in enumerate(in_page)}
    members = members_of(clusters, [row["cluster"] for row in shown])
    count = IMAGES if len(shown) <= MANY else FEWER
    chosen = {
        row["cluster"]: representatives(members[row["cluster"]], count, medoid=row["medoid_path"]) for row in shown
    }
    # The medoid covers four places, and may take as many bytes.
    share = fair_share(sum(len(rows) - 1 + MEDOID * MEDOID for rows in chosen.values() if rows))
    largest = max((int(row["size"]) for row in shown), default=0)
    return [
        Section(
            number=int(row["cluster"]),
            name=row["name"] if row["name"] != row["cluster"] else "",
            size=int(row["size"]),
            share=percent(number(row["share"])),
            bar=round(100 * int(row["size"]) / max(1, largest), 1),
            mean_distance=figure(number(row["mean_distance"])),
            nearest=row["nearest_cluster"],
            linked=row["nearest_cluster"] in members,
            outliers=len(members[row["cluster"]].where("is_outlier", "1")),
            labels=_frequent_labels(members[row["cluster"]]),
            junk=row.get("junk") == "1",
            tiles=tuple(
                _tile(member, kind, picture, share, images.get(member["path"]))
                for member, kind in chosen[row["cluster"]]
            ),
        )
        for row in shown
    ]


def members_of(clusters: Sequence[Row], numbers: Sequence[str]) -> dict[str, Table]:
    """The rows of each cluster that has one of the ``numbers``."""
    table = Table.of(clusters)
    words, cluster = table.words("cluster")
    order = np.argsort(cluster, kind="stable")
    ends = np.bincount(cluster, minlength=len(words)).cumsum()
    parts = {word: table.at(part) for word, part in zip(words, np.split(order, ends[:-1]), strict=True)}
    return {number: parts.get(number, table.at([])) for number in numbers}


def _tile(row: Row, kind: Kind, picture: Picture, share: int, number_in_page: int | None) -> Tile:
    image = picture(row["path"])
    about = (
        short(row["path"].rpartition("/")[2]),
        kind,
        f"distance {figure(number(row['distance']))}",
        f"margin {figure(number(row['margin']))}",
        f"label {row['label']}" if row["label"] else "",
        "outlier" if row["is_outlier"] == "1" else "",
    )
    return Tile(
        path=row["path"],
        kind=kind,
        source=data_uri(image, share, scale=MEDOID if kind == "medoid" else 1) if image is not None else "",
        title=" · ".join(part for part in about if part),
        outlier=row["is_outlier"] == "1",
        image=number_in_page,
    )


def _frequent_labels(rows: Table) -> tuple[tuple[str, str], ...]:
    """The most frequent label of the labelled rows, and up to two more that reach a tenth."""
    words, label = rows.words("label")
    found, first, sizes = np.unique(label, return_index=True, return_counts=True)
    counts = Counter({words[found[i]]: int(sizes[i]) for i in np.argsort(first) if words[found[i]]})
    return tuple(
        (label, percent(count / counts.total()))
        for i, (label, count) in enumerate(counts.most_common(3))
        if i == 0 or count >= counts.total() / 10
    )
