"""The results of a run as its rounds go on: when there is one, and of which network."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from deepcluster.algorithm import devices
from deepcluster.learning.features import extract
from deepcluster.nets.network import Network
from deepcluster.records import FINAL, PRELIMINARY
from deepcluster.runs.build import reduction_of
from deepcluster.runs.plan import ImagesRead, Job
from deepcluster.runs.result import Result, conclude_run, write_result
from deepcluster.runs.time_limit import RESULT, RESULT_EACH, SHARE_OF_TIME
from deepcluster.runtime.memory import peak_mb
from deepcluster.storage import model_files, report_files
from deepcluster.storage.run_folder import FORMER, LockedFolder
from deepcluster.storage.run_record import RunRecord


@dataclass
class Cost:
    """Seconds that results take.

    Attributes:
        result: Of the last result; before the first one, an estimate of its files.
        one_pass: Of the last pass over the images for a result.
        written: When the last result was written, by time.perf_counter().
    """

    result: float
    one_pass: float = 0.0
    written: float = -math.inf


@dataclass
class ResultWriter:
    """Writes the results of a run: the first before any round, preliminary ones as the rounds go on, the final one.

    Each replaces the one before all at once.

    Attributes:
        job: The fit.
        folder: Its folder, on the main rank.
        network: The network of the rounds, with the weights that it begins with.
        images: Its images and recipe.
        record: run.json so far, without a result.
        baseline: The metrics of the first result, on the main rank.
    """

    job: Job
    folder: LockedFolder | None
    network: Network
    images: ImagesRead
    record: RunRecord
    baseline: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = self.network.body.state_dict() if self.images.recipe.average < 1 else {}
        self._first_weights = {name: value.clone() for name, value in weights.items()}
        self.cost = Cost(RESULT + len(self.images.store.kept) * RESULT_EACH)

    @property
    def is_due(self) -> bool:
        """Whether a preliminary result costs little beside the time since the last one. False if nobody looks."""
        waited = time.perf_counter() - self.cost.written
        return self.job.request.report and waited >= self.cost.result / SHARE_OF_TIME

    def features(self) -> Tensor:
        """Return the features of the network as it is now, for a result."""
        recipe, images, network = self.images.recipe, self.images.store.images, self.network
        dims, begin = reduction_of(recipe, network.feature_dim).dims, time.perf_counter()
        where, _ = devices(network, len(images), network.feature_dim, dims, self.job.processes)
        progress = partial(self.job.display.progress, "features")
        features = extract(
            network, images, size=recipe.image_size, batch_size=recipe.batch_size, where=where, progress=progress
        )
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

    def final(self, rounds: int, stopped_because: str, features: Tensor | None) -> tuple[Result, RunRecord]:
        """Write the final result; return it and run.json. A collective.

        Args:
            rounds: Number of rounds.
            stopped_because: The reason why there are no more.
            features: Those of the network, if its pass is made already.
        """
        record = self.record.with_phase("rounds", self.job.clock.lap())
        return self._write(replace(record, rounds=rounds, stopped_because=stopped_because, result=FINAL), features)

    def _write(self, record: RunRecord, features: Tensor | None) -> tuple[Result, RunRecord]:
        clock, images = self.job.clock, self.images
        with self._averaged(record.rounds or 0):
            features = self.features() if features is None else features
            result, record = conclude_run(self.job, self.network, images, record, features)
            blocks = result.rows.partition.blocks(result.rows.reduced)
            if self.folder is None:
                deque(blocks, maxlen=0)  # the other ranks only send
                return result, record
            with self.folder.next_state() as staged:
                model_files.save_in_run(result.model, staged)
                for name in (FORMER, report_files.MAP):  # of an earlier result
                    staged.remove(name)
                if record.result == FINAL:
                    record = replace(record.with_phase("result", clock.lap()), status="done")
                record = replace(record, peak_memory_mb=peak_mb(), seconds=round(clock.elapsed(), 2))
                record = write_result(
                    staged, result, record, images.recipe, baseline=self.baseline, source=self.job.source,
                    features=blocks, report=self.job.request.report,
                )  # fmt: skip
        return result, record

    @contextmanager
    def _averaged(self, rounds: int) -> Iterator[None]:
        """Inside, the network has the weights of the result: a mean of those before and after training.

        The mean keeps more of what a pretrained network knew than its last state does (WiSE-FT, Wortsman et al. 2022).
        """
        share, body = self.images.recipe.average, self.network.body
        if share == 1 or not rounds:
            yield
            return
        last = {name: value.clone() for name, value in body.state_dict().items()}
        body.load_state_dict(
            {
                name: self._first_weights[name].lerp(value, share) if value.is_floating_point() else value
                for name, value in last.items()
            }
        )
        try:
            yield
        finally:
            body.load_state_dict(last)
