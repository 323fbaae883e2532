"""The parts of the page as values: clusters and their images, suggestions, problems, labels, main facts.

Values for the templates are dicts; their keys are the names that the templates use.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from deepcluster.errors import DiskError
from deepcluster.groups.tree import Tree, nodes_at
from deepcluster.report.pictures import data_uri, fair_share, tile
from deepcluster.report.text import Row, agreement, count, figure, number, percent, short
from deepcluster.storage.table import Table

# Representatives depend on distances and margins, never on the pictures, so they are the same if the images have moved.
Kind = Literal["medoid", "diverse", "borderline", "outlying"]


def representatives(rows: Sequence[Row], count: int, *, medoid: str = "") -> list[tuple[Row, Kind]]:
    """Up to ``count`` of a cluster's rows and why each was chosen, in the order in which they are shown.

    First the medoid (the row of path ``medoid``, else the nearest to the centroid), then diverse ones, spread over the
    ranks of the distance; then a quarter borderline ones, with the smallest margins, and a quarter outlying ones:
    outliers, then those with the largest distances, the most extreme first. A row without a margin is never borderline.
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
    outlier = np.array([cell == "1" for cell in table.column("is_outlier")])
    ranked = np.lexsort((distances, outlier))
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


Picture = Callable[[str], Image.Image | None]
Values = dict[str, Any]

IMAGES = 17  # pictures of a cluster
MANY, FEWER = 50, 11  # of more than MANY clusters only FEWER, so that each is large enough to look at
MEDOID = 2  # times as wide and high as the others


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
) -> list[Values]:
    """Return a section for each cluster; ``nearest`` is another one, which is on the page too if ``linked``.

    Args:
        shown: Rows of the summary.
        clusters: The usable rows of clusters.csv.
        picture: As in ``page.RunData``.
        in_page: The rows whose images the script has.
    """
    images = {clusters[row]["path"]: i for i, row in enumerate(in_page)}
    members, chosen = represented(shown, clusters, IMAGES if len(shown) <= MANY else FEWER)
    # The medoid covers four places, and may take as many bytes.
    share = fair_share(sum(len(rows) - 1 + MEDOID * MEDOID for rows in chosen.values() if rows))
    largest = max((int(row["size"]) for row in shown), default=0)
    return [
        {
            "number": int(row["cluster"]),
            "name": row["name"] if row["name"] != row["cluster"] else "",
            "size": int(row["size"]),
            "share": percent(number(row["share"])),
            "bar": round(100 * int(row["size"]) / max(1, largest), 1),
            "mean_distance": figure(number(row["mean_distance"])),
            "nearest": row["nearest_cluster"],
            "linked": row["nearest_cluster"] in members,
            "outliers": len(members[row["cluster"]].where("is_outlier", "1")),
            "labels": _frequent_labels(members[row["cluster"]]),
            "junk": row.get("junk") == "1",
            "tiles": [
                _tile(member, kind, picture, share, images.get(member["path"]))
                for member, kind in chosen[row["cluster"]]
            ],
        }
        for row in shown
    ]


def by_size(summary: Sequence[Row]) -> list[Row]:
    """Return the rows of the summary, the largest cluster first."""
    return sorted(summary, key=lambda row: (-int(row["size"]), int(row["cluster"])))


def represented(
    shown: Sequence[Row], clusters: Sequence[Row], count: int
) -> tuple[dict[str, Table], dict[str, list[tuple[Row, Kind]]]]:
    """Return the rows of each cluster of ``shown``, and up to ``count`` :func:`representatives` of them."""
    table = Table.of(clusters)
    words, cluster = table.words("cluster")
    order = np.argsort(cluster, kind="stable")
    ends = np.bincount(cluster, minlength=len(words)).cumsum()
    parts = {word: table.at(part) for word, part in zip(words, np.split(order, ends[:-1]), strict=True)}
    members = {row["cluster"]: parts.get(row["cluster"], table.at([])) for row in shown}
    return members, {
        row["cluster"]: representatives(members[row["cluster"]], count, medoid=row["medoid_path"]) for row in shown
    }


