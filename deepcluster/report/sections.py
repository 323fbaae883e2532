"""The parts of the page as values: clusters and their images, suggestions, problems, labels.

Values for the templates are dicts; their keys are the names that the templates use.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy  # the parts at first use: only labels need them
from PIL import Image

from deepcluster.groups.tree import Tree, nodes_at
from deepcluster.report.hints import hints, weighted_nouns
from deepcluster.report.pictures import PICTURE_CHARACTERS, Picture, data_uri, tile
from deepcluster.storage.content import Row, Table
from deepcluster.texts import MAX_NAME, figure, number, percent, short

Values = dict[str, Any]
Kind = Literal["medoid", "diverse", "borderline", "outlying"]
CAPTIONS: dict[Kind, str] = {
    "medoid": "typical",
    "diverse": "various",
    "borderline": "on the border",
    "outlying": "unusual",
}

IMAGES_OF_CLUSTER = 17  # pictures of a cluster
MANY_CLUSTERS = 50  # of more clusters fewer pictures, to keep them large:
IMAGES_OF_MANY = 11
MEDOID = 2  # times as wide and high as the others
MAX_SUGGESTED = 12  # pictures of a suggestion
MAX_SKIPPED = 200
MAX_OUTLIERS = 100
MAX_SETS = 60  # of near-duplicates
MAX_IN_SET = 12  # images
MAX_LABELS = 30  # labels, and clusters, in the table of both


# Representatives depend on distances and margins, never on the pictures, so they are the same if the images have moved.
def representatives(rows: Sequence[Row], count: int, *, medoid: str = "") -> list[tuple[Row, Kind]]:
    """Return up to ``count`` of a cluster's rows with the reasons, in display order.

    First the medoid (the row of path ``medoid``, else the nearest to the centroid), then diverse ones, spread over the
    ranks of the distance; then a quarter borderline ones, with the smallest margins, and a quarter outlying ones:
    outliers, then the largest distances, the most extreme first. A row without a margin is never borderline.
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
    medoids = np.array([path == medoid for path in table.column("path")])[ranked]
    first = ranked[medoids.argmax()]  # the first row, if no path is the medoid's
    ranked = ranked[ranked != first]

    doubtful = ranked[margins[ranked] < math.inf]
    borderline = doubtful[np.argsort(margins[doubtful], kind="stable")][: slots // 4]
    ranked = ranked[~np.isin(ranked, borderline)]

    outlying = ranked[::-1][: slots // 4]
    rest = ranked[: len(ranked) - len(outlying)]
    left = slots - 1 - len(borderline) - len(outlying)
    diverse = [rest[i * len(rest) // left] for i in range(left)]

    kinds: dict[Kind, Any] = {"medoid": [first], "diverse": diverse, "borderline": borderline, "outlying": outlying}
    return [(table[int(i)], kind) for kind, chosen in kinds.items() for i in chosen]


def by_size(summary: Sequence[Row]) -> list[Row]:
    """Return the rows of the summary, the largest cluster first."""
    return sorted(summary, key=lambda row: (-int(row["size"]), int(row["cluster"])))


def members_of(summary: Sequence[Row], clusters: Table) -> dict[str, Table]:
    """Return the rows of the clusters in ``summary``."""
    words, cluster = clusters.words("cluster")
    order = np.argsort(cluster, kind="stable")
    ends = np.bincount(cluster, minlength=len(words)).cumsum()
    parts = {word: clusters.at(order[begin:end]) for word, begin, end in zip(words, [0, *ends], ends, strict=False)}
    return {row["cluster"]: parts.get(row["cluster"], clusters.at([])) for row in summary}


def sections(
    shown: Sequence[Row], clusters: Table, picture: Picture, in_page: Sequence[int] = (), nouns: Sequence[Row] = ()
) -> list[Values]:
    """Return the sections of the clusters; ``nearest`` is another cluster, also on the page if ``linked``.

    ``shown`` are rows of the summary, ``clusters`` the usable rows of clusters.csv, ``in_page`` the numbers of those
    whose images the script has; ``picture`` and ``nouns`` are as in ``page.RunData``.
    """
    noun_of = weighted_nouns(nouns)
    number_in_page = {clusters[row]["path"]: i for i, row in enumerate(in_page)}
    members = members_of(shown, clusters)
    images = IMAGES_OF_CLUSTER if len(shown) <= MANY_CLUSTERS else IMAGES_OF_MANY
    chosen = [representatives(members[row["cluster"]], images, medoid=row["medoid_path"]) for row in shown]
    # The medoid covers four slots, and may take as many bytes. Base64 writes 3 bytes as 4 characters.
    share = PICTURE_CHARACTERS * 3 // 4 // max(1, sum(len(rows) - 1 + MEDOID * MEDOID for rows in chosen if rows))
    largest = max((int(row["size"]) for row in shown), default=0)
    return [
        {
            "number": int(row["cluster"]),
            "name": row["name"] if row["name"] != row["cluster"] else "",
            "size": int(row["size"]),
            "share": percent(number(row["share"])),
            "bar": round(100 * int(row["size"]) / max(1, largest), 1),
            "nearest": row["nearest_cluster"],
            "linked": row["nearest_cluster"] in members,
            "outliers": len(members[row["cluster"]].where("is_outlier", "1")),
            "labels": _frequent_labels(members[row["cluster"]]),
            "junk": row.get("junk") == "1",
            "hints": hints(members[row["cluster"]], noun_of),
            "tiles": [
                _tile(member, kind, picture(member["path"]), share) | {"image": number_in_page.get(member["path"])}
                for member, kind in tiles
            ],
        }
        for row, tiles in zip(shown, chosen, strict=True)
    ]


def _tile(row: Row, kind: Kind, image: Image.Image | None, share: int) -> Values:
    """Return an image of a contact sheet; ``source`` is a data URI, empty if the image could not be read again."""
    about = (
        short(row["path"].rpartition("/")[2], MAX_NAME),
        CAPTIONS[kind],
        f"label {row['label']}" if row["label"] else "",
        "outlier" if row["is_outlier"] == "1" else "",
    )
    return {
        "path": row["path"],
        "kind": kind,
        "source": data_uri(image, share, scale=MEDOID if kind == "medoid" else 1) if image is not None else "",
        "title": " · ".join(filter(None, about)),
        "outlier": row["is_outlier"] == "1",
    }


def _frequent_labels(rows: Table) -> list[tuple[str, str]]:
    """Return the most frequent label of the labelled rows, and up to two more that reach a tenth."""
    sizes = Counter(filter(None, rows.column("label")))
    return [
        (label, percent(size / sizes.total()))
        for rank, (label, size) in enumerate(sizes.most_common(3))
        if rank == 0 or size >= sizes.total() / 10
    ]


def suggestions(candidates: Sequence[Mapping[str, Any]], tree: Tree, images: int) -> list[Values]:
    """Return the candidates of run.json that the merge tree can give, as its cuts, the best first.

    ``groups`` has the size of the largest groups and the position on the sheet (-1: none) of their medoid; ``hidden``
    groups have no picture here.
    """
    suggested = []
    for candidate in candidates:
        k = int(candidate["k"])
        if not 1 < k <= len(tree.groups):
            continue
        nodes = sorted(nodes_at(len(tree.groups), tree.merges, k), key=lambda node: (-tree.sizes[node], node))
        about = f"silhouette {figure(candidate['silhouette'])}"
        shown = [(tree.sizes[node], tile(tree.medoids[node], images)) for node in nodes[:MAX_SUGGESTED]]
        suggested.append({"k": k, "about": about, "groups": shown, "hidden": len(nodes) - len(shown)})
    return suggested


def problems(skipped: Sequence[Row], clusters: Table, duplicates: Sequence[Row] | None) -> Values:
    """Return the rows that the page shows, and their total numbers.

    ``duplicates`` has the shown images of a set, and its size; None if the run did not search for duplicates.
    The arguments are rows of skipped.csv, the usable rows of clusters.csv, and rows of duplicates.csv.
    """

    def suspect(path: str, i: int | None, distance: str) -> Values:
        slot, cluster = (-1, "") if i is None else (tile(i, len(clusters)), clusters[i]["cluster"])
        return {"path": path, "tile": slot, "cluster": cluster, "about": f"distance {distance}"}

    far = np.flatnonzero(clusters.column("is_outlier") == "1")
    distances = np.array([number(cell) or 0.0 for cell in clusters.at(far).column("distance")])
    farthest = far[np.argsort(-distances, kind="stable")[:MAX_OUTLIERS]].tolist()
    wanted = {row["path"] for row in duplicates or []}
    rows = {path: i for i, path in enumerate(clusters.column("path")) if path in wanted} if wanted else {}
    groups: dict[str, list[Values]] = {}
    for row in duplicates or []:
        groups.setdefault(row["group"], []).append(suspect(row["path"], rows.get(row["path"]), row["distance"]))
    shown = [(images[:MAX_IN_SET], len(images)) for images in [*groups.values()][:MAX_SETS]]
    return {
        "count": len(skipped) + len(far) + len(groups),
        "skipped": skipped[:MAX_SKIPPED],
        "skipped_count": len(skipped),
        "outliers": [suspect(clusters[i]["path"], i, figure(number(clusters[i]["distance"]))) for i in farthest],
        "outliers_count": len(far),
        "duplicates": None if duplicates is None else shown,
        "groups_count": len(groups),
        "duplicates_count": len(duplicates or []),
    }


def confusion(clusters: Table) -> Values | None:
    """Count the most frequent labels (rows) by the largest clusters (columns), most images on the diagonal.

    ``rows`` has a label, its images, and their number by cluster; ``hidden`` images are of labels or clusters that are
    not shown. None if no row has a label.
    """
    counts = Counter(zip(clusters.column("label"), clusters.column("cluster"), strict=True))
    images, sizes = Counter[str](), Counter[str]()
    for (label, cluster), count in counts.items():
        if label:
            images[label] += count
            sizes[cluster] += count
    if not images:
        return None
    labels = sorted(label for label, _ in images.most_common(MAX_LABELS))
    columns = [cluster for cluster, _ in sizes.most_common(MAX_LABELS)]
    shown = np.array([[counts[label, cluster] for cluster in columns] for label in labels])
    ahead = [columns[j] for j in scipy.optimize.linear_sum_assignment(shown, maximize=True)[1]]
    order = [*ahead, *(cluster for cluster in columns if cluster not in ahead)]
    return {
        "clusters": order,
        "rows": [(label, images[label], [counts[label, cluster] for cluster in order]) for label in labels],
        "hidden": images.total() - int(shown.sum()),
    }
