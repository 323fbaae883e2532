"""Other groups for a run that has ended: another number of them, or the edits of a person."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.clustering.kmeans import assigner
from deepcluster.errors import UsageError
from deepcluster.groups.cut import Cut, move_rows
from deepcluster.groups.tree import parts_of, split_group
from deepcluster.images import Source
from deepcluster.model import Model
from deepcluster.presets import check_groups
from deepcluster.recipe import Recipe
from deepcluster.records import Clustering
from deepcluster.runs import inherit, result
from deepcluster.runs.change import Change, commit, decided, new_clusters, undo_command
from deepcluster.runs.run import Run, cut_rows, read_run, recipe_of
from deepcluster.runtime.compute import GROUPING_PHASE
from deepcluster.runtime.console import Display, Several
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder
from deepcluster.storage.edits_file import LONGEST_NAME, Edits
from deepcluster.texts import plural, some


def recut(run: Path, n_clusters: int | None, display: Display | None = None, source: Source | None = None) -> None:
    """Cut the features of a run into ``n_clusters`` groups (None: as many as suggested); nothing is trained.

    The cluster numbers are new. ``source``: The images for the report, if the caller has them at hand.
    """
    display = Several(display)
    with run_folder.locked(run) as folder:
        before = read_run(folder)
        check_groups(n_clusters, before.rows.fitted)
        display.progress(GROUPING_PHASE, 0, 0)
        change = cut_anew(before, n_clusters, recipe_of(folder), display)
        outcome = commit(folder, before, change, display, source=source)
        display.say("Done", result.summary_text(outcome, n_clusters))


def cut_anew(run: Run, n_clusters: int | None, recipe: Recipe, display: Display) -> Change:
    """Return the change of :func:`recut`."""
    model, rows = run.model, run.rows
    count, record = result.choose_number(n_clusters, rows, run.record, recipe, display)
    before = run.placement
    labels = before.fine_cluster[: rows.fitted]
    sizes = torch.bincount(labels, minlength=len(model.fine_centroids))
    fine = Clustering(labels, model.fine_centroids, sizes, math.nan, 0, 0)
    cut, after = cut_rows(rows, fine, count, record.seed, recipe)
    heir = inherit.heirs(before.cluster, after.cluster, mutual=True)
    new = replace(model, cut=cut, **vars(inherit.carried_over(model, heir, cut.count)))
    moves = inherit.surviving_moves(model, before.cluster, heir)
    new, after = inherit.with_moves(new, after, rows, moves)
    said = {}
    if record.edits is not None or any((*model.names, model.junk, model.moves, model.answers)):
        anew = "; merges and splits of the old clusters are dropped" if record.edits is not None else ""
        said["Edits"] = f"{inherit.carried_text(model, new, before.cluster)}{anew}"
    record = new_clusters(record, n_clusters, edits=None, like_run=None)
    done = f"cut into {plural(len(new.cut.group_of.unique()), 'cluster')}"
    return Change(Run(record, new, rows), after, done, said=said)


def apply(run: Path, edits: Edits, display: Display | None = None) -> None:
    """Merge, split, name and mark clusters of a run, and move images; edits that it has already change nothing.

    Raises UsageError if the edits are not for its present clusters.
    """
    display = Several(display)
    with run_folder.locked(run) as folder:
        before = read_run(folder)
        if before.record.edits == edits.digest:
            display.say("Edits", "the run has them already")
            return
        if edits.cut and edits.cut != before.record.cut:
            raise UsageError(
                f"these edits were made before the clusters of {run} changed: make them for its present clusters"
            )
        commit(folder, before, edited(before, edits), display)


def undo(run: Path, display: Display | None = None, steps: int | None = 1) -> None:
    """Take back the last ``steps`` (None: all) changes by :func:`apply`, :func:`recut` and ``teach``.

    Raises UsageError if there are not so many.
    """
    with run_folder.locked(run) as folder:
        before = read_run(folder)
        formers = models.read_former(folder, before.rows.reduced.shape[1])
        steps = len(formers) if steps is None else steps
        if not 1 <= steps <= len(formers):
            few = f"{plural(len(formers), 'change')} of {run} can be taken back, and not {steps}"
            raise UsageError(f"{few}: {undo_command(folder)} all takes back every one")
        commit(folder, before, taken_back(before, formers[:steps]), Several(display))


def taken_back(run: Run, formers: Sequence[models.Groups]) -> Change:
    """Return the change that takes back steps, the newest first.

    Numbers given by edits stay given; numbers of a recut are forgotten.
    """
    model, record = run.model, run.record
    for former in formers:
        is_recut = record.edits is None
        given = 0 if is_recut else len(model.names) - len(former.annotations.names)
        model = replace(model, cut=former.cut, **vars(former.annotations))
        model = replace(model, names=model.names + ("",) * given)
        record = replace(record, **former.about["record"])
    said = {"Edits": f"taken back: {len(model.cut.group_of.unique())} clusters, as before"}
    if undone := "; ".join(filter(None, (former.about["done"] for former in formers))):
        said["Undone"] = undone
    after = Run(record, model, run.rows)
    baseline = formers[-1].about["baseline"]
    return Change(after, after.placement, undone=len(formers), said=said, baseline=baseline)


# ---- the model with a person's edits --------------------------------------------------------------------------------


MAX_NEW = 1000  # clusters made by moves at a time
MAX_MOVES = 10_000  # that are remembered, the last ones


def edited(run: Run, edits: Edits) -> Change:
    """Return the change by these edits. Of merged clusters all but the first have no images from then on.

    Raises UsageError if a cluster or image does not exist or is merged or moved twice, or a cluster has too few parts.
    """
    moves = moved_rows(edits, run.rows.paths)
    after = replace(run, model=_edited_model(run, edits, moves))
    placement = after.placement
    moved = sum(int(placement.cluster[row]) == number for row, number in moves.items())
    text = describe_edits(edits, run.model, after.model, moved)
    if moved < len(moves):
        text += f"; {len(moves) - moved:,} could not move, because they equal an image that stays"
    named = ", ".join(filter(None, edits.names.values()))
    done = f"{text}: {named}" if named else text
    # A moved image shows the edits, or else the typical image of a cluster in them.
    numbers = [*(number for number, _ in edits.split), *chain(*edits.merge), *edits.names, *reversed(edits.junk or ())]
    distances = placement.distance.where(placement.cluster == next(iter(numbers), 0), torch.inf)
    example = next(iter(moves), int(distances.argmin()))
    return decided(after, edits.digest, edits.changes_clusters, done=done, example=example, said={"Edits": text})


def _edited_model(run: Run, edits: Edits, moves: Mapping[int, int]) -> Model:
    model, reduced = run.model, run.rows.reduced
    cut = model.cut
    if edits.split:  # images of the fit alone decide the parts
        cut = _split_up(cut, edits.split, reduced[: run.rows.fitted], len(model.names))
    present = set(cut.group_of.tolist())
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
    cut = Cut(cut.centroids, target[cut.group_of])
    verdicts = dict(model.drawn)
    # Drawn images were asked about other clusters than those after a merge or split. As answers they would teach.
    asked_anew = verdicts.keys() if edits.merge or edits.split else ()
    answers = dict.fromkeys(row for row in model.answers if row not in asked_anew)
    origins = {row: int(target[origin]) for row, origin in model.moves if origin < len(target)}
    if moves:
        placed = replace(model, cut=cut).place(reduced).cluster
        origins = {row: int(placed[row]) for row in moves} | origins
        cut = move_rows(cut, moves, reduced, placed)
        origins = {row: origin for row, origin in origins.items() if moves.get(row) != origin}  # the others are back
        again = {row for row, number in moves.items() if number != placed[row]}  # another answer than the first
        verdicts |= dict.fromkeys(again & verdicts.keys(), 0)
    return replace(
        model,
        names=tuple(edits.names.get(number, name) for number, name in enumerate(names)),
        junk=model.junk if edits.junk is None else edits.junk,
        moves=tuple((row, origin) for row, origin in origins.items() if row not in answers)[-MAX_MOVES:],
        answers=tuple(answers),
        drawn=tuple((row, is_right) for row, is_right in verdicts.items() if row in answers),
    ).with_cut(cut)


def describe_edits(edits: Edits, before: Model, after: Model, moved: int) -> str:
    """Describe the edits in words: ``3 names, 1 merge, 12 images moved``. ``moved``: Number of moved images."""
    was = dict(enumerate(before.names))
    named = sum(name != was.get(number, "") for number, name in edits.names.items())
    marks = len(set(before.junk) ^ set(after.junk))
    counts = [
        *([plural(named, "name")] if named else []),
        *([plural(sum(len(clusters) - 1 for clusters in edits.merge), "merge")] if edits.merge else []),
        *(f"cluster {number} split into {parts}" for number, parts in edits.split),
        *([f"{plural(moved, 'image')} moved"] if moved else []),
        *([f"{plural(marks, 'junk mark')} changed"] if marks else []),
    ]
    return ", ".join(counts) or "nothing changed, because the run was like this already"


def _split_up(cut: Cut, splits: Sequence[tuple[int, int]], reduced: Tensor, free: int) -> Cut:
    counts = torch.bincount(assigner(cut.centroids)(reduced), minlength=len(cut.centroids))
    _check_present([number for number, _ in splits], set(cut.group_of.tolist()), free)
    if len({number for number, _ in splits}) < len(splits):
        raise UsageError("a cluster is split twice: apply one split, and split the parts then")
    parts = [parts_of(cut, counts, number) for number, _ in splits]
    for (number, pieces), branches in zip(splits, parts, strict=True):
        if not 2 <= pieces <= len(branches.sizes):
            raise UsageError(
                f"cluster {number} has {plural(len(branches.sizes), 'part')} at most, and the edits split it into"
                f" {pieces}: move images to a new cluster instead"
            )
        cut = split_group(cut, branches, pieces, free)
        free += pieces - 1
    return cut


def moved_rows(edits: Edits, paths: Sequence[str]) -> dict[int, int]:
    """Return the new clusters of the rows that move. UsageError if an image does not exist or moves twice."""
    named = any(isinstance(image, str) for image, _ in edits.move)
    by_path = {path: row for row, path in enumerate(paths)} if named else {}
    moves: dict[int, int] = {}
    for image, number in edits.move:
        row = by_path.get(image, -1) if isinstance(image, str) else image
        if row < 0:
            raise UsageError(f"{str(image)[:200]!a} is no image of the run: see clusters.csv")
        if row >= len(paths):
            raise UsageError(f"there is no row {row}: the run has rows 0 to {len(paths) - 1}")
        if row in moves:
            raise UsageError(f"row {row} ({paths[row][:200]!a}) comes twice: name it once")
        moves[row] = number
    return moves


def _check_present(numbers: list[int], present: set[int], free: int) -> None:
    for number in numbers:
        if number not in present:
            more = f"moves can make {free} to {free + MAX_NEW - 1}"
            raise UsageError(f"there is no cluster {number}: the clusters are {some(sorted(present), 20)}, and {more}")