def _tile(row: Row, kind: Kind, picture: Picture, share: int, number_in_page: int | None) -> Values:
    """Return an image of a contact sheet: ``source`` is a data URI, empty if the image could not be read again;
    ``image`` its number among those that the script has."""
    image = picture(row["path"])
    about = (
        short(row["path"].rpartition("/")[2]),
        kind,
        f"distance {figure(number(row['distance']))}",
        f"margin {figure(number(row['margin']))}",
        f"label {row['label']}" if row["label"] else "",
        "outlier" if row["is_outlier"] == "1" else "",
    )
    return {
        "path": row["path"],
        "kind": kind,
        "source": data_uri(image, share, scale=MEDOID if kind == "medoid" else 1) if image is not None else "",
        "title": " · ".join(part for part in about if part),
        "outlier": row["is_outlier"] == "1",
        "image": number_in_page,
    }


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


MAX_PICTURES = 12


def suggestions(candidates: Sequence[Mapping[str, Any]], tree: Tree, images: int) -> list[Values]:
    """Return the candidates of run.json, the best first, by the cuts of the merge tree; it may not reach them all.

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
        if candidate.get("stability") is not None:
            about += f", stability {agreement(candidate['stability'])}"
        shown = [(tree.sizes[node], tile(tree.medoids[node], images)) for node in nodes[:MAX_PICTURES]]
        suggested.append({"k": k, "about": about, "groups": shown, "hidden": len(nodes) - len(shown)})
    return suggested


MAX_SKIPPED = 200
MAX_OUTLIERS = 100
MAX_GROUPS, MAX_IN_GROUP = 60, 12


def problems(skipped: Sequence[Row], clusters: Sequence[Row], duplicates: Sequence[Row] | None) -> Values:
    """Return the rows that the page shows, and how many there are in all.

    ``duplicates`` has the images shown of each group and its size; None if duplicates were not searched for.

    Args:
        skipped: Rows of skipped.csv.
        clusters: The usable rows of clusters.csv.
        duplicates: Rows of duplicates.csv.
    """
    table = Table.of(clusters)
    words, outlier = table.words("is_outlier")
    far = np.flatnonzero(np.array([word == "1" for word in words], bool)[outlier])
    distances = [number(cell) or 0.0 for cell in table.at(far).column("distance")]
    farthest = far[np.argsort(-np.array(distances), kind="stable")[:MAX_OUTLIERS]].tolist()
    groups = _groups(duplicates or [], table)
    shown = [(images[:MAX_IN_GROUP], len(images)) for images in groups[:MAX_GROUPS]]
    return {
        "count": len(skipped) + len(far) + len(groups),
        "skipped": skipped[:MAX_SKIPPED],
        "skipped_count": len(skipped),
        "outliers": [
            _suspect(row["path"], tile(i, len(table)), row["cluster"], figure(number(row["distance"])))
            for i, row in zip(farthest, table.at(farthest), strict=True)
        ],
        "outliers_count": len(far),
        "duplicates": None if duplicates is None else shown,
        "groups_count": len(groups),
        "duplicates_count": len(duplicates or []),
    }


def _suspect(path: str, tile: int, cluster: str, distance: str) -> Values:
    return {"path": path, "tile": tile, "cluster": cluster, "about": f"distance {distance}"}


def _groups(duplicates: Sequence[Row], clusters: Table) -> list[list[Values]]:
    wanted = {row["path"] for row in duplicates}
    indices = {path: i for i, path in enumerate(clusters.column("path")) if path in wanted} if wanted else {}
    groups: dict[str, list[Values]] = {}
    for row in duplicates:
        i = indices.get(row["path"])
        groups.setdefault(row["group"], []).append(
            _suspect(
                row["path"],
                -1 if i is None else tile(i, len(clusters)),
                "" if i is None else clusters[i]["cluster"],
                row["distance"],
            )
        )
    return list(groups.values())


MAX_ROWS = 30  # labels, and clusters


def confusion(clusters: Sequence[Row]) -> Values | None:
    """Count the most frequent labels (rows) by the largest clusters (columns), most images on the diagonal.

    ``rows`` has a label, its images, and (count, share of the label's images) for each cluster; ``hidden`` images are
    of labels or clusters that are not shown. None if no row has a label.
    """
    table = Table.of(clusters)
    (words, label), (groups, cluster) = table.words("label"), table.words("cluster")
    known = np.array([bool(word) for word in words], bool)[label]
    both = (label * len(groups) + cluster)[known]
    found, first, counts = np.unique(both, return_index=True, return_counts=True)
    pairs = Counter(
        {(words[found[i] // len(groups)], groups[found[i] % len(groups)]): int(counts[i]) for i in np.argsort(first)}
    )
    if not pairs:
        return None
    by_label, by_cluster = Counter[str](), Counter[str]()
    for (name, group), images in pairs.items():
        by_label[name] += images
        by_cluster[group] += images
    labels = [name for name, _ in sorted(by_label.most_common(MAX_ROWS))]
    numbers = [group for group, _ in by_cluster.most_common(MAX_ROWS)]
    shown = np.array([[pairs[name, group] for group in numbers] for name in labels])
    rows, columns = linear_sum_assignment(shown, maximize=True)
    matched = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    ahead = [matched[i] for i in range(len(labels)) if i in matched]
    order = ahead + [j for j in range(len(numbers)) if j not in ahead]
    return {
        "clusters": [numbers[j] for j in order],
        "rows": [
            (name, by_label[name], tuple((int(shown[i, j]), float(shown[i, j] / by_label[name])) for j in order))
            for i, name in enumerate(labels)
        ],
        "hidden": int(pairs.total() - shown.sum()),
    }


def statements(
    clusters: Sequence[Row],
    summary: Sequence[Row],
    history: Sequence[Row],
    metrics: Mapping[str, float | str],
    skipped: Sequence[Row],
    verdict: str = "",
) -> list[str]:
    """Return the sentences in the order of the page, among them the run's ``verdict``; no value, no sentence."""
    sizes = [int(row["size"]) for row in summary]
    outliers = len(Table.of(clusters).where("is_outlier", "1"))
    return [
        _division(sizes),
        *([verdict] if verdict else []),
        *_training(history),
        *_outliers(outliers, sum(sizes)),
        *_against_labels(metrics, trained=bool(history)),
        _skipped(len(skipped)),
    ]


def _division(sizes: Sequence[int]) -> str:
    totals = f"{count(sum(sizes), 'image')} in {count(len(sizes), 'cluster')}"
    if len(sizes) < 2 or not any(sizes):
        return f"{totals}."
    largest, smallest = (percent(size / sum(sizes)) for size in (max(sizes), min(sizes)))
    return f"{totals}; the largest holds {largest} of them, the smallest {smallest}."


def _training(history: Sequence[Row]) -> list[str]:
    if not history:
        return ["No round was trained: the clusters are those of the network as it was given."]
    rounds = f"{count(len(history), 'round')} of clustering and training"
    changed, loss, chance = (number(history[-1].get(name)) for name in ("changed", "loss", "chance_loss"))
    if changed is not None:
        rounds += f"; in the last, {percent(changed)} of the images changed pseudo-label"
    if loss is None or chance is None:
        return [f"{rounds}."]
    return [f"{rounds}.", f"The last round's loss is {figure(loss)}; guessing would give {figure(chance)}."]


def _outliers(outliers: int, images: int) -> list[str]:
    if not outliers:
        return []
    are = "is an outlier" if outliers == 1 else "are outliers"
    return [f"{count(outliers, 'image')} ({percent(outliers / max(1, images))}) {are}, unlike the images of the fit."]


def _against_labels(metrics: Mapping[str, float | str], *, trained: bool) -> list[str]:
    reached, start = number(metrics.get("acc")), number(metrics.get("baseline_acc"))
    if reached is None:
        return []
    accuracy = f"Against the labels the clusters reach an accuracy of {reached:.3f}"
    if start is None or not trained:
        return [f"{accuracy}."]
    outcome = "training helped" if reached > start else "training did not help"
    return [f"{accuracy}, those of the network at the start {start:.3f}: by this measure {outcome} in this run."]


def _skipped(files: int) -> str:
    if not files:
        return "Every file could be used."
    return f"{count(files, 'file')} could not be used and {'was' if files == 1 else 'were'} skipped."
