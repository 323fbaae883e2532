"""A run on disk while it is fitted: locked, written step by step, with its end in run.json whatever happens."""

import math
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from deepcluster.clustering.agreement import nmi
from deepcluster.errors import DeepClusterError, DiskError, Stopped
from deepcluster.fitting.plan import Decided
from deepcluster.fitting.read import ImagesRead
from deepcluster.fitting.resume import check_same, facts_of
from deepcluster.nets.network import Network
from deepcluster.records import Round, State
from deepcluster.runs.images import fingerprint
from deepcluster.runs.page import shown_of, write_nouns, write_page, write_tree
from deepcluster.runs.result import Outcome, label_numbers, write_outcome
from deepcluster.runtime import signals
from deepcluster.runtime.compute import Progress
from deepcluster.runtime.machine import peak_mb
from deepcluster.runtime.processes import Processes
from deepcluster.storage import run_folder
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints, fitting, restored, rounds_done
from deepcluster.storage.content import IMAGES_READ, RunRecord
from deepcluster.storage.run_folder import LockedFolder
from deepcluster.storage.state import checkpoint_files, scratch, scratch_of
from deepcluster.texts import plural


@dataclass
class Journal:
    """A run on disk, as it comes to be: its beginning, a row of history.csv and a checkpoint per round, its result.

    The main rank alone writes.
    """

    decided: Decided
    folder: LockedFolder | None  # on the main rank
    record: RunRecord  # run.json so far
    checkpoints: Checkpoints
    checkpoint: Checkpoint | None  # the last one of a run that goes on, on the main rank
    start: float  # of the run, by time.perf_counter(); earlier by the time before an interruption
    baseline: Mapping[str, float] = field(default_factory=dict)  # metrics before the rounds, on the main rank
    rows: list[Mapping[str, Any]] = field(default_factory=list)  # of history.csv

    def __post_init__(self) -> None:
        self.lap = self.start

    def end_phase(self, phase: str, **entries: Any) -> None:
        """Note the seconds of a phase, which ends now, and other entries of run.json."""
        now = time.perf_counter()
        seconds = {**(self.record.seconds_by_phase or {}), phase: round(now - self.lap, 2)}
        self.record = replace(self.record, **entries, seconds_by_phase=seconds)
        self.lap = now

    def begin(self, images: ImagesRead) -> None:
        """Write the files that depend on the images alone, unless they come with the result.

        A run that goes on is compared with its beginning.
        """
        self.images = images
        self.more = () if images.truth is None else ("nmi_labels",)  # columns of history.csv
        self.end_phase(
            "reading",
            images_count=images.store.partition.total,
            skipped_count=len(images.store.skipped),
            pseudo_labels=images.recipe.pseudo_labels,
            fingerprint=fingerprint(images.digests) if images.features is None else None,
            reasons=images.plan.reasons,
        )
        self.about = facts_of(self.record, images.recipe)
        overwrite = self.decided.request.overwrite
        # No file is written before the result if it replaces a run in one step, or is of features.
        self.at_once = images.features is not None or (overwrite and not images.recipe.rounds)
        if self.folder and self.decided.start.state == "resumed":
            differences = check_same(self.folder, self.checkpoint, self.about, images.digests)
            self.record = replace(self.record, resumed=differences)
        if self.folder and not self.at_once:
            with self.folder.next_state(anew=overwrite) as staged:
                self._write_beginning(staged)
                staged.write_record(self.record)

    def _write_beginning(self, staged: LockedFolder) -> None:
        for name, content in self.images.beginning.items():
            if isinstance(content, str | bytes):
                staged.write(name, content)
            else:
                staged.write_rows(name, content)
        digests = self.images.digests.items()
        staged.write_rows(IMAGES_READ, [{"path": path, "sha256": digest} for path, digest in digests])

    def restore(self, network: Network) -> State:
        """Restore the network from the last checkpoint, and return its state. A collective."""
        partition = self.images.store.partition
        processes = partition.processes
        mine = self.checkpoint
        facts: Any = mine and [mine.values, str(mine.file), mine.about]
        values, file, about = processes.broadcast_json(lambda: facts)
        tensors = processes.broadcast_tensors(lambda: mine.tensors if mine else {})
        with fitting(self.checkpoints.folder):
            state, parameters = restored(Checkpoint(values, tensors, Path(file), about), partition.local)
            network.load_state_dict(parameters)
        self.start -= about["elapsed"]
        self.baseline = about["baseline"]
        return state

    def save(self, state: State, network: Network) -> None:
        """Write a checkpoint. A collective."""
        so_far = {"elapsed": time.perf_counter() - self.start, "baseline": self.baseline}
        if state.features is not None:
            state = replace(state, features=self.images.store.partition.gather(state.features.cpu()))
        if self.folder:
            self.checkpoints.write(state, network.state_dict(), {**self.about, **so_far})

    def open_history(self, done: int) -> None:
        """Read the rows of the first ``done`` rounds, which an earlier process has written."""
        if self.folder is None:
            return
        self.rows = [*self.folder.read_rows("history.csv")] if done else []
        numbers = [row["round"] for row in self.rows]
        if numbers[:done] != [str(number) for number in range(done)]:
            raise DiskError(
                f"{self.folder.path / 'history.csv'} has the rounds {', '.join(numbers[:10]) or 'of none'}, and the"
                f" checkpoint comes after {done}: restore the file from a copy"
            )
        del self.rows[done:]
        self.folder.write_rows("history.csv", self.rows, *self.more)

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
            labels, has_label = label_numbers(truth, sorted(set(truth)))
            figures["nmi_labels"] = (nmi(labels[has_label], clustering.labels[has_label]), 5)
        cells = {
            name: "" if math.isnan(value) else round(float(value), digits) for name, (value, digits) in figures.items()
        }
        self.rows.append({"round": finished.index, "reseeded": clustering.reseeded, **cells})
        self.folder.write_rows("history.csv", self.rows, *self.more)
        return self.rows[-1]

    def end(self, folder: LockedFolder, outcome: Outcome, seen: Tensor | None, progress: Progress) -> None:
        """Write the result, on the main rank. ``seen``: The features of the images that get nouns."""
        shown = shown_of(outcome.rows, outcome.model, outcome.centroid)
        request = self.decided.request
        with folder.next_state(anew=self.at_once and request.overwrite) as staged:
            if self.at_once:
                self._write_beginning(staged)
            if seen is not None:
                write_nouns(staged, outcome.model.network, seen, outcome.rows.paths)
            # In one step with the result: a kill leaves the checkpoints without it, or it without them.
            for name in () if request.keep_checkpoints else checkpoint_files(folder.path):
                staged.remove(name)
            self.record = outcome.record
            seconds = round(time.perf_counter() - self.start, 2)
            self.end_phase("result", status="done", peak_memory_mb=peak_mb(), seconds=seconds)
            outcome = replace(outcome, record=self.record)
            write_outcome(staged, outcome)
            write_tree(staged, shown.tree)
            if request.report:
                write_page(staged, self.images.source, outcome, shown, progress)


