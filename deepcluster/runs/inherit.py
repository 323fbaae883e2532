"""Numbers, names and junk marks that groups inherit from the groups that they continue."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepcluster.groups.cut import Cut, Placement, move_rows
from deepcluster.model import Annotations, Model
from deepcluster.runs.run import Rows
from deepcluster.texts import plural


def heirs(before: Tensor, after: Tensor, *, mutual: bool) -> dict[int, int]:
    """Return the new cluster that continues each old one, one to one; an old cluster may have none.

    ``before``, ``after``: Clusters of the same images (int64, N). An old cluster continues as the new one with more
    than half of its images; if ``mutual``, these must also be more than half of the new one's. If several old
    clusters would continue as one new cluster, the one that gives it most images does.
    """
    pairs, shared = torch.unique(torch.stack([before, after], 1), dim=0, return_counts=True)
    continues = 2 * shared > torch.bincount(before)[pairs[:, 0]]
    if mutual:
        continues &= 2 * shared > torch.bincount(after)[pairs[:, 1]]
    fewest_first = shared[continues].argsort(descending=True, stable=True).flip(0)
    ancestor = {new: old for old, new in pairs[continues][fewest_first].tolist()}
    return {old: new for new, old in ancestor.items()}


def carried_over(before: Annotations, heir: Mapping[int, int], count: int) -> Annotations:
    """Return names and junk marks of ``count`` new clusters: those ``before`` by their :func:`heirs`."""
    names = [""] * count
    for old, new in heir.items():
        names[new] = before.names[old]
    junk = sorted(heir[old] for old in before.junk if old in heir)
    return Annotations(names=tuple(names), junk=tuple(junk))


def surviving_moves(old: Annotations, before: Tensor, heir: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """Return the rows moved by a person from and to clusters that continue (:func:`heirs`), with their new numbers.

    An answer is like a move from the cluster that it names. ``before``: The clusters of all rows (int64, N) afterwards.
    """
    moves = {row: (origin, int(before[row])) for row, origin in decisions(old, before).items()}
    return {row: (heir[a], heir[b]) for row, (a, b) in moves.items() if a in heir and b in heir}


def decisions(old: Annotations, before: Tensor) -> dict[int, int]:
    """Return the former clusters of moved rows, and the clusters of answered rows. ``before``: As above."""
    answered = {row: int(before[row]) for row in old.answers if row < len(before)}
    return {row: origin for row, origin in old.moves if row < len(before)} | answered


def with_moves(
    model: Model, placement: Placement, rows: Rows, moves: Mapping[int, tuple[int, int]]
) -> tuple[Model, Placement]:
    """Move rows (:func:`surviving_moves`) again. A collective. ``placement``: Of this rank's rows."""
    if not moves:
        return model, placement
    partition = rows.partition
    reduced, before = partition.gather(rows.reduced), partition.gather(placement.cluster)
    targets = {row: target for row, (_, target) in moves.items()}
    cut = Cut(**partition.processes.broadcast_tensors(lambda: vars(move_rows(model.cut, targets, reduced, before))))
    model = replace(model.with_cut(cut), **as_annotations(moves))
    return model, model.placement(rows.reduced)


def as_annotations(moves: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """Return the fields of Annotations of :func:`surviving_moves`."""
    return {
        "moves": tuple((row, origin) for row, (origin, target) in moves.items() if origin != target),
        "answers": tuple(row for row, (origin, target) in moves.items() if origin == target),
    }


def carried_text(before: Annotations, after: Annotations, clusters: Tensor) -> str:
    """Describe the names, marks and moves that survive, and the others. ``clusters``: Of all rows (int64, N) before."""
    names = [name for name in after.names if name]
    named_before = Counter(name for name in before.names if name)
    dropped = sorted((named_before - Counter(names)).elements())
    marks = len(before.junk) - len(after.junk)
    kept = {row for row, _ in after.moves}
    lost = ((row, origin) for row, origin in before.moves if row < len(clusters) and row not in kept)
    pairs = Counter((origin, int(clusters[row])) for row, origin in lost)
    back = [f"{plural(times, 'image')} from {a} to {b}" for (a, b), times in sorted(pairs.items())]
    texts = [
        f"{plural(len(names), 'name')} kept",
        *([f"dropped, because their clusters did not survive: {', '.join(map(repr, dropped))}"] if dropped else []),
        *([f"{plural(marks, 'junk mark')} dropped"] if marks else []),
        *([f"{len(after.moves):,} of {plural(len(before.moves), 'move')} kept"] if before.moves else []),
        *([f"{len(after.answers):,} of {plural(len(before.answers), 'answer')} kept"] if before.answers else []),
        *([f"moves dropped, because a cluster did not survive: {', '.join(back)}"] if back else []),
    ]
    return "; ".join(texts)
