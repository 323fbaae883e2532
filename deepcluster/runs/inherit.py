"""Numbers, names and junk marks that groups inherit from the groups that they continue."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.errors import DataError
from deepcluster.groups.cut import Cut, Placement, move_rows
from deepcluster.images import Source
from deepcluster.images.store import read_once
from deepcluster.model import Annotations, Model
from deepcluster.runs.rows import IMAGES_READ, image_digests, read_run, recipe_of
from deepcluster.runtime.compute import Progress, ignore_progress
from deepcluster.runtime.partition import Partition
from deepcluster.storage.run_folder import RunFolder
from deepcluster.texts import plural

READ_AT_ONCE = 1024  # images


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
    model: Model, placement: Placement, reduced: Tensor, moves: Mapping[int, tuple[int, int]], partition: Partition
) -> tuple[Model, Placement]:
    """Move rows (:func:`surviving_moves`) again. A collective. ``placement``, ``reduced``: Of this rank's rows."""
    if not moves:
        return model, placement
    rows, before = partition.gather(reduced), partition.gather(placement.cluster)
    targets = {row: target for row, (_, target) in moves.items()}
    cut = Cut(**partition.processes.broadcast_tensors(lambda: vars(move_rows(model.cut, targets, rows, before))))
    model = replace(model.with_cut(cut), **_as_annotations(moves))
    return model, model.place(reduced)


def _as_annotations(moves: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """Return the fields of Annotations of :func:`surviving_moves`."""
    return {
        "moves": tuple((row, origin) for row, (origin, target) in moves.items() if origin != target),
        "answers": tuple(row for row, (origin, target) in moves.items() if origin == target),
    }


def with_coarse_names(model: Model, after: Tensor, old: Model, before: Tensor) -> Model:
    """Return the model with the names of the ``old`` coarse groups that reappear in it.

    ``after``, ``before``: The clusters of the same images (int64, N) in both.
    """
    if not (model.coarse and old.coarse):
        return model
    heir = heirs(torch.tensor(old.coarse)[before], torch.tensor(model.coarse)[after], mutual=True)
    names = {heir[group]: name for group, name in enumerate(old.coarse_names) if group in heir}
    return replace(model, coarse_names=tuple(names.get(group, "") for group in range(len(model.coarse_names))))


def carried_text(before: Annotations, after: Annotations, clusters: Tensor) -> str:
    """Describe the names, marks and moves that survive, and the others. ``clusters``: Of all rows (int64, N) before."""
    names = [name for name in (*after.names, *after.coarse_names) if name]
    named_before = Counter(name for name in (*before.names, *before.coarse_names) if name)
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


# ---- a new fit like an earlier run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Former:
    """The groups of an earlier run."""

    path: Path
    model: Model
    places: Mapping[str, tuple[int, int]]  # by the image's digest: its cluster, and that of decisions() or -1
    store_size: int  # side of the images with these digests, in px
    run: str | None = None  # its identifier


def read_former(folder: RunFolder) -> Former:
    """Read the groups of a run."""
    record, model, rows = read_run(folder)
    digest_of = {row["path"]: row["sha256"] for row in [*folder.read_rows(IMAGES_READ), *folder.read_added()]}
    before = model.place(rows.reduced).cluster
    clusters = before.tolist()
    left = decisions(model, before)
    with folder.as_disk_errors(IMAGES_READ):
        digests = [digest_of[path] for path in rows.paths]
    places = {digest: (clusters[row], left.get(row, -1)) for row, digest in enumerate(digests)}
    return Former(folder.path, model, places, recipe_of(folder).store_size, record.run)


def places_before(
    former: Former, source: Source, digests: Mapping[str, str], size: int, progress: Progress = ignore_progress
) -> Tensor:
    """Return the places of images in an earlier run, as in Former (int64, N x 2); -1 for an image that it lacks.

    ``digests``: By path, of images of ``size`` px. If the run stored another size, the images are read again.

    Raises DataError if the run has none of the images.
    """
    if size != former.store_size:
        digest_of = dict.fromkeys(digests, "")
        for number, part in enumerate(source.parts(READ_AT_ONCE)):
            progress("reading again", number * READ_AT_ONCE, len(source.paths))
            digest_of |= image_digests(part, read_once(part, former.store_size, none_is_fine=True))
        digests = {path: digest_of[path] for path in digests}
    before = torch.tensor([former.places.get(digest, (-1, -1)) for digest in digests.values()], dtype=torch.int64)
    if before.max() < 0:
        raise DataError(f"--like {former.path}: it has none of these images, so no cluster continues: name another")
    return before


def continued(
    model: Model,
    placement: Placement,
    reduced: Tensor,
    former: Former | None,
    places: Tensor | None,
    partition: Partition,
) -> tuple[Model, Placement, str]:
    """Give continuing groups their earlier numbers, names and marks, and others new numbers. A collective.

    Images that a person moved move again if both clusters continue.

    ``placement``, ``reduced``: Of this rank's images. ``former``, ``places``: The earlier run, and the places of all
    images in it, as :func:`places_before`; on the main rank. Returns the model and the placement with these numbers,
    and a description.
    """
    after = partition.gather(placement.cluster)

    def decided() -> list[Any]:
        assert former is not None and places is not None
        before, left = places.T
        heir = heirs(before[before >= 0], after[before >= 0], mutual=False)
        ancestor = {new: old for old, new in heir.items()}
        unused = count(len(former.model.names))
        numbers = [ancestor[group] if group in ancestor else next(unused) for group in range(model.cut.count)]
        groups = former.model.cut.group_of.unique().tolist()
        kinds = {"ended": {*groups} - {*numbers}, "new": {*numbers} - {*groups}}
        lists = [f"{kind}: {', '.join(map(str, sorted(group)))}" for kind, group in kinds.items() if group]
        texts = [
            f"{len(heir)} of {plural(len(groups), 'cluster')} of {former.path} continue, with their numbers",
            *lists,
        ]
        of_number = {number: group for group, number in enumerate(numbers)}
        coarse = [model.coarse[of_number.get(number, 0)] for number in range(max(numbers) + 1) if model.coarse]
        decided = {row: (int(left[row]), int(before[row])) for row in (left >= 0).nonzero().flatten().tolist()}
        old = replace(former.model, **_as_annotations(decided))
        moves = surviving_moves(old, before, {number: number for number in heir})
        named = with_coarse_names(model, after[before >= 0], former.model, before[before >= 0])
        given = max(len(former.model.names), max(numbers) + 1)
        annotations = replace(
            carried_over(former.model, {old: old for old in heir}, given),
            coarse=tuple(coarse),
            coarse_names=named.coarse_names,
            **_as_annotations(moves),
        )
        text = "; ".join([*texts, carried_text(old, annotations, before)])
        return [numbers, vars(annotations), [*moves.items()], text]

    numbers, annotations, moves, text = partition.processes.broadcast_json(decided)
    number = torch.tensor(numbers, dtype=torch.int64)
    cut = Cut(model.cut.centroids, number[model.cut.group_of])
    placement = replace(placement, cluster=number[placement.cluster])
    tuples: dict[str, Any] = {name: tuple(values) for name, values in annotations.items()}
    model = replace(model, cut=cut, **tuples)
    return *with_moves(model, placement, reduced, dict(moves), partition), text
