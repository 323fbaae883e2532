"""Another number of clusters for a run that has ended."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from deepcluster.clustering.kmeans import assigner, best_of
from deepcluster.errors import UsageError
from deepcluster.groups.cut import KMEANS_STARTS, Cut, move_rows, pinned, recentred
from deepcluster.groups.spread import nodes_of
from deepcluster.images import Source
from deepcluster.model import Model
from deepcluster.recipes.options import Recipe
from deepcluster.recipes.presets import check_clusters
from deepcluster.records import Clustering
from deepcluster.runs import inherit, result
from deepcluster.runs.change import Carried, Change, carry_out
from deepcluster.runs.page import read_nouns
from deepcluster.runs.quality import unpinned
from deepcluster.runs.run import Rows, Run, cut_rows, recipe_of
from deepcluster.runtime.console import Display, Several
from deepcluster.seeding import derive
from deepcluster.storage import run_folder
from deepcluster.storage.content import Facts, Row
from deepcluster.storage.model_files import LAYOUTS_FILE
from deepcluster.texts import plural


def recut(
    run: Path,
    n_clusters: int | None,
    display: Display | None = None,
    source: Source | None = None,
    *,
    dry_run: bool = False,
) -> Carried:
    """Cut the features of a run into ``n_clusters`` clusters (None: as many as suggested); nothing is trained.

    The cluster numbers are new. ``source``: The images for the report, if the caller has them at hand.
    """
    display = Several(display)
    return carry_out(run, partial(by_number, n_clusters, display), display, dry_run=dry_run, source=source)


def by_number(n_clusters: int | None, display: Display, folder: run_folder.RunFolder, run: Run) -> Change:
    """Return the change of :func:`recut`."""
    check_clusters(n_clusters, run.rows.fitted)
    return cut_anew(run, n_clusters, recipe_of(folder), display, read_nouns(folder) if n_clusters is None else ())


def cut_anew(run: Run, n_clusters: int | None, recipe: Recipe, display: Display, nouns: Sequence[Row] = ()) -> Change:
    """Return the change of :func:`recut`; rows of nouns.csv help to guess a number.

    Each kind that a person named or answered about keeps a cluster. UsageError if there are more than ``n_clusters``.
    """
    rows = run.rows
    known = len(rows.layouts.known)
    count, candidates = result.choose_number(n_clusters, rows, run.record.seed, recipe, nouns, display)
    needed = kinds_kept(run)
    if n_clusters is not None and len(needed) > n_clusters:
        raise UsageError(
            f"{plural(len(needed), 'cluster')} have names or answers and stay, which is more than -k {n_clusters}: give"
            " at least so many, or merge some first"
        )
    new = _adjusted(replace(run, model=_cut_into(run, count, recipe)), max(count, len(needed)))
    facts = Facts(cut_k=n_clusters, candidates=candidates or run.facts.candidates, is_recut=True)
    after = Run(run.record, facts, new, rows)
    lines = {}
    if run.facts.edits is not None or any((*run.model.names, run.model.junk, run.model.said)):
        dropped = "; merges and splits of the old clusters are dropped" if run.facts.edits is not None else ""
        lines["Edits"] = f"{inherit.inherited_text(run.model, new)}{dropped}"
    return Change(
        after,
        "other",
        f"cut into {plural(len(new.cut.cluster_of.unique()), 'cluster')}",
        lines=lines,
        write=lambda folder: (
            folder.write_tensors(LAYOUTS_FILE, rows.layouts.known) if len(rows.layouts.known) > known else None
        ),
        last=lambda outcome: f"{result.summary_text(outcome, n_clusters)}{inherit.kept_text(run.names, after.names)}",
    )


def kinds_kept(run: Run) -> set[int]:
    """Return the clusters of a run that a person named, marked or answered about."""
    return {*inherit.lost(inherit.past_of(run), {})}


def _cut_into(run: Run, count: int, recipe: Recipe) -> Model:
    """Return the model after a cut into ``count`` clusters, and the lost ones with a person's word made anew."""
    model, rows = run.model, run.rows
    before = run.placement
    labels = before.fine_cluster[: rows.fitted]
    sizes = torch.bincount(labels, minlength=len(model.fine_centroids))
    fine = Clustering(labels, model.fine_centroids, sizes, math.nan, 0, 0)
    cut, placement = cut_rows(rows, fine, count, run.record.seed, recipe)
    past = inherit.past_of(run)
    known = past.cluster >= 0
    heir = inherit.heirs(past.cluster[known], placement.cluster[known], mutual=True)
    numbers = max(cut.count, len(model.names))  # later clusters get numbers behind all given ones
    heir |= {old: numbers + i for i, old in enumerate(inherit.lost(past, heir))}
    nameless = replace(model, cut=cut, names=("",) * numbers, junk=(), said=())
    taught = inherit.taught_again(replace(run, model=nameless), past, heir)
    return _with_kinds(taught, rows, past, heir)


