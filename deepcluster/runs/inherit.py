"""Carry a person's decisions about images over to another cut of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepcluster.groups.cut import move_rows, recentred
from deepcluster.model import WORDS, Annotations, Model, Said
from deepcluster.runs.run import Run
from deepcluster.runs.teach import Answer, taught_model
from deepcluster.texts import plural


@dataclass(frozen=True)
class Past:
    """The decisions about images before they were cut anew."""

    annotations: Annotations  # about rows after it, with the numbers of clusters before it
    cluster: Tensor  # of all images, before it (int64, N); -1: the former run lacked this image, or rejected it
    placed: Mapping[int, int]  # rows that a person placed, and their clusters before it


def past_of(run: Run, rows: Tensor | None = None) -> Past:
    """Return the decisions about a run. ``rows``: The rows in it of N later images (int64); -1: it lacks the image.

    Without ``rows`` the images are the same, and the sample of drawn ones goes on; else their answers teach.
    """
    model, cluster = run.model, run.clusters
    keeps_sample = rows is None
    rows = torch.arange(len(cluster)) if rows is None else rows
    places: dict[int, list[int]] = {}
    for row, former in enumerate(rows.tolist()):
        places.setdefault(former, []).append(row)
    later = Annotations(
        names=model.names,
        junk=model.junk,
        said=tuple(
            one._replace(row=row) if keeps_sample or one.by != "drawn" else Said(row, WORDS[0])
            for one in model.said
            for row in places.get(one.row, ())
        ),
    )
    before = torch.where(rows < 0, -1, cluster[rows])
    placed = {row: int(before[row]) for row in later.placed}
    for row, number in later.drawn.items():  # it is judged without its answer
        before[row] = number
    return Past(later, before, placed)


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


def lost(past: Past, heir: Mapping[int, int]) -> list[int]:
    """Return the former clusters with a name, a mark or a decision about an image that nothing continues."""
    named = {number for number, name in enumerate(past.annotations.names) if name} | {*past.annotations.junk}
    placed = {*past.placed.values()}
    left = {*past.cluster.tolist()} | placed
    return sorted(left.intersection(named | placed) - {*heir})


def taught_again(run: Run, past: Past, heir: Mapping[int, int], stays: Tensor | None = None) -> Model:
    """Return the model of a run that was cut anew, after it was taught a person's earlier decisions again.

    ``heir``: The clusters in the place of former ones. One that the cut lacks is made anew of its images. ``stays``:
    Other images (a mask) whose former clusters count, and not their new ones, if a person answered.
    """
    model, rows, decisions = run.model, run.rows, past.annotations
    cut = model.cut
    words = decisions.placed
    made_anew = {old: new for old, new in heir.items() if new not in cut.cluster_of}
    heirs_of_rows = torch.tensor([heir.get(number, -1) for number in past.cluster.tolist()])
    back = torch.isin(past.cluster, torch.tensor([*made_anew], dtype=torch.int64))
    if stays is not None and words:
        back |= stays & (heirs_of_rows >= 0)
    if back.any():
        graph, nodes = rows.graph[0], torch.from_numpy(rows.graph[1])
        inside = nodes >= 0
        before = torch.zeros(len(graph), dtype=torch.int64)
        before[nodes[inside]] = run.placement.cluster[inside]
        after = before.clone()
        after[nodes[inside & back]] = heirs_of_rows[inside & back]
        cut = recentred(cut, graph, before, after)
    # Answers about kinds that go on are not here: the first ones may name a new cluster.
    present = {*cut.cluster_of.tolist()}
    pins = {
        row: heir[number]
        for row, number in past.placed.items()
        if heir[number] not in present or (number in made_anew and words[row] != "drawn")
    }
    if pins:
        cut = move_rows(cut, pins, rows.reduced, rows.placement(replace(model, cut=cut)))
    named = {new: decisions.names[old] for old, new in heir.items()}
    annotations = Annotations(
        names=tuple(named.get(number, "") for number in range(max([len(model.names), *(new + 1 for new in named)]))),
        junk=tuple(sorted(heir[old] for old in decisions.junk if old in heir)),
    )
    again = replace(model, **vars(annotations)).with_cut(cut)
    numbers_as_names = {f"cluster {number}" for number in again.cut.cluster_of.tolist() if not again.names[number]}
    answers = []
    for row, by in words.items():
        number = heir[past.placed[row]]
        name = decisions.names[past.placed[row]]
        if name in numbers_as_names:  # it would mean a cluster without a name
            name = ""
        answers.append(Answer(row, None if name else number, name, by))
    return taught_model(replace(run, model=again), answers)[0] if answers else again


def inherited_text(before: Annotations, after: Annotations) -> str:
    """Describe the names, marks and decisions about images that survive, and the others."""
    names = [name for name in after.names if name]
    dropped = sorted((Counter(name for name in before.names if name) - Counter(names)).elements())
    marks = len(before.junk) - len(after.junk)
    texts = [
        f"{plural(len(names), 'name')} kept",
        *([f"dropped, because their clusters did not survive: {', '.join(map(repr, dropped))}"] if dropped else []),
        *([f"{plural(marks, 'junk mark')} dropped"] if marks > 0 else []),
        *([f"{len(after.said):,} of {plural(len(before.said), 'answer')} kept"] if before.said else []),
    ]
    return "; ".join(texts)


def kept_text(before: Iterable[str], after: Iterable[str]) -> str:
    """Return a sentence on the share of images with a name ``before`` that have it ``after``; "": none had a name."""
    same = [one == other for one, other in zip(before, after, strict=True) if one]
    return f" {sum(same) / len(same):.1%} of {plural(len(same), 'named image')} kept their name." if same else ""
