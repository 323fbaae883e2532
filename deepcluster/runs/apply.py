"""Edits of a person: names, merges, splits, moves and junk marks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.clustering.kmeans import assigner
from deepcluster.errors import UsageError
from deepcluster.groups.cut import Cut, move_rows
from deepcluster.groups.tree import parts_of, split_cluster
from deepcluster.model import WORDS, Model, Said
from deepcluster.runs.change import Carried, Change, carry_out, decided, preview
from deepcluster.runs.run import Run
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.tables import from_windows
from deepcluster.storage import run_folder
from deepcluster.storage.edits_file import LONGEST_NAME, Edits
from deepcluster.texts import a_few, plural

MAX_NEW = 1000  # clusters made by moves at a time


def apply(run: Path, edits: Edits, display: Display | None = None, *, dry_run: bool = False) -> Carried:
    """Merge, split, name and mark clusters of a run, and move images; edits that it has already change nothing.

    Raises UsageError if the edits are not for its present clusters.
    """
    return carry_out(run, partial(by_edits, edits), Several(display), dry_run=dry_run)


def by_edits(edits: Edits, folder: run_folder.RunFolder, run: Run) -> Change:
    """Return the change of :func:`apply`."""
    if run.facts.edits == edits.digest:
        return Change(run, lines={"Edits": "the run has them already"})
    if edits.cut and edits.cut != run.facts.cut:
        raise UsageError(
            f"these edits were made before the clusters of {folder.path} changed: make them for its present clusters"
        )
    return applied(run, edits)


def applied(run: Run, edits: Edits) -> Change:
    """Return the change by these edits. Of merged clusters all but the first have no images from then on.

    Raises UsageError if a cluster or image does not exist or is merged or moved twice, or a cluster has too few parts.
    """
    moved_rows = rows_of([image for image, _ in edits.move], run.rows.paths)
    moves = {row: number for row, (_, number) in zip(moved_rows, edits.move, strict=True)}
    checked = rows_of(edits.checked, run.rows.paths)
    after = replace(run, model=_edited_model(run, edits, moves, checked))
    moved = sum(int(after.placement.cluster[row]) == number for row, number in moves.items()) if moves else 0
    text = describe_edits(edits, run.model, after.model, moved)
    if stuck := len(moves) - moved:
        text += f"; {stuck:,} could not move, because they equal an image that stays"
    named = ", ".join(filter(None, edits.names.values()))
    in_full = f"{text}: {named}" if named else text
    numbers = [*(number for number, _ in edits.split), *chain(*edits.merge), *edits.names, *reversed(edits.junk or ())]
    example = next(iter(moves), _typical(after, next(iter(numbers), 0)))
    changes = bool(edits.merge or edits.split or preview(run, after))
    return decided(after, edits.digest, changes, text=in_full, example=example, lines={"Edits": text})


def _typical(run: Run, number: int) -> int:
    """Return the row most like the mean of the centroids of a cluster, without placing any image."""
    centroids = run.model.cut.centroids[run.model.cut.cluster_of == number]
    return int((run.rows.reduced @ centroids.mean(0)).argmax()) if len(centroids) else 0


def _edited_model(run: Run, edits: Edits, moves: Mapping[int, int], checked: Sequence[int]) -> Model:
    model, reduced = run.model, run.rows.reduced
    cut = model.cut
    if edits.split:  # images of the fit alone decide the parts
        cut = _split_up(cut, edits.split, reduced[: run.rows.fitted], len(model.names))
    present = set(cut.cluster_of.tolist())
    free = len(model.names) + sum(parts - 1 for _, parts in edits.split)
    merged = [number for clusters in edits.merge for number in clusters]
    gone = {number for clusters in edits.merge for number in clusters[1:]}
    new = {number for number in moves.values() if free <= number < free + MAX_NEW}
    _check_present([*merged, *moves.values(), *edits.names, *(edits.junk or ())], present | new, free)
    if twice := sorted(number for number, times in Counter(merged).items() if times > 1):
        raise UsageError(f"cluster {twice[0]} is merged twice: name it in one merge")
    if left := sorted((edits.names.keys() | set(moves.values())) & gone):
        raise UsageError(f"cluster {left[0]} is merged into another one: name that one")

    target = torch.arange(max([free - 1, *new]) + 1)
    for first, *others in edits.merge:
        target[others] = first
    names = [*model.names, *[""] * (len(target) - len(model.names))]
    made = count(len(model.names))
    for number, parts in edits.split:
        for part, fresh in zip(range(2, parts + 1), made, strict=False):
            names[fresh] = names[number] and f"{names[number][: LONGEST_NAME - 5]} ({part})"
    for clusters in edits.merge:
        names[clusters[0]] = next((names[number] for number in clusters if names[number]), "")
    if edits.merge:
        cut = Cut(cut.centroids, target[cut.cluster_of])
    if moves:
        cut = move_rows(cut, moves, reduced, run.rows.placement(replace(model, cut=cut)))
    # The answers about a split cluster are about none of its parts, so the estimate begins anew.
    earlier = (Said(one.row, WORDS[0]) if edits.split and one.by == "drawn" else one for one in model.said)
    words = {one.row: one for one in earlier}
    words |= {row: Said(row, "checked") for row in checked if row not in words}
    words = {row: one for row, one in words.items() if row not in moves} | {row: Said(row, WORDS[0]) for row in moves}
    said = (one._replace(cluster=int(target[one.cluster])) if one.cluster >= 0 else one for one in words.values())
    return replace(
        model,
        names=tuple(edits.names.get(number, name) for number, name in enumerate(names)),
        junk=model.junk if edits.junk is None else edits.junk,
        said=tuple(said),
    ).with_cut(cut)


def describe_edits(edits: Edits, before: Model, after: Model, moved: int) -> str:
    """Describe the edits in words: ``3 names, 1 merge, 12 images moved``."""
    was = dict(enumerate(before.names))
    named = sum(name != was.get(number, "") for number, name in edits.names.items())
    marks = len(set(before.junk) ^ set(after.junk))
    counts = [
        *([plural(named, "name")] if named else []),
        *([plural(sum(len(clusters) - 1 for clusters in edits.merge), "merge")] if edits.merge else []),
        *(f"cluster {number} split into {parts}" for number, parts in edits.split),
        *([f"{plural(moved, 'image')} moved"] if moved else []),
        *([f"{plural(len(edits.checked), 'image')} checked"] if edits.checked else []),
        *([f"{plural(marks, 'junk mark')} changed"] if marks else []),
    ]
    return ", ".join(counts) or "nothing changed, because the run has these edits already"


def _split_up(cut: Cut, splits: Sequence[tuple[int, int]], reduced: Tensor, free: int) -> Cut:
    counts = torch.bincount(assigner(cut.centroids)(reduced), minlength=len(cut.centroids))
    _check_present([number for number, _ in splits], set(cut.cluster_of.tolist()), free)
    if len({number for number, _ in splits}) < len(splits):
        raise UsageError("a cluster is split twice: apply one split, and split the parts then")
    parts = [parts_of(cut, counts, number) for number, _ in splits]
    for (number, pieces), branches in zip(splits, parts, strict=True):
        if not 2 <= pieces <= len(branches.sizes):
            raise UsageError(
                f"cluster {number} has {plural(len(branches.sizes), 'part')} at most, and the edits split it into"
                f" {pieces}: move images to a new cluster instead"
            )
        cut = split_cluster(cut, branches, pieces, free)
        free += pieces - 1
    return cut


def rows_of(images: Sequence[str | int], paths: Sequence[str]) -> list[int]:
    """Return the rows of images, which are paths or rows. UsageError if one does not exist or comes twice."""
    named = any(isinstance(image, str) for image in images)
    by_path = {path: row for row, path in enumerate(paths)} if named else {}
    rows: dict[int, None] = {}
    for image in images:
        row = by_path.get(image, by_path.get(from_windows(image), -1)) if isinstance(image, str) else image
        if row < 0:
            raise UsageError(f"{str(image)[:200]!a} is no image of the run: see clusters.csv")
        if row >= len(paths):
            raise UsageError(f"there is no row {row}: the run has rows 0 to {len(paths) - 1}")
        if row in rows:
            raise UsageError(f"row {row} ({paths[row][:200]!a}) comes twice: name it once")
        rows[row] = None
    return [*rows]


def _check_present(numbers: list[int], present: set[int], free: int) -> None:
    for number in numbers:
        if number not in present:
            more = f"moves can make {free} to {free + MAX_NEW - 1}"
            raise UsageError(f"there is no cluster {number}: the clusters are {a_few(sorted(present), 20)}, and {more}")
