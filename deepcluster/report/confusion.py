"""Labels against clusters as a confusion matrix."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from deepcluster.report.text import Row

MAX_ROWS = 30  # labels, and clusters


@dataclass(frozen=True)
class Confusion:
    """Counts of labels (rows) by clusters (columns).

    Attributes:
        clusters: Their numbers.
        rows: A label, its images, and (count, share of the label's images) for each cluster.
        hidden: Images of labels or clusters that are not shown.
    """

    clusters: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[tuple[int, float], ...]], ...]
    hidden: int


def confusion(clusters: Sequence[Row]) -> Confusion | None:
    """The most frequent labels and the largest clusters, ordered so that most images are on the diagonal.

    None if no row has a label.
    """
    pairs = Counter((row["label"], row["cluster"]) for row in clusters if row["label"])
    if not pairs:
        return None
    by_label, by_cluster = Counter[str](), Counter[str]()
    for (label, cluster), count in pairs.items():
        by_label[label] += count
        by_cluster[cluster] += count
    labels = [label for label, _ in sorted(by_label.most_common(MAX_ROWS))]
    numbers = [number for number, _ in by_cluster.most_common(MAX_ROWS)]
    counts = np.array([[pairs[label, number] for number in numbers] for label in labels])
    rows, columns = linear_sum_assignment(counts, maximize=True)
    matched = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    first = [matched[i] for i in range(len(labels)) if i in matched]
    order = first + [j for j in range(len(numbers)) if j not in first]
    return Confusion(
        clusters=tuple(numbers[j] for j in order),
        rows=tuple(
            (label, by_label[label], tuple((int(counts[i, j]), float(counts[i, j] / by_label[label])) for j in order))
            for i, label in enumerate(labels)
        ),
        hidden=int(pairs.total() - counts.sum()),
    )
