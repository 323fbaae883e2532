"""Labels against clusters as a confusion matrix."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from deepcluster.report.text import Row
from deepcluster.storage.table import Table

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
    for (name, group), count in pairs.items():
        by_label[name] += count
        by_cluster[group] += count
    labels = [name for name, _ in sorted(by_label.most_common(MAX_ROWS))]
    numbers = [group for group, _ in by_cluster.most_common(MAX_ROWS)]
    shown = np.array([[pairs[name, group] for group in numbers] for name in labels])
    rows, columns = linear_sum_assignment(shown, maximize=True)
    matched = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    ahead = [matched[i] for i in range(len(labels)) if i in matched]
    order = ahead + [j for j in range(len(numbers)) if j not in ahead]
    return Confusion(
        clusters=tuple(numbers[j] for j in order),
        rows=tuple(
            (name, by_label[name], tuple((int(shown[i, j]), float(shown[i, j] / by_label[name])) for j in order))
            for i, name in enumerate(labels)
        ),
        hidden=int(pairs.total() - shown.sum()),
    )
