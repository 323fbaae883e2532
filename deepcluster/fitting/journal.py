"""A run on disk while it is fitted: locked and written part by part; run.json has its end, whatever happens."""

import math
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from deepcluster.clustering.agreement import nmi
from deepcluster.errors import DeepClusterError, DiskError, Stopped
from deepcluster.fitting.plan import check_same
from deepcluster.fitting.values import Decided, ImagesRead
from deepcluster.nets.network import Network
from deepcluster.records import Round, State
from deepcluster.runs.page import NOUNS
from deepcluster.runs.result import Outcome, label_numbers, metrics
from deepcluster.runs.run import Run, write_features
from deepcluster.runs.views import refresh
from deepcluster.runtime import log, signals
from deepcluster.runtime.compute import Progress
from deepcluster.runtime.machine import peak_mb
from deepcluster.runtime.processes import Processes
from deepcluster.storage import model_files, run_folder
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints, as_checkpoint_errors, restored, rounds_done
from deepcluster.storage.clusters_file import Made, encoded
from deepcluster.storage.content import CLUSTERS, IMAGES, LOG, Row, RunRecord
from deepcluster.storage.lock import own_files, scratch, scratch_of
from deepcluster.storage.run_folder import LockedFolder
from deepcluster.texts import plural


@dataclass
class Journal:
    """Writes a run: its beginning, a row of history.csv and a checkpoint per round, its result (main rank alone)."""

    decided: Decided
    folder: LockedFolder | None  # on the main rank
    record: RunRecord  # run.json so far
    checkpoints: Checkpoints
    checkpoint: Checkpoint | None  # the last one of a run that goes on
    begun: float  # of the run, by time.perf_counter(); earlier by the time before an interruption
    baseline: Mapping[str, float] = field(default_factory=dict)  # metrics before the rounds, on the main rank
    rows: list[Mapping[str, Any]] = field(default_factory=list)  # of history.csv

    def __post_init__(self) -> None:
        self.lap = self.begun

    def end_phase(self, phase: str, **entries: Any) -> None:
        """Note the seconds of a phase, which ends now, and other entries of run.json."""
        now = time.perf_counter()
        seconds = {**(self.record.seconds_by_phase or {}), phase: round(now - self.lap, 2)}
        self.record = replace(self.record, **entries, seconds_by_phase=seconds)
        self.lap = now

    def begin(self, images: ImagesRead) -> None:
        """Write the files that depend on the images alone, and compare a resumed run with its beginning."""
        self.images = images
        self.more = () if images.truth is None else ("nmi_labels",)  # columns of history.csv
        self.end_phase(
            "reading",
            images_count=images.store.partition.total,
            skipped_count=len(images.store.skipped),
            pseudo_labels=images.recipe.pseudo_labels,
            reasons=images.plan.reasons,
        )
        self.at_once = not images.recipe.rounds  # a run without rounds appears at its end
        if self.folder and self.decided.start.is_resumed:
            differences = check_same(self.folder, self.record, self.checkpoint, images.digests)
            self.record = replace(self.record, resumed=differences)
        if self.folder and not self.at_once:
            if self.decided.request.overwrite:
                for name in sorted(own_files(self.folder.path), key=run_folder.RUN.__ne__):  # without it it is no run
                    self.folder.remove(name)
            self._write_beginning(self.folder)
            self.folder.write_record(self.record)

    def _write_beginning(self, folder: LockedFolder) -> None:
        for name, content in self.images.beginning.items():
            if isinstance(content, str | bytes):
                folder.write(name, content)
            else:
                folder.write_rows(name, content)
        if not self.decided.start.is_resumed:
            folder.write_rows("history.csv", (), *self.more)
        folder.write_rows(IMAGES, self.images.table.rows)
        if not folder.has(LOG):
            folder.write(LOG, log.lines())

    def restore(self, network: Network) -> State:
        """Restore the network and history.csv from the last checkpoint, and return its state."""
        assert self.checkpoint, "only a run that goes on is restored"
        about = self.checkpoint.about
        with as_checkpoint_errors(self.checkpoints.folder):
            state, parameters = restored(self.checkpoint, self.images.store.partition.local)
            network.load_state_dict(parameters)
        self.begun -= about["elapsed"]
        self.baseline = about["baseline"]
        self.rows = about["history"]
        if self.folder:  # it may have a round more, after the checkpoint
            self.folder.write_rows("history.csv", self.rows, *self.more)
        return state

    def save(self, state: State, network: Network) -> None:
        """Write a checkpoint. A collective."""
        if state.features is not None:
            state = replace(state, features=self.images.store.partition.gather(state.features.cpu()))
        if self.folder:
            about = {
                "run": self.record.run,
                "environment": self.record.environment,
                "elapsed": time.perf_counter() - self.begun,
                "baseline": self.baseline,
                "history": self.rows,
            }
            self.checkpoints.write(state, network.state_dict(), about)

    def add(self, finished: Round, seconds: Mapping[str, float]) -> Mapping[str, Any]:
        """Write the row of a round whose steps took so many ``seconds``, and return it."""
        if self.folder is None:
            return {}
        clustering = finished.clustering
        trained_on = self.images.store.partition.total * self.images.recipe.epochs
        figures = {
            "loss": (finished.loss, 5),
            "chance_loss": (finished.chance_loss, 5),
            "inertia": (clustering.inertia, 3),
            "nmi_previous": (finished.nmi_previous, 5),
            "changed": (finished.changed, 5),
            "cluster_weight": (finished.cluster_weight, 5),
            "largest_share": (clustering.largest_share, 5),
            "lr": (finished.lr, 8),
            **{f"{step}_seconds": (value, 3) for step, value in seconds.items()},
            "images_per_second": (trained_on / seconds["training"], 1),
        }
        if (truth := self.images.truth) is not None:
            labels, has_label = label_numbers(truth)
            figures["nmi_labels"] = (nmi(labels[has_label], clustering.labels[has_label]), 5)
        cells = {
            name: "" if math.isnan(value) else round(float(value), digits) for name, (value, digits) in figures.items()
        }
        self.rows.append({"round": finished.index, "reseeded": clustering.reseeded, **cells})
        self.folder.write_rows("history.csv", self.rows, *self.more)
        return self.rows[-1]

    def end(self, folder: LockedFolder, run: Run, nouns: Sequence[Row], progress: Progress) -> Outcome:
        """Write the result, on the main rank, and return it. ``nouns``: Of its images, if the network knows nouns."""
        baseline = self.baseline
        if not baseline and run.rows.labels and not run.record.rounds:  # the result is the start
            clusters = run.placement.cluster
            baseline = {**metrics(run.rows.labels, clusters), "clusters": len(clusters.unique())}
        with run_folder.staged(folder) if self.at_once else nullcontext(folder) as target:
            if self.at_once:
                self._write_beginning(target)
            if nouns:
                target.write_rows(NOUNS, nouns)
            write_features(target, run.rows)
            model_files.save_in_run(run.model, target)
            if run.rows.layouts.known:
                target.write_tensors(model_files.LAYOUTS_FILE, run.rows.layouts.known)
            target.write(CLUSTERS, encoded(run.model, run.facts, Made()))
            seconds = round(time.perf_counter() - self.begun, 2)
            self.end_phase(
                "result", status="done", peak_memory_mb=peak_mb(), seconds=seconds, baseline=baseline or None
            )
            run = replace(run, record=self.record)
            outcome = refresh(
                target, run, source=self.decided.source, page=self.decided.request.report, progress=progress
            )
            target.write_record(self.record)  # from here on the run is done, and needs no checkpoint
            for name in () if self.decided.request.keep_checkpoints else own_files(target.path, "checkpoints/"):
                target.remove(name)
        return outcome


