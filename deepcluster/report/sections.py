"""The parts of the page as values: clusters and their images, and problems.

Values for the templates are dicts; their keys are the names that the templates use.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepcluster.report.hints import hints, weighted_nouns
from deepcluster.report.pictures import PICTURE_CHARACTERS, Thumbnails
from deepcluster.storage.content import Row, Table
from deepcluster.texts import MAX_NAME, figure, number, percent, short

Values = dict[str, Any]
IMAGES_OF_CLUSTER = 12  # pictures of a cluster
MAX_SKIPPED = 200
MAX_OUTLIERS = 100
MAX_SETS = 60  # of near-duplicates
MAX_IN_SET = 12  # images


# Representatives depend on distances and margins, never on the pictures, so they are the same if the images have moved.
def representatives(rows: Sequence[Row], count: int, *, medoid: str = "") -> list[tuple[Row, bool]]:
    """Return up to ``count`` of a cluster's rows, the most typical first, and whether each is on the border.

    The first one is the face: an image that a person answered about, else the medoid (the row of path ``medoid``, else
    the nearest to the centroid). A quarter are on the border: they have the smallest margins, and a row without a
    margin is never among them. The others are spread over the ranks of the distance; outliers have the last ranks.
    """
    table = Table.of(rows)
    slots = min(count, len(table))
    if slots < 1:
        return []
    # A row without a distance counts as the farthest.
    distances, margins = (
        np.array([math.inf if (value := number(cell)) is None else value for cell in table.column(name)])
        for name in ("distance", "margin")
    )
    outlier = np.array([cell == "1" for cell in table.column("is_outlier")])
    ranked = np.lexsort((distances, outlier))
    cells = zip(table.column("path"), table.column("by"), strict=True)
    claim = np.array([2 if by == "answer" else int(path == medoid) for path, by in cells])
    face = ranked[claim[ranked].argmax()]  # the first of equal ones
    ranked = ranked[ranked != face]

    doubtful = ranked[margins[ranked] < math.inf]
    border = doubtful[np.argsort(margins[doubtful], kind="stable")][: slots // 4]
    inner = ranked[~np.isin(ranked, border)]
    left = slots - 1 - len(border)
    chosen = {*border, *(inner[round(i * (len(inner) - 1) / max(1, left - 1))] for i in range(left))}
    return [(table[int(i)], i in border) for i in (face, *(i for i in ranked if i in chosen))]


def sections(
    shown: Sequence[Row],
    clusters: Table,
    thumbnails: Thumbnails,
    nouns: Sequence[Row] = (),
) -> list[Values]:
    """Return the sections of the clusters; ``nearest`` is another cluster, also on the page if ``linked``.

    ``shown`` are rows of the summary, ``clusters`` the usable rows of clusters.csv; ``thumbnails`` and ``nouns`` are as
    in ``page.RunData``.
    """
    noun_of = weighted_nouns(nouns)
    row_of = {path: row for row, path in enumerate(clusters.column("path"))}
    cluster = clusters.column("cluster").astype(np.int64)
    members = {row["cluster"]: clusters.at(np.flatnonzero(cluster == int(row["cluster"]))) for row in shown}
    chosen = [representatives(members[row["cluster"]], IMAGES_OF_CLUSTER, medoid=row["medoid_path"]) for row in shown]
    share = PICTURE_CHARACTERS * 3 // 4 // max(1, sum(map(len, chosen)))  # base64 writes 3 bytes as 4 characters
    return [
        {
            "number": int(row["cluster"]),
            "name": row["name"] if row["name"] != row["cluster"] else "",
            "size": int(row["size"]),
            "share": percent(number(row["share"])),
            "nearest": row["nearest_cluster"],
            "linked": row["nearest_cluster"] in members,
            "outliers": len(members[row["cluster"]].with_cell("is_outlier", "1")),
            "labels": _frequent_labels(members[row["cluster"]]),
            "junk": row.get("junk") == "1",
            "hints": hints(members[row["cluster"]], noun_of),
            "pictures": [
                _picture(member, is_border, thumbnails, share) | {"row": row_of[member["path"]]}
                for member, is_border in faces
            ],
        }
        for row, faces in zip(shown, chosen, strict=True)
    ]


def _picture(row: Row, is_border: bool, thumbnails: Thumbnails, share: int) -> Values:
    """Return a picture of a cluster; ``source`` is a data URI, empty if the image could not be read again."""
    about = (
        short(row["path"].rpartition("/")[2], MAX_NAME),
        "on the border" if is_border else "",
        f"label {row['label']}" if row["label"] else "",
        "outlier" if row["is_outlier"] == "1" else "",
    )
    return {
        "path": row["path"],
        "source": thumbnails(row["path"], share),
        "title": " · ".join(filter(None, about)),
        "class": " ".join(["border"] * is_border + ["far"] * (row["is_outlier"] == "1")),
    }


def _frequent_labels(rows: Table) -> list[tuple[str, str]]:
    """Return the most frequent label of the labelled rows, and up to two more that reach a tenth."""
    sizes = Counter(filter(None, rows.column("label")))
    return [
        (label, percent(size / sizes.total()))
        for rank, (label, size) in enumerate(sizes.most_common(3))
        if rank == 0 or size >= sizes.total() / 10
    ]


def problems(skipped: Sequence[Row], clusters: Table, duplicates: Sequence[Row] | None) -> Values:
    """Return the rows that the page shows, and their total numbers.

    ``duplicates`` has the shown images of a set, and its size; None if the run did not search for duplicates.
    The arguments are rows of skipped.csv, the usable rows of clusters.csv, and rows of duplicates.csv.
    """

    def suspect(path: str, i: int | None, distance: str) -> Values:
        row, cluster = (-1, "") if i is None else (i, clusters[i]["cluster"])
        return {"path": path, "row": row, "cluster": cluster, "about": f"distance {distance}"}

    far = np.flatnonzero(clusters.column("is_outlier") == "1")
    distances = np.array([number(cell) or 0.0 for cell in clusters.at(far).column("distance")])
    has_cluster = clusters.at(far).column("cluster") != "-1"  # those that an update rejected come first
    farthest = far[np.lexsort((-distances, has_cluster))[:MAX_OUTLIERS]].tolist()
    wanted = {row["path"] for row in duplicates or []}
    rows = {path: i for i, path in enumerate(clusters.column("path")) if path in wanted} if wanted else {}
    sets: dict[str, list[Values]] = {}
    for row in duplicates or []:
        sets.setdefault(row["set"], []).append(suspect(row["path"], rows.get(row["path"]), row["distance"]))
    shown = [(images[:MAX_IN_SET], len(images)) for images in [*sets.values()][:MAX_SETS]]
    return {
        "count": len(skipped) + len(far) + len(sets),
        "skipped": skipped[:MAX_SKIPPED],
        "skipped_count": len(skipped),
        "outliers": [suspect(clusters[i]["path"], i, figure(number(clusters[i]["distance"]))) for i in farthest],
        "outliers_count": len(far),
        "duplicates": None if duplicates is None else shown,
        "sets_count": len(sets),
        "duplicates_count": len(duplicates or []),
    }
