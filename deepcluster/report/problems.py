"""Images that deserve a second look: outliers, and groups of near-duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepcluster.report.sprite import tile
from deepcluster.report.text import Row, figure, number

MOST_OUTLIERS = 100
MOST_GROUPS, MOST_EACH = 60, 12


@dataclass(frozen=True)
class Image:
    """``tile`` is its place on the sheet of tiny pictures, -1 where it has none; ``about`` says why it is listed."""

    path: str
    tile: int
    cluster: str
    about: str


def outliers(clusters: Sequence[Row]) -> tuple[list[Image], int]:
    """The outliers that lie farthest from their clusters' centroids, and how many there are."""
    found = [(row, i) for i, row in enumerate(clusters) if row["is_outlier"] == "1"]
    found.sort(key=lambda pair: -(number(pair[0]["distance"]) or 0.0))
    return [
        Image(row["path"], tile(i, len(clusters)), row["cluster"], f"distance {figure(number(row['distance']))}")
        for row, i in found[:MOST_OUTLIERS]
    ], len(found)


def duplicates(rows: Sequence[Row], clusters: Sequence[Row]) -> tuple[list[tuple[list[Image], int]], int, int]:
    """Groups of near-duplicates with the number of images of each, how many groups there are, and images in them."""
    place = {row["path"]: i for i, row in enumerate(clusters)}
    groups: dict[str, list[Image]] = {}
    for row in rows:
        i = place.get(row["path"])
        groups.setdefault(row["group"], []).append(
            Image(
                path=row["path"],
                tile=-1 if i is None else tile(i, len(clusters)),
                cluster="" if i is None else clusters[i]["cluster"],
                about=f"distance {row['distance']}",
            )
        )
    shown = [(images[:MOST_EACH], len(images)) for images in list(groups.values())[:MOST_GROUPS]]
    return shown, len(groups), len(rows)
