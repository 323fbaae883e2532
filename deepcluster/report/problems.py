"""Images that deserve a second look: skipped files, outliers, and groups of near-duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepcluster.report.sprite import tile
from deepcluster.report.text import Row, figure, number
from deepcluster.storage.table import Table

MAX_SKIPPED = 200
MAX_OUTLIERS = 100
MAX_GROUPS, MAX_IN_GROUP = 60, 12


@dataclass(frozen=True)
class Suspect:
    """``tile`` is its position on the sheet of tiny pictures, or -1; ``about`` says why it is listed."""

    path: str
    tile: int
    cluster: str
    about: str


@dataclass(frozen=True)
class Problems:
    """The rows that the page shows, and how many there are in all.

    ``duplicates`` has the images shown of each group and its size; None if duplicates were not searched for.
    """

    skipped: Sequence[Row]
    skipped_count: int
    outliers: list[Suspect]
    outliers_count: int
    duplicates: list[tuple[list[Suspect], int]] | None
    groups_count: int
    duplicates_count: int

    @property
    def count(self) -> int:
        return self.skipped_count + self.outliers_count + self.groups_count


def problems(skipped: Sequence[Row], clusters: Sequence[Row], duplicates: Sequence[Row] | None) -> Problems:
    """From the rows of skipped.csv, the usable ones of clusters.csv, and those of duplicates.csv."""
    table = Table.of(clusters)
    words, outlier = table.words("is_outlier")
    far = np.flatnonzero(np.array([word == "1" for word in words], bool)[outlier])
    distances = [number(cell) or 0.0 for cell in table.at(far).column("distance")]
    farthest = far[np.argsort(-np.array(distances), kind="stable")[:MAX_OUTLIERS]].tolist()
    groups = _groups(duplicates or [], table)
    shown = [(images[:MAX_IN_GROUP], len(images)) for images in groups[:MAX_GROUPS]]
    return Problems(
        skipped=skipped[:MAX_SKIPPED],
        skipped_count=len(skipped),
        outliers=[
            Suspect(row["path"], tile(i, len(table)), row["cluster"], f"distance {figure(number(row['distance']))}")
            for i, row in zip(farthest, table.at(farthest), strict=True)
        ],
        outliers_count=len(far),
        duplicates=None if duplicates is None else shown,
        groups_count=len(groups),
        duplicates_count=len(duplicates or []),
    )


def _groups(duplicates: Sequence[Row], clusters: Table) -> list[list[Suspect]]:
    wanted = {row["path"] for row in duplicates}
    indices = {path: i for i, path in enumerate(clusters.column("path")) if path in wanted} if wanted else {}
    groups: dict[str, list[Suspect]] = {}
    for row in duplicates:
        i = indices.get(row["path"])
        groups.setdefault(row["group"], []).append(
            Suspect(
                path=row["path"],
                tile=-1 if i is None else tile(i, len(clusters)),
                cluster="" if i is None else clusters[i]["cluster"],
                about=f"distance {row['distance']}",
            )
        )
    return list(groups.values())