@contextmanager
def opened(decided: Decided, processes: Processes, start: float) -> Iterator[Journal]:
    """Lock the folder of a run, for all ranks. An error of this run is recorded in its run.json."""
    out = Path(decided.start.out)
    overwrite = decided.request.overwrite
    with (
        shared_lock(out, processes) as folder,
        run_folder.replacing(folder if overwrite else None),
    ):
        before = folder.read_record() if folder and folder.has(run_folder.RUN) and not overwrite else None
        # A run that goes on, from whatever state, keeps its number.
        record = replace(decided.record, run=before.run) if before and before.run else decided.record
        can_resume = not overwrite and decided.features is None
        signals.advise(partial(_advice, out, record, can_resume=can_resume))
        checkpoints = Checkpoints(out / "checkpoints", scratch_of(out, processes.rank))
        checkpoint = checkpoints.latest() if folder and decided.start.state == "resumed" else None
        try:
            yield Journal(decided, folder, record, checkpoints, checkpoint, start)
        except BaseException as error:
            try:
                _record_end(folder, record, error)
            except Stopped as stop:  # the signal came on the way here; there is no second one
                _record_end(folder, record, stop)
                raise
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


def _advice(out: Path, record: RunRecord, *, can_resume: bool) -> str:
    """Return the end of the message of a stop: the state of the run ``record`` in ``out``, and the next command."""
    written = None
    with suppress(DeepClusterError):
        written = run_folder.RunFolder(out).read_record()
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
        if folder and _is_same_start(written := folder.read_record(), record) and written.status != "done":
            folder.write_record(replace(written, status=status, error=f"{type(error).__name__}: {error}"))
