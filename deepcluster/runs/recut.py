"""Other groups for a run that has ended: another number of them, or those of a person's edits."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from deepcluster.errors import UsageError
from deepcluster.groups.cut import Placement
from deepcluster.images import Source
from deepcluster.model import Model
from deepcluster.presets import check_groups
from deepcluster.records import Clustering
from deepcluster.runs.edits import carried_over, carried_text, describe_edits, edited, moved_rows
from deepcluster.runs.result import GROUPING, Result, choose_number, describe, groups_of, place_rows
from deepcluster.runs.rows import Rows, images_at_hand, read_run, recipe_of
from deepcluster.runs.writer import baseline_of, summary_text, write_result
from deepcluster.runtime.console import Display, Silent
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord


def recut(
    run: Path,
    n_clusters: int | None,
    display: Display | None = None,
    source: Source | None = None,
    *,
    report: bool = True,
) -> RunFolder:
    """Cut the features of a run into ``n_clusters`` groups (None: as many as suggested); nothing is trained.

    The cluster numbers are new. ``source``: The images for the report, if the caller has them at hand. ``report``:
    False writes only a report that exists already again.
    """
    display = display or Silent()
    files.open_run(run)
    with files.locked(run) as locked, locked.next_state() as folder:
        record, model, rows = read_run(folder)
        check_groups(n_clusters, rows.fitted)
        models.keep_former(folder, model, record, baseline_of(folder))
        recipe = recipe_of(folder)
        display.progress(GROUPING, 0, 0)
        chosen, record = choose_number(n_clusters, rows.sample, record, recipe, display)
        before = model.place(rows.reduced)
        labels = before.fine_cluster[: rows.fitted]
        sizes = torch.bincount(labels, minlength=len(model.fine_centroids))
        fine = Clustering(labels, model.fine_centroids, sizes, math.nan, 0, 0)
        groups = groups_of(rows.sample, fine, chosen, record.seed, recipe)
        groups, after = place_rows(groups, rows, model.fine_centroids)
        names, junk = carried_over(model, before.cluster, after.cluster, groups.count)
        new = replace(model, groups=groups, names=names, junk=junk)
        if record.edits is not None or any(model.names) or model.junk:
            anew = "; merges, splits and moves start anew" if record.edits is not None else ""
            display.say("Edits", f"{carried_text(model, new)}{anew}. {_way_back(folder)}")
        record = replace(record, edits=None, cut=None)  # they were of the clusters before
        report = report or folder.has("report.html")
        result = _write(folder, new, after, rows, record, {}, display, source, report=report)
    display.say("Done", summary_text(result, record, n_clusters))
    return files.open_run(run)


def apply(run: Path, edits: Edits, display: Display | None = None) -> RunFolder:
    """Merge, split, name and mark clusters of a run, and move images; edits that it has already change nothing.

    Raises UsageError if the edits are not for its present clusters.
    """
    display = display or Silent()
    files.open_run(run)
    with files.locked(run) as folder:
        record, model, rows = read_run(folder)
        if record.edits == edits.digest:
            display.say("Edits", "the run has them already")
            return folder
        if edits.cut and edits.cut != record.cut:
            raise UsageError(
                f"the edits are for other clusters than {run} has now (cut {edits.cut[:80]!a}, and the run's is"
                f" {record.cut!a}): edit those of its report.html"
            )
        with folder.next_state() as staged:
            baseline = {} if edits.changes_clusters else baseline_of(folder)
            models.keep_former(staged, model, record, baseline_of(folder))
            new = edited(model, edits, rows.reduced, rows.paths, rows.fitted)
            placement = new.place(rows.reduced)
            wanted = moved_rows(edits, rows.paths)
            moved = sum(int(placement.cluster[row]) == number for row, number in wanted.items())
            text = describe_edits(edits, model, new, moved)
            if moved < len(wanted):
                text += f"; {len(wanted) - moved:,} could not move, because they equal an image that stays"
            display.say("Edits", f"{text}. {_way_back(folder)}")
            record = replace(record, edits=edits.digest)
            if edits.changes_clusters:
                record = replace(record, cut=None, stability=None, verdict=None)  # of the clusters before
            _write(staged, new, placement, rows, record, baseline, display)
    return files.open_run(run)


def undo(run: Path, display: Display | None = None) -> RunFolder:
    """Take back the last :func:`apply` or :func:`recut`. UsageError if there is none to take back."""
    files.open_run(run)
    with files.locked(run) as folder:
        record, model, rows = read_run(folder)
        former = models.read_former(folder, rows.reduced.shape[1])
        with folder.next_state() as staged:
            old = replace(model, groups=former.cut, names=former.names, junk=former.junk)
            record = replace(record, **former.about["record"])
            display = display or Silent()
            display.say("Edits", f"taken back: {len(set(old.groups.groups.tolist()))} clusters, as before")
            _write(staged, old, old.place(rows.reduced), rows, record, former.about["baseline"], display)
            staged.remove(files.FORMER)
    return files.open_run(run)


def _way_back(folder: RunFolder) -> str:
    return f"To take it back: deepcluster apply {shlex.quote(str(folder.path))} --undo"


def _write(
    folder: LockedFolder,
    model: Model,
    placement: Placement,
    rows: Rows,
    record: RunRecord,
    baseline: Mapping[str, float],
    display: Display,
    source: Source | None = None,
    *,
    report: bool = True,
) -> Result:
    """Write the new groups of the model, and the files that depend on them."""
    models.save_in_run(model, folder, network=False)
    source = images_at_hand(folder, source, rows.paths[: rows.fitted]) if report else None
    result = describe(model, rows, placement)
    write_result(
        folder, result, record, recipe_of(folder), baseline=baseline, source=source, report=report,
        progress=display.progress,
    )  # fmt: skip
    return result
