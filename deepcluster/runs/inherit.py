"""Names and junk marks that groups inherit from the groups that they continue."""

from collections import Counter

import torch
from torch import Tensor

from deepcluster.model import Model
from deepcluster.texts import plural


def carried_over(model: Model, before: Tensor, after: Tensor, count: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and junk marks of ``count`` new clusters, inherited from the old clusters that they continue.

    An old cluster continues as a new one if more than half of its images are more than half of that one. ``model`` has
    the old names and marks; ``before`` and ``after`` are the clusters of the images (int64, N).
    """
    names = [""] * count
    junk = []
    marked = set(model.junk)
    pairs, shared = torch.unique(torch.stack([before, after], 1), dim=0, return_counts=True)
    old = torch.bincount(before)[pairs[:, 0]]
    new = torch.bincount(after)[pairs[:, 1]]
    for number, heir in pairs[(2 * shared > old) & (2 * shared > new)].tolist():
        names[heir] = model.names[number]
        junk += [heir] if number in marked else []
    return tuple(names), tuple(sorted(junk))


def carried_text(before: Model, after: Model) -> str:
    """Describe the names and marks that :func:`carried_over` kept and dropped."""
    names = [name for name in after.names if name]
    dropped = sorted((Counter(name for name in before.names if name) - Counter(names)).elements())
    marks = len(before.junk) - len(after.junk)
    texts = [
        f"{plural(len(names), 'name')} kept",
        *([f"dropped, because their clusters did not survive: {', '.join(map(repr, dropped))}"] if dropped else []),
        *([f"{plural(marks, 'junk mark')} dropped"] if marks else []),
    ]
    return "; ".join(texts)
