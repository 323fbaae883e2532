"""Another number of clusters for a run that has ended."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from deepcluster.images import Source
from deepcluster.presets import check_clusters
from deepcluster.recipe import Recipe
from deepcluster.records import Clustering
from deepcluster.runs import inherit, result
from deepcluster.runs.change import Change, Made, carry_out, new_clusters
from deepcluster.runs.run import Run, cut_rows, recipe_of
from deepcluster.runtime.console import Display, Several
from deepcluster.storage import run_folder
from deepcluster.texts import plural


def recut(
    run: Path,
    n_clusters: int | None,
    display: Display | None = None,
    source: Source | None = None,
    *,
    dry_run: bool = False,
) -> Made:
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
    """Return the change of :func:`recut`."""
    model, rows = run.model, run.rows
    count, record = result.choose_number(n_clusters, rows, run.record, recipe, display)
    before = run.placement
    labels = before.fine_cluster[: rows.fitted]
    sizes = torch.bincount(labels, minlength=len(model.fine_centroids))
    fine = Clustering(labels, model.fine_centroids, sizes, math.nan, 0, 0)
    cut, placement = cut_rows(rows, fine, count, record.seed, recipe)
    past = inherit.past_of(run, torch.arange(len(before.cluster)), keeps_sample=True)
    heir = inherit.heirs(past.cluster, placement.cluster, mutual=True)
    given = max(cut.count, len(model.names))  # the numbers of clusters that are made later go on behind all given ones
    if past.placed:
        heir |= {old: given + i for i, old in enumerate(inherit.lost(past, heir))}
    nameless = replace(model, cut=cut, names=("",) * given)
    new = inherit.taught_again(Run(record, nameless, rows), past, heir)
    after = Run(record, new, rows)
    said = {}
    if record.edits is not None or any((*model.names, model.junk, model.moves, model.answers)):
        anew = "; merges and splits of the old clusters are dropped" if record.edits is not None else ""
        said["Edits"] = f"{inherit.inherited_text(model, new)}{anew}"
    record = new_clusters(record, n_clusters, edits=None, like_run=None)
    done = f"cut into {plural(len(new.cut.cluster_of.unique()), 'cluster')}"
    kept = inherit.kept_text(run.names, after.names)
    return Change(
        replace(after, record=record),
        after.placement,
        done,
        said=said,
        last=lambda outcome: f"{result.summary_text(outcome, n_clusters)}{kept}",
    )
