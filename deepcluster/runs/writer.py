"""The files of a result, and the rule that says when a run writes one."""

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from torch import Tensor

from deepcluster.clustering.agreement import NMI_AVERAGE
from deepcluster.compute import Progress, ignore_progress
from deepcluster.images import Source
from deepcluster.learning.features import extract
from deepcluster.learning.training import averaged
from deepcluster.nets.network import Network
from deepcluster.recipe import Recipe
from deepcluster.records import FINAL, PRELIMINARY
from deepcluster.runs.build import compute_of
from deepcluster.runs.page import MAP, TREE, Tables, on_sheet_of, write_nouns, write_page, write_tree
from deepcluster.runs.plan import ImagesRead, Job
from deepcluster.runs.predict import placement_columns
from deepcluster.runs.result import Result, conclude_run, stability_entries
from deepcluster.runs.rows import remember_images
from deepcluster.runtime import signals
from deepcluster.runtime.machine import peak_mb
from deepcluster.storage import model_files
from deepcluster.storage import run_folder as files
from deepcluster.storage.content import FILES, RunRecord, Table
from deepcluster.storage.state import checkpoint_files
from deepcluster.texts import count

# Reasons in run.json for the end of the rounds, as the end of a sentence.
END_REASONS = {
    "time limit": ", because the time limit was reached",
    "assignments settled": ", because the clusters no longer change",
}
SHARE_OF_TIME = 0.1  # of preliminary results after the first: at most one per ten times its own cost


@dataclass
class Cost:
    """Seconds that results take."""

    result: float = 0.0  # of the last one
    one_pass: float = 0.0  # of the last pass over the images for a result
    written: float = -math.inf  # when the last result was written, by time.perf_counter()


@dataclass
class ResultWriter:
    """Writes the results of a run: the first before any round, preliminary ones as the rounds go on, the final one.

    A result replaces the one before all at once.
    """

    job: Job
    folder: files.LockedFolder | None  # on the main rank
    network: Network  # of the rounds, with the weights that it begins with
    images: ImagesRead
    record: RunRecord  # run.json so far, without a result
    baseline: Mapping[str, float] = field(default_factory=dict)  # metrics of the first result, on the main rank

    def __post_init__(self) -> None:
        weights = self.network.body.state_dict() if self.images.recipe.average < 1 else {}
        self._first_weights = {name: value.clone() for name, value in weights.items()}
        self.cost = Cost()

    @property
    def has_result(self) -> bool:
        return self.cost.written > -math.inf

    @property
    def is_due(self) -> bool:
        """True if a preliminary result costs little beside the time since the last one, and reports are wanted."""
        waited = time.perf_counter() - self.cost.written
        return self.job.request.report and waited >= self.cost.result / SHARE_OF_TIME

    def features(self) -> Tensor:
        """Return the features of the network as it is now, for a result."""
        store, begin = self.images.store, time.perf_counter()
        compute = compute_of(self.network, self.images.recipe, store.partition, self.job.display.progress, exact=True)
        features = extract(self.network, store.images, compute)
        self.cost.one_pass = time.perf_counter() - begin
        return features

    def preliminary(self, rounds: int, features: Tensor | None = None) -> None:
        """Write a preliminary result; ``features``: those of the network, if they are known. A collective."""
        begin, before = time.perf_counter(), 0.0 if features is None else self.cost.one_pass
        result, _ = self._write(replace(self.record, rounds=rounds, result=PRELIMINARY), features)
        self.cost.written = time.perf_counter()
        self.cost.result = before + self.cost.written - begin
        if rounds == 0:
            self.baseline = result.baseline
            if self.folder:
                page = self.folder.path / "report.html"
                self.job.display.say("First", f"{page}: preliminary groups, replaced as the run goes on")
        signals.check()  # a round may take long

    def final(self, rounds: int, stopped_because: str, features: Tensor | None) -> tuple[Result, RunRecord]:
        """Write the final result; return it and run.json. A collective. Arguments are the values of ``train``."""
        record = self.record.with_phase("rounds", self.job.clock.lap())
        return self._write(replace(record, rounds=rounds, stopped_because=stopped_because, result=FINAL), features)

    def _write(self, record: RunRecord, features: Tensor | None) -> tuple[Result, RunRecord]:
        clock, images = self.job.clock, self.images
        share = images.recipe.average if record.rounds else 1.0
        with averaged(self.network.body, self._first_weights, share):
            features = self.features() if features is None else features
            result, record = conclude_run(self.job, self.network, images, record, features)
            untrained = images.recipe.weights == "timm" and not record.rounds
            seen = on_sheet_of(features, result.rows.partition) if untrained else None
            if self.folder is None:
                deque(result.rows.partition.blocks(result.rows.reduced), maxlen=0)  # the other ranks only send
                return result, record
            # The first result replaces the run of --overwrite, with the files of the beginning.
            replaces = self.job.request.overwrite and not self.has_result
            with self.folder.next_state(anew=replaces) as staged:
                if replaces:
                    write_beginning(staged, images)
                for name in ("former.safetensors", MAP):  # of an earlier result
                    staged.remove(name)
                if seen is not None:
                    write_nouns(staged, images.recipe.backbone, seen, result.rows.paths)
                if record.result == FINAL:
                    record = replace(record.with_phase("result", clock.lap()), status="done")
                    # In one step with the result: a kill leaves the checkpoints without it, or it without them.
                    if not self.job.request.keep_checkpoints:
                        for name in checkpoint_files(self.folder.path):
                            staged.remove(name)
                record = replace(record, peak_memory_mb=peak_mb(), seconds=round(clock.elapsed(), 2))
                record = write_result(
                    staged, result, record, images.recipe, baseline=self.baseline, source=self.job.source,
                    features=True, report=self.job.request.report, progress=self.job.display.progress,
                )  # fmt: skip
                model_files.save_in_run(result.model, staged, record)
        return result, record