@contextmanager
def opened(decided: Decided, processes: Processes, begun: float) -> Iterator[Journal]:
    """Lock the folder of a run, for all ranks. An error of this run is recorded in its run.json."""
    out = Path(decided.start.out)
    overwrite = decided.request.overwrite
    with shared_lock(out, processes) as folder:
        before = _record_in(folder)
        # A run that goes on, from whatever state, keeps its number.
        record = replace(decided.record, run=before.run) if before and not overwrite else decided.record
        can_resume = not overwrite and decided.features is None
        signals.advise(partial(_advice, out, record, can_resume=can_resume))
        checkpoints = Checkpoints(out / "checkpoints", scratch_of(out, processes.rank))
        checkpoint = checkpoints.latest() if decided.start.is_resumed else None
        try:
            yield Journal(decided, folder, record, checkpoints, checkpoint, begun)
        except BaseException as error:
            try:
                _record_end(folder, record, error)
            except Stopped as stop:  # the signal came on the way here; there is no second one
                _record_end(folder, record, stop)
                raise
            is_unchanged = overwrite and before and (now := _record_in(folder)) and now.run == before.run
            if is_unchanged and isinstance(error, DeepClusterError):
                raise type(error)(f"{error}; {out} is as it was") from error
            raise


@contextmanager
def shared_lock(path: Path, processes: Processes) -> Iterator[LockedFolder | None]:
    """Lock a run folder, or make one, on the main rank for all. The others get None: they write only scratch files.

    A collective. Raises DiskError if a rank does not see the run folder of the main rank, and so its files.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(run_folder.locked(path, make=True)) if processes.is_main else None
        # The scratch folder is empty before the others use it.
        mark = scratch_of(path) / processes.broadcast_json(lambda: secrets.token_hex(8))
        if folder:
            mark.mkdir()
        processes.any(False)
        if processes.any(not mark.is_dir()):
            raise DiskError(f"the processes do not see one folder at {path}: give an -o that all of them share")
        if not folder:
            stack.enter_context(scratch(path, processes.rank))
        yield folder


def _record_in(folder: run_folder.RunFolder | None) -> RunRecord | None:
    """Return the content of run.json; None if there is none that can be read."""
    with suppress(DeepClusterError):
        return folder.read_record() if folder and folder.has(run_folder.RUN) else None
    return None


def _advice(out: Path, record: RunRecord, *, can_resume: bool) -> str:
    """Return the end of the message of a stop: the state of the run ``record`` in ``out``, and the next command."""
    written = _record_in(run_folder.RunFolder(out))
    if written and not _is_same_start(written, record):
        return f"; {out} is as it was{signals.REPEAT}"
    if not written and not can_resume:
        return signals.REPEAT
    if written and written.status == "done":
        return f"; the run in {out} is done"
    done = rounds_done(out)
    end = f"; to end it with {plural(done, 'round')}: --resume --rounds {done}" if done else ""
    return f"; to go on: run it again with -o {shlex.quote(str(out))} --resume{end}"


def _is_same_start(written: RunRecord, record: RunRecord) -> bool:
    """Return whether run.json is of this process."""
    return (written.run, written.started) == (record.run, record.started)


def _record_end(folder: run_folder.LockedFolder | None, record: RunRecord, error: BaseException) -> None:
    """Write into run.json how the run ended, unless it is done or run.json is of another process."""
    stopped = signals.stopped() or isinstance(error, KeyboardInterrupt | Stopped)
    status = "stopped" if stopped else "failed"
    with suppress(DeepClusterError), signals.uninterrupted():
        written = _record_in(folder)
        if folder and written and _is_same_start(written, record) and written.status != "done":
            folder.write_record(replace(written, status=status, error=f"{type(error).__name__}: {error}"))
