"""Which images represent a cluster: its medoid, a spread over the others, the borderline and the outlying ones.

The choice depends on distances and margins, never on the pictures, so it is the same if the images have moved.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from deepcluster.report.text import Row, number
from deepcluster.storage.table import Table

Kind = Literal["medoid", "diverse", "borderline", "outlying"]


def representatives(rows: Sequence[Row], count: int, *, medoid: str = "") -> list[tuple[Row, Kind]]:
    """Up to ``count`` of a cluster's rows and why each was chosen, in the order in which they are shown.

    First the medoid (the row of path ``medoid``, else the nearest to the centroid), then diverse ones, spread over the
    ranks of the distance; then a quarter borderline ones, with the smallest margins, and a quarter outlying ones, with
    the largest distances, the most extreme first. A row without a margin is never borderline.
    """
    table = Table.of(rows)
    places = min(count, len(table))
    if places < 1:
        return []
    # A row without a distance counts as the farthest.
    distances, margins = (
        np.array([math.inf if (value := number(cell)) is None else value for cell in table.column(name)])
        for name in ("distance", "margin")
    )
    ranked = np.argsort(distances, kind="stable")
    medoids = np.array([path == medoid for path in table.column("path")])[ranked]
    first = ranked[medoids.argmax()]  # the first of all, where none is called so
    ranked = ranked[ranked != first]

    doubtful = ranked[margins[ranked] < math.inf]
    borderline = doubtful[np.argsort(margins[doubtful], kind="stable")][: places // 4]
    ranked = ranked[~np.isin(ranked, borderline)]

    outlying = ranked[::-1][: places // 4]
    rest = ranked[: len(ranked) - len(outlying)]
    left = places - 1 - len(borderline) - len(outlying)
    diverse = [rest[i * len(rest) // left] for i in range(left)]

    chosen: list[tuple[Row, Kind]] = [(table[int(first)], "medoid")]
    chosen += [(table[int(i)], "diverse") for i in diverse]
    chosen += [(table[int(i)], "borderline") for i in borderline]
    chosen += [(table[int(i)], "outlying") for i in outlying]
    return chosen
