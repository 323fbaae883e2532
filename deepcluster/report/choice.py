"""Which images stand for a cluster: its medoid, its centre, a spread over the rest, and the doubtful ones.

Only distances and margins are looked at, never the pictures, so the choice is the same wherever the images have gone.
"""

import math
from collections.abc import Sequence
from typing import Literal

from deepcluster.report.text import Row, number

Kind = Literal["medoid", "central", "spread", "borderline"]


def representatives(rows: Sequence[Row], count: int, *, medoid: str = "") -> list[tuple[Row, Kind]]:
    """Up to ``count`` of a cluster's rows and why each was chosen, in the order in which they are shown.

    First the medoid (the row of path ``medoid``, else the one nearest to the centroid), then central images, then a
    spread over the ranks of the rest that ends with the farthest, and last the borderline ones: those of the smallest
    margin, smallest first. A quarter is central and a quarter borderline; a row without a margin is never borderline.
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

    central, rest = ranked[: places // 4], ranked[places // 4 :]
    wanted = places - 1 - len(central) - len(borderline)
    spread = [rest[(i + 1) * len(rest) // wanted - 1] for i in range(wanted)]

    chosen: list[tuple[Row, Kind]] = [(first, "medoid")]
    chosen += [(row, "central") for row in central]
    chosen += [(row, "spread") for row in spread]
    chosen += [(row, "borderline") for row in borderline]
    return chosen


def _distance(row: Row) -> float:
    """The distance to the centroid; a row without one counts as the farthest."""
    distance = number(row["distance"])
    return math.inf if distance is None else distance
