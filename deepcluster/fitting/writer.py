"""The files of a result."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from deepcluster.build import compute_of
from deepcluster.fitting.conclude import conclude_run
from deepcluster.fitting.forecast import PassForecast
from deepcluster.fitting.plan import ImagesRead, Job
from deepcluster.learning.features import extract
from deepcluster.learning.training import averaged, measure_statistics
from deepcluster.nets.network import Network
from deepcluster.runs.page import on_sheet_of, shown_of, write_nouns, write_page, write_tree
from deepcluster.runs.result import Outcome, first_metrics, write_outcome
from deepcluster.runtime.console import Silent
from deepcluster.runtime.machine import peak_mb
from deepcluster.storage import run_folder
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.content import IMAGES_READ, RunRecord
from deepcluster.storage.state import checkpoint_files
from deepcluster.texts import plural

SETTLED = "assignments settled"  # a reason in run.json for the end of the rounds


@dataclass
class ResultWriter:
    """Writes the result after the rounds, all at once."""

    job: Job
    folder: run_folder.LockedFolder | None  # on the main rank
    network: Network  # of the rounds, with the weights that it begins with
    images: ImagesRead
    record: RunRecord  # run.json so far, without a result
    checkpoints: Checkpoints
    baseline: Mapping[str, float] = field(default_factory=dict)  # metrics before the rounds, on the main rank

    @property
    def at_once(self) -> bool:
        """True if no file is written before the result: it replaces a run in one step, or is of features."""
        request = self.job.request
        return request.features or (request.overwrite and not self.images.recipe.rounds)

    @property
    def knows_nouns(self) -> bool:
        """True if the network came with a classifier of nouns; training would change the features that it takes."""
        return self.images.recipe.weights == "timm" and self.network.classifier is not None

    def measure_start(self) -> None:
        """Measure the network before the rounds: clusters by true labels, nouns of the images. A collective.

        A pass over the images is made only if there are such labels or nouns.
        """
        has_labels = bool(self.job.truth(self.images.store.usable))
        if not (has_labels or self.knows_nouns):
            return
        features = self.features()
        if self.knows_nouns:
            seen = on_sheet_of(features, self.images.store.partition)
            if self.folder:
                paths = [self.job.source.paths[i] for i in self.images.store.usable]
                with self.folder.next_state() as staged:
                    write_nouns(staged, self.network, seen, paths)
        if has_labels:
            silent = replace(self.job, display=Silent())
            record = replace(self.record, rounds=0)
            self.baseline = first_metrics(conclude_run(silent, self.network, self.images, record, features, {}).metrics)

    def features(self) -> Tensor:
        """Return this rank's features for a result: those given, or of the network as it is now."""
        store = self.images.store
        if self.job.features is not None:
            return self.job.features[store.partition.local]
        recipe = self.images.recipe
        display = self.job.display
        progress = display.progress if recipe.rounds else PassForecast(display, recipe.image_size)
        compute = compute_of(self.network, recipe, store.partition, progress, exact=True)
        return extract(self.network, store.images, compute)

    def write(self, rounds: int, stopped_because: str) -> Outcome:
        """Write the result after the end of :func:`train`, and return it. A collective."""
        request = self.job.request
        clock = self.job.clock
        images = self.images
        record = self.record.with_phase("rounds", clock.lap())
        record = replace(record, rounds=rounds, stopped_because=stopped_because)
        share = images.recipe.average if rounds else 1.0
        weights_before = self.checkpoints.body(rounds - 1) if share < 1 else {}
        with averaged(self.network.body, weights_before, share):
            if 0 < share < 1 and not self.network.frozen_statistics:
                compute = compute_of(self.network, images.recipe, images.store.partition, exact=True)
                measure_statistics(self.network, images.store.images, compute, request.seed)
            features = self.features()
            outcome = conclude_run(self.job, self.network, images, record, features, self.baseline)
            record = outcome.record
            rows = outcome.rows
            seen = on_sheet_of(features, rows.partition) if self.knows_nouns and not rounds else None
            shown = shown_of(rows, outcome.model, outcome.centroid)
            if self.folder is None:
                deque(rows.partition.blocks(rows.reduced), maxlen=0)  # the other ranks only send
                return outcome
            with self.folder.next_state(anew=self.at_once and request.overwrite) as staged:
                if self.at_once:
                    write_beginning(staged, images)
                if seen is not None:
                    write_nouns(staged, self.network, seen, rows.paths)
                record = replace(record.with_phase("result", clock.lap()), status="done")
                # In one step with the result: a kill leaves the checkpoints without it, or it without them.
                for name in () if request.keep_checkpoints else checkpoint_files(self.folder.path):
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
    return f", {rounds}{', because the clusters no longer change' if record.stopped_because == SETTLED else ''}"