def _with_kinds(model: Model, rows: Rows, past: inherit.Past, heir: Mapping[int, int]) -> Model:
    """Return the model with the kinds again whose images all followed the answers about others."""
    before, reduced = rows.placement(model), rows.reduced
    cluster = before.cluster
    gone = {old: heir[old] for old in inherit.lost(past, {}) if not (cluster == heir[old]).any()}
    if not gone:
        return model
    is_open = torch.from_numpy(nodes_of(reduced, reduced[[*model.placed]]) < 0)
    back = {row: gone[old] for row, old in enumerate(past.cluster.tolist()) if old in gone and is_open[row]}
    names = dict(enumerate(model.names)) | {new: past.annotations.names[old] for old, new in gone.items()}
    junk = {*model.junk} | {new for old, new in gone.items() if old in past.annotations.junk}
    again = replace(model, names=tuple(names.values()), junk=tuple(sorted(junk)))
    return again.with_cut(move_rows(model.cut, back, reduced, before))


def _adjusted(run: Run, count: int) -> Model:
    """Return the model with ``count`` clusters: the smallest ones are dropped, or the largest ones halved.

    A cluster with a person's word is never dropped, and halved last. If she placed too many images, there are fewer.
    """
    while (missing := count - len(present := {*run.placement.cluster.tolist()})) != 0:
        needed = kinds_kept(run)
        sizes = Counter(run.placement.cluster[: run.rows.fitted].tolist())
        order = sorted(present, key=lambda number: (number in needed, -sizes[number]))
        if missing > 0:
            halved = ((number, _halved(run, number)) for number in order)
            number, cut = next(filter(lambda one: one[1], halved), (0, None))
        else:
            number, cut = _without_one(run.model, order, needed)
        if cut is None:
            break
        names = (*run.model.names, "") if missing > 0 else run.model.names
        model = replace(run.model, names=names).with_cut(cut)
        drawn = [row for row, cluster in model.drawn.items() if cluster == number]
        judged = unpinned(model, run.rows.reduced, drawn)
        said = tuple(one._replace(cluster=judged.get(one.row, one.cluster)) for one in model.said)
        run = replace(run, model=replace(model, said=said))
    return run.model


def _without_one(model: Model, order: Sequence[int], needed: Collection[int]) -> tuple[int, Cut]:
    """Return the last cluster in ``order`` that can go, and the cut without it."""
    of = model.cut.cluster_of
    if droppable := [number for number in order if number not in needed]:
        stays = of != droppable[-1]
        return droppable[-1], Cut(model.cut.centroids[stays], of[stays])
    # Answers have named a new cluster like their own one, so these two become one.
    first = {model.names[number]: number for number in reversed(order)}
    number = [number for number in order if model.names[number] and first[model.names[number]] != number][-1]
    return number, Cut(model.cut.centroids, of.masked_fill(of == number, first[model.names[number]]))


def _halved(run: Run, number: int) -> Cut | None:
    """Return the cut with a cluster in two, or None if it is one image; placed images and other clusters stay."""
    reduced, model, before = run.rows.reduced, run.model, run.placement.cluster
    fitted = run.rows.fitted
    is_open = (before == number) & torch.from_numpy(nodes_of(reduced, reduced[[*model.placed]]) < 0)
    rows = reduced[:fitted][is_open[:fitted]]
    if not len(rows):
        return None
    halves = best_of(KMEANS_STARTS, rows, min(2, len(rows)), derive(run.record.seed, "half", number))
    part = assigner(halves.centroids)(reduced[is_open])
    parts, images = part.unique(return_counts=True)
    after = before.clone()
    after[is_open] = torch.where(part == parts[images.argmin()], len(model.names), number)
    if not (after == number).any():
        return None
    cut = recentred(model.cut, reduced[:fitted], before[:fitted], after[:fitted])
    return pinned(reduced, cut, after, run.rows.placement(replace(model, cut=cut)))
