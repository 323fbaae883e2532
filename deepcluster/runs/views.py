"""The views of a run: tables, page and drawings, made from its truths after each change. Anybody may change them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from deepcluster.groups.due import drift
from deepcluster.images import Source
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.page import MAP, TREE_VERSION, tree_of, write_page
from deepcluster.runs.result import Outcome, describe
from deepcluster.runs.run import Run, read_run
from deepcluster.runtime.compute import Progress, ignore_progress
from deepcluster.storage.content import FILES, RESULT
from deepcluster.storage.images_table import skipped_table
from deepcluster.storage.run_folder import LockedFolder, locked, version_of


def refresh(
    folder: LockedFolder,
    run: Run,
    *,
    source: Source | None = None,
    page: bool | None = None,
    progress: Progress = ignore_progress,
) -> Outcome:
    """Make all views of a run anew; result.json, which names the state that they show, comes last.

    Args:
        folder: The run folder.
        run: The run as its truths have it.
        source: The images for the pictures of the page; None: those that are at hand.
        page: With report and map; None: if the run has one of them.
        progress: Of the page.
    """
    outcome = describe(run)
    folder.write_rows("clusters.csv", outcome.clusters)
    folder.write_rows("cluster_summary.csv", outcome.summary)
    folder.write_rows("skipped.csv", skipped_table(run.rows.images))
    folder.write_json("metrics.json", outcome.metrics or None)
    tree = tree_of(run)
    folder.write_json("tree.json", {"schema_version": TREE_VERSION} | asdict(tree) if tree else None)
    if page or (page is None and (folder.has("report.html") or folder.has(MAP))):
        at_hand = source or images_at_hand(run.rows.images, Path(run.record.base))
        write_page(folder, at_hand, outcome, progress)
    views = [name for name in FILES if FILES[name].view and name != RESULT and folder.has(name)]
    folder.write_json(RESULT, result_of(outcome) | {"shows": version_of(folder), "views": views})
    return outcome


def result_of(outcome: Outcome) -> dict[str, Any]:
    """Return the facts about a result, for programs."""
    facts = outcome.facts
    run = outcome.run
    rows, limit = run.rows, run.model.outliers.limit
    outliers = (rows.residuals > limit).double().mean().item()
    drifted = drift(run.placement.cluster.numpy(), rows.residuals.numpy(), rows.fitted, limit)
    return {
        "run": outcome.record.run,
        "cut": facts.cut,
        "cut_k": facts.cut_k,
        "clusters": len(outcome.summary),
        "images_count": len(rows.paths),
        "added_count": len(rows.paths) - rows.fitted,
        "skipped_count": len(rows.images.skipped),
        "outlier_share": round(outliers, 4) if limit < torch.inf else None,
        **drifted.entries,
        "due": drifted.reason is not None,
        "answers": len(run.model.said),
        "checked": len(checked(run)),
        "candidates": [dict(candidate) for candidate in facts.candidates],
        "quality": outcome.quality,
    }


def checked(run: Run) -> list[int]:
    """Return the clusters of whose images a person has seen every one."""
    placed = torch.zeros(len(run.rows.reduced), dtype=torch.bool)
    placed[[*run.model.placed]] = True
    return sorted({*run.clusters.tolist()} - {*run.clusters[~placed].tolist()})


def report(run: Path, source: Source | None = None, *, progress: Progress = ignore_progress) -> Path:
    """Write the views of a run again, with the pictures of ``source``, or of the images that are still at hand."""
    with locked(run) as folder:
        refresh(folder, read_run(folder), source=source, page=True, progress=progress)
    return run / "report.html"
