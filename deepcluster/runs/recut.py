"""Other groups for a run that has ended: another number of them, or what a person decided about them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from deepcluster.errors import UsageError
from deepcluster.groups.cut import Placement, outlier_distances, place
from deepcluster.images import Source
from deepcluster.model import Model
from deepcluster.records import Clustering
from deepcluster.runs.groups import check_groups, choose_number, groups_of
from deepcluster.runs.report import rewrite_report
from deepcluster.runs.results import Rows, read_run, write_groups
from deepcluster.runtime.display import Display, Silent
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.edits import Edits, carried_over, edited
from deepcluster.storage.run_folder import RunFolder
from deepcluster.storage.run_record import RunRecord


def recut(
    run: Path,
    n_clusters: int | None,
    display: Display | None = None,
    source: Source | None = None,
    *,
    report: bool = True,
) -> RunFolder:
    """Cut the features of a run into another number of groups; nothing is trained, the cluster numbers are new.

    Args:
        run: The run folder.
        n_clusters: The number of groups (None: one is suggested).
        display: Shows the suggestion.
        source: The images for the report, where the caller has them at hand.
        report: False: only a report that is there already is written again.
    """
    files.open_run(run)
    with files.locked(run) as folder, folder.next_state() as staged:
        _recut(staged, n_clusters, display or Silent())
        if report or staged.has("report.html"):
            rewrite_report(staged, source)
    return files.open_run(run)


def _recut(folder: RunFolder, n_clusters: int | None, display: Display) -> None:
    record, model, rows = read_run(folder)
    check_groups(n_clusters, len(rows.paths))
    n_clusters, record = choose_number(n_clusters, rows.reduced, record, display)
    before = model.place(rows.reduced)
    sizes = torch.bincount(before.fine_cluster, minlength=len(model.fine_centroids))
    fine = Clustering(before.fine_cluster, model.fine_centroids, sizes, math.nan, 0, 0)
    groups = groups_of(rows.reduced, fine, n_clusters, record.seed, folder.read_graph(len(rows.paths)))
    after = place(rows.reduced, groups, model.fine_centroids)
    names, junk = carried_over(model, before.cluster, after.cluster, groups.count)
    record = replace(record, edits=None)  # they were of the clusters before
    _write(folder, replace(model, groups=groups, names=names, junk=junk), after, rows, record, {})


def apply(run: Path, edits: Edits) -> RunFolder:
    """Merge, name and mark clusters of a run; edits that it has already change nothing.

    UsageError where the edits are not for its present clusters.
    """
    files.open_run(run)
    with files.locked(run) as folder:
        record, model, rows = read_run(folder)
        if record.edits == edits.digest:
            return folder
        if edits.cut and edits.cut != record.cut:
            raise UsageError(f"the edits are for other clusters than {run} has now: edit those of its report.html")
        with folder.next_state() as staged:
            baseline = {} if edits.merge else _baseline(folder)
            model = edited(model, edits)
            record = replace(record, edits=edits.digest)
            _write(staged, model, model.place(rows.reduced), rows, record, baseline)
            rewrite_report(staged, None)
    return files.open_run(run)


def _baseline(folder: RunFolder) -> dict[str, float]:
    """The figures of the network at the start, of which the groups at the end of the fit are the measure."""
    metrics = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    return {name.removeprefix("baseline_"): value for name, value in metrics.items() if name.startswith("baseline_")}


def _write(
    folder: RunFolder, model: Model, placement: Placement, rows: Rows, record: RunRecord, baseline: Mapping[str, float]
) -> None:
    """The model with other groups than before, and the files that depend on them."""
    model = replace(model, outlier_distance=outlier_distances(rows.reduced, model.groups))
    models.save_in_run(model, folder)
    write_groups(folder, model, placement, rows, record, baseline)
