"""The files of a result, and the rule that says when a run writes one."""

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from deepcluster.build import compute_of
from deepcluster.fitting.conclude import conclude_run
from deepcluster.fitting.plan import ImagesRead, Job
from deepcluster.learning.features import extract
from deepcluster.learning.training import averaged, measure_statistics
from deepcluster.nets.network import Network
from deepcluster.records import FINAL, PRELIMINARY
from deepcluster.runs.page import on_sheet_of, shown_of, write_nouns, write_page, write_tree
from deepcluster.runs.result import Outcome, first_metrics, write_outcome
from deepcluster.runtime import signals
from deepcluster.runtime.machine import peak_mb
from deepcluster.storage import run_folder
from deepcluster.storage.content import IMAGES_READ, RunRecord
from deepcluster.storage.state import checkpoint_files
from deepcluster.texts import plural

# Reasons in run.json for the end of the rounds, as the end of a sentence.
END_REASONS = {"assignments settled": ", because the clusters no longer change"}
SHARE_OF_TIME = 0.1  # of preliminary results after the first: at most one per ten times its own cost


@dataclass
class ResultWriter:
    """Writes the results before, during and after the rounds. Each replaces the one before, all at once."""

    job: Job
    folder: run_folder.LockedFolder | None  # on the main rank
    network: Network  # of the rounds, with the weights that it begins with
    images: ImagesRead
    record: RunRecord  # run.json so far, without a result
    baseline: Mapping[str, float] = field(default_factory=dict)  # metrics of the first result, on the main rank
    result_seconds: float = 0.0  # of the last preliminary result
    pass_seconds: float = 0.0  # of the last pass over the images
    written: float = -math.inf  # when the last result was written, by time.perf_counter()
    weights_before: Mapping[str, Tensor] = field(default_factory=dict)  # of the body, before the last round

    def before_round(self) -> None:
        """Keep the weights, if a result averages them with the weights after the round."""
        if self.images.recipe.average < 1:
            self.weights_before = {name: value.clone() for name, value in self.network.body.state_dict().items()}

    @property
    def is_due(self) -> bool:
        """True if a preliminary result costs little beside the time since the last one, and the run writes reports."""
        waited = time.perf_counter() - self.written
        return self.job.request.report and waited >= self.result_seconds / SHARE_OF_TIME

    def features(self) -> Tensor:
        """Return the features of the network as it is now, for a result."""
        store = self.images.store
        begin = time.perf_counter()
        compute = compute_of(self.network, self.images.recipe, store.partition, self.job.display.progress, exact=True)
        features = extract(self.network, store.images, compute)
        self.pass_seconds = time.perf_counter() - begin
        return features

    def preliminary(self, rounds: int, features: Tensor | None = None) -> None:
        """Write a preliminary result; ``features``: Of the network, if they are known. A collective."""
        begin = time.perf_counter()
        before = 0.0 if features is None else self.pass_seconds
        outcome = self._write(replace(self.record, rounds=rounds, result=PRELIMINARY), features)
        self.written = time.perf_counter()
        self.result_seconds = before + self.written - begin
        if rounds == 0:
            self.baseline = first_metrics(outcome.metrics)
            if self.folder:
                page = self.folder.path / "report.html"
                self.job.display.say("First", f"{page}: preliminary clusters, replaced as the run goes on")
        signals.check()  # a round may take long

    def final(self, rounds: int, stopped_because: str, features: Tensor | None) -> Outcome:
        """Write the final result, and return it. A collective. Arguments are the values of ``train``."""
        record = self.record.with_phase("rounds", self.job.clock.lap())
        return self._write(replace(record, rounds=rounds, stopped_because=stopped_because, result=FINAL), features)

    def _write(self, record: RunRecord, features: Tensor | None) -> Outcome:
        request = self.job.request
        clock = self.job.clock
        images = self.images
        share = images.recipe.average if record.rounds else 1.0
        with averaged(self.network.body, self.weights_before, share):
            if 0 < share < 1 and not self.network.frozen_statistics:
                compute = compute_of(self.network, images.recipe, images.store.partition, exact=True)
                measure_statistics(self.network, images.store.images, compute, request.seed)
            features = self.features() if features is None else features
            outcome = conclude_run(self.job, self.network, images, record, features, self.baseline)
            record = outcome.record
            rows = outcome.rows
            untrained = images.recipe.weights == "timm" and not record.rounds
            seen = on_sheet_of(features, rows.partition) if untrained else None
            shown = shown_of(rows, outcome.model, outcome.centroid)
            if self.folder is None:
                deque(rows.partition.blocks(rows.reduced), maxlen=0)  # the other ranks only send
                return outcome
            is_first = self.written == -math.inf
            with self.folder.next_state(anew=request.overwrite and is_first) as staged:
                if request.at_once and is_first:
                    write_beginning(staged, images)
                if seen is not None:
                    write_nouns(staged, self.network, seen, rows.paths)
                if record.result == FINAL:
                    record = replace(record.with_phase("result", clock.lap()), status="done")
                    # In one step with the result: a kill leaves the checkpoints without it, or it without them.
                    if not request.keep_checkpoints:
                        for name in checkpoint_files(self.folder.path):
                            staged.remove(name)
                record = replace(record, peak_memory_mb=peak_mb(), seconds=round(clock.elapsed(), 2))
                outcome = replace(outcome, record=record)
                write_outcome(staged, outcome)
                write_tree(staged, shown.tree)
                if request.report:
                    write_page(staged, self.job.source, outcome, shown, self.job.display.progress)
        return outcome


def write_beginning(folder: run_folder.LockedFolder, images: ImagesRead) -> None:
    """Write the files of a run that depend on its images alone."""
    for name, content in images.beginning.items():
        if isinstance(content, str | bytes):
            folder.write(name, content)
        else:
            folder.write_rows(name, content)
    folder.write_rows(IMAGES_READ, [{"path": path, "sha256": digest} for path, digest in images.digests.items()])


def rounds_text(record: RunRecord) -> str:
    """Return the number of rounds and the reason of their end, as the end of a sentence."""
    rounds = f"after {plural(record.rounds, 'round')} of training" if record.rounds else "without training"
    return f", {rounds}{END_REASONS.get(record.stopped_because or '', '')}"
