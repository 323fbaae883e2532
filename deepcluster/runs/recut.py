"""Another number of clusters for a run that has ended."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from deepcluster.errors import UsageError
from deepcluster.groups.tree import parts_of, split_cluster
from deepcluster.images import Source
from deepcluster.model import Model
from deepcluster.presets import check_clusters
from deepcluster.recipe import Recipe
from deepcluster.records import Clustering
from deepcluster.runs import inherit, result
from deepcluster.runs.change import Carried, Change, carry_out
from deepcluster.runs.run import Run, cut_rows, recipe_of
from deepcluster.runtime.console import Display, Several
from deepcluster.storage import run_folder
from deepcluster.storage.content import Facts
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
    return cut_anew(run, n_clusters, recipe_of(folder), display)


def cut_anew(run: Run, n_clusters: int | None, recipe: Recipe, display: Display) -> Change:
    """Return the change of :func:`recut`.

    Each kind that a person named or answered about keeps a cluster, and the rest is cut so that the sum is
    ``n_clusters``. UsageError if there are more kinds than that.
    """
    rows = run.rows
    count, candidates = result.choose_number(n_clusters, rows, run.record.seed, recipe, display)
    kept = kinds_kept(run)
    if n_clusters is not None and len(kept) > n_clusters:
        raise UsageError(
            f"{plural(len(kept), 'cluster')} have names or answers and stay, which is more than -k {n_clusters}: give"
            " at least so many, or merge some first"
        )
    new = None
    fewer = count
    while new is None or (fewer > 1 and len(new.cut.cluster_of.unique()) > max(count, len(kept))):
        fewer -= 0 if new is None else max(1, (len(new.cut.cluster_of.unique()) - count) // 2)
        new = _cut_into(run, max(1, fewer), recipe)
    new = _split_to(replace(run, model=new), count)
    facts = Facts(cut_k=n_clusters, candidates=candidates or run.facts.candidates, is_recut=True)
    after = Run(run.record, facts, new, rows)
    said = {}
    if run.facts.edits is not None or any((*run.model.names, run.model.junk, run.model.said)):
        anew = "; merges and splits of the old clusters are dropped" if run.facts.edits is not None else ""
        said["Edits"] = f"{inherit.inherited_text(run.model, new)}{anew}"
    return Change(
        after,
        "other",
        f"cut into {plural(len(new.cut.cluster_of.unique()), 'cluster')}",
        said=said,
        last=lambda outcome: f"{result.summary_text(outcome, n_clusters)}{inherit.kept_text(run.names, after.names)}",
    )


def kinds_kept(run: Run) -> set[int]:
    """Return the clusters of a run that a person named, marked or answered about."""
    past = inherit.past_of(run, torch.arange(len(run.rows.reduced)), keeps_sample=True)
    return {*inherit.lost(past, {})}


def _cut_into(run: Run, count: int, recipe: Recipe) -> Model:
    """Return the model after a cut into ``count`` clusters, and the lost ones with a person's word made anew."""
    model, rows = run.model, run.rows
    before = run.placement
    labels = before.fine_cluster[: rows.fitted]
    sizes = torch.bincount(labels, minlength=len(model.fine_centroids))
    fine = Clustering(labels, model.fine_centroids, sizes, math.nan, 0, 0)
    cut, placement = cut_rows(rows, fine, count, run.record.seed, recipe)
    past = inherit.past_of(run, torch.arange(len(before.cluster)), keeps_sample=True)
    heir = inherit.heirs(past.cluster, placement.cluster, mutual=True)
    given = max(cut.count, len(model.names))  # the numbers of clusters that are made later go on behind all given ones
    heir |= {old: given + i for i, old in enumerate(inherit.lost(past, heir))}
    nameless = replace(model, cut=cut, names=("",) * given, junk=(), said=())
    return inherit.taught_again(replace(run, model=nameless), past, heir)


def _split_to(run: Run, count: int) -> Model:
    """Return the model with the largest clusters, those without a name first, split until there are ``count``."""
    while len(run.model.cut.cluster_of.unique()) < count:
        sizes = Counter(run.placement.cluster[: run.rows.fitted].tolist())
        order = sorted(sizes, key=lambda number: (bool(run.model.names[number]), -sizes[number]))
        if (after := next(filter(None, (_halved(run, number) for number in order)), None)) is None:
            break
        run = replace(run, model=after)
    return run.model


def _halved(run: Run, number: int) -> Model | None:
    """Return the model with a cluster in two parts; None if it has no parts."""
    model = run.model
    counts = torch.bincount(run.placement.centroid[: run.rows.fitted], minlength=len(model.cut.centroids))
    branches = parts_of(model.cut, counts, number)
    if len(branches.sizes) < 2:
        return None
    free = len(model.names)
    return replace(model, cut=split_cluster(model.cut, branches, 2, free), names=(*model.names, ""))