def write_beginning(folder: files.LockedFolder, images: ImagesRead) -> None:
    """Write the files of a run that depend on its images alone."""
    for name, content in images.beginning.items():
        if isinstance(content, str | bytes):
            folder.write(name, content)
        else:
            folder.write_rows(name, content)
    remember_images(folder, images.digests)


def write_result(
    folder: files.LockedFolder,
    result: Result,
    record: RunRecord,
    recipe: Recipe,
    *,
    baseline: Mapping[str, float],
    source: Source | None,
    features: bool = False,
    report: bool = True,
    progress: Progress = ignore_progress,
) -> RunRecord:
    """Write the files that depend on the groups, then run.json, and return run.json.

    The caller writes the model if it is new, with the ``cut`` of the record that is returned.

    Args:
        record: run.json so far; with a ``cut`` if the images that it is of keep their clusters.
        baseline: The metrics of the first result; empty if they are not known.
        source: The images, for the page; None if they are not at hand.
        features: Also write the features, because they are new.
        report: Also write report.html.
    """
    rows, summary = result.rows, result.summary
    if features:
        blocks = rows.partition.blocks(rows.reduced)
        folder.write_blocks("features.npy", (rows.partition.total, rows.reduced.shape[1]), blocks)
        folder.write_blocks("residuals.npy", (rows.partition.total, 1), [result.residuals.unsqueeze(1)])
    clusters = write_clusters(folder, result)
    digest = files.rows_sha256(clusters)
    folder.write_rows("cluster_summary.csv", summary)
    measures: dict[str, Any] = {}
    if result.metrics:
        baseline = baseline or (result.baseline if record.rounds == 0 else {})
        at_start = {f"baseline_{name}": int(value) if name == "clusters" else value for name, value in baseline.items()}
        labelled = sum(map(bool, rows.labels or ()))
        measures = {**result.metrics, **at_start, "nmi_average": NMI_AVERAGE, "labelled": labelled}
        folder.write_json("metrics.json", measures)
    else:
        folder.remove("metrics.json")
    if result.tree:
        write_tree(folder, result.tree)
    else:
        folder.remove(TREE)
    record = replace(
        record,
        cut=record.cut or digest[:16],  # edits are for this assignment, and for no later one
        rows=digest,
        clusters=len(summary),
        **stability_entries(rows, record, recipe, len(summary)),
    )
    if report:
        used = clusters.where("status", "ok")
        write_page(folder, source, Tables(record, used, summary, measures or None, result.tree), result.shown, progress)
    folder.write_record(record)
    return record


def baseline_of(folder: files.RunFolder) -> dict[str, float]:
    """Read the metrics of the first result of a run, if it has any."""
    measures = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    return {name.removeprefix("baseline_"): value for name, value in measures.items() if name.startswith("baseline_")}


def write_clusters(folder: files.LockedFolder, result: Result) -> Table:
    """Write clusters.csv, and return its rows."""
    rows, placement = result.rows, result.placement
    used: dict[str, Iterable[object]] = {
        "path": rows.paths,
        "status": ["ok"] * len(rows.paths),
        "fine_cluster": placement.fine_cluster.tolist(),
        "label": rows.labels or [""] * len(rows.paths),
        **placement_columns(result.model, placement, result.residuals),
    }
    rest = [""] * len(rows.skipped)
    skipped = {"path": [path for path, _ in rows.skipped], "status": ["skipped"] * len(rest)}
    columns = FILES["clusters.csv"].columns
    table = Table.of_columns({name: chain(used[name], skipped.get(name, rest)) for name in columns})
    folder.write_rows("clusters.csv", table)
    return table


def summary_text(result: Result, record: RunRecord, n_clusters: int | None, rounds: str = "") -> str:
    """Return sentences on the clusters: their sizes, ``rounds``, and other numbers if none (None) was asked for."""
    sizes = [int(row["size"]) for row in result.summary]
    text = f"{count(len(sizes), 'cluster')} of {min(sizes):,} to {max(sizes):,} images{rounds}."
    others = [str(candidate["k"]) for candidate in (record.candidates or ())[1:]]
    if n_clusters is not None or not others:
        return text
    return f"{text} Their number is a guess: {' or '.join(others)} {'is' if len(others) == 1 else 'are'} possible too."


def rounds_text(record: RunRecord) -> str:
    """Return the number of rounds and the reason of their end, as the end of a sentence."""
    rounds = f"after {count(record.rounds, 'round')} of training" if record.rounds else "without training"
    return f", {rounds}{END_REASONS.get(record.stopped_because or '', '')}"
