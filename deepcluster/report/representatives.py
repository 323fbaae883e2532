"""Which images represent a cluster: its medoid, a spread over the others, the borderline and the outlying ones.

The choice depends on distances and margins, never on the pictures, so it is the same if the images have moved.
"""

import math
from collections.abc import Sequence
from typing import Literal

from deepcluster.report.text import Row, number

Kind = Literal["medoid", "diverse", "borderline", "outlying"]


def representatives(rows: Sequence[Row], count: int, *, medoid: str = "") -> list[tuple[Row, Kind]]:
    """Up to ``count`` of a cluster's rows and why each was chosen, in the order in which they are shown.

    First the medoid (the row of path ``medoid``, else the nearest to the centroid), then diverse ones, spread over the
    ranks of the distance; then a quarter borderline ones, with the smallest margins, and a quarter outlying ones, with
    the largest distances, the most extreme first. A row without a margin is never borderline.
    """
    places = min(count, len(rows))
    if places < 1:
        return []
    ranked = sorted(rows, key=_distance)
    first = next((row for row in ranked if row["path"] == medoid), ranked[0])
    ranked = [row for row in ranked if row is not first]

    doubtful = [row for row in ranked if number(row["margin"]) is not None]
    borderline = sorted(doubtful, key=lambda row: float(row["margin"]))[: places // 4]
    taken = {id(row) for row in borderline}  # by identity: two rows may have equal cells
    ranked = [row for row in ranked if id(row) not in taken]

    outlying = ranked[::-1][: places // 4]
    rest = ranked[: len(ranked) - len(outlying)]
    left = places - 1 - len(borderline) - len(outlying)
    diverse = [rest[i * len(rest) // left] for i in range(left)]

    chosen: list[tuple[Row, Kind]] = [(first, "medoid")]
    chosen += [(row, "diverse") for row in diverse]
    chosen += [(row, "borderline") for row in borderline]
    chosen += [(row, "outlying") for row in outlying]
    return chosen


def _distance(row: Row) -> float:
    """The distance to the centroid; a row without one counts as the farthest."""
    distance = number(row["distance"])
    return math.inf if distance is None else distance
