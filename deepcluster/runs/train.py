"""The rounds of a run: what is kept of each, its checkpoints, and when they end."""

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from torch import Tensor

from deepcluster.errors import Stopped
from deepcluster.nets.backbone import Network
from deepcluster.recipe import Recipe
from deepcluster.records import Clustering, Round, State
from deepcluster.runs import resume as resuming
from deepcluster.runs.build import learning_rate, rounds_of
from deepcluster.runs.checkpointing import Checkpointer
from deepcluster.runs.job import ImagesRead, Job
from deepcluster.runs.sample import Sample, sample_of
from deepcluster.runs.time_limit import Schedule, TimeLimit
from deepcluster.runtime.partition import Partition
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints, restored
from deepcluster.storage.csv_rows import history_row
from deepcluster.storage.run_folder import HISTORY, RunFolder


@dataclass(frozen=True)
class Trained:
    """How the rounds went.

    rounds: Their number.
    stopped_because: Why there were no more.
    start: The reduced features of a sample and the clustering of the first round, for what the network was worth before
        training.
    given: The body of the network before the rounds.
    features: Those of a pass of the network as it is now, where one was made.
    """

    rounds: int
    stopped_because: str
    start: "Start | None"
    given: Mapping[str, Tensor]
    features: Tensor | None = None


Start = tuple[Tensor, Clustering]
Publish = Callable[[Tensor, Trained], str]  # writes a preliminary result, and says whether the groups got better


class Kept:
    """History of the rounds (main rank): rows of history.csv, and the clustering of the first round."""

    def __init__(self, job: Job, folder: RunFolder, checkpoints: Checkpoints, recipe: Recipe, truth: list[str] | None):
        self.job, self.folder, self.checkpoints, self.recipe, self.truth = job, folder, checkpoints, recipe, truth
        self.columns = HISTORY if truth is None else (*HISTORY, "nmi_labels")
        self.history: list[Mapping[str, Any]] = []
        self.start: Start | None = None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what an earlier process kept."""
        self.history = resuming.history(self.folder, self.columns, checkpoint.round)
        if parts := checkpoint.parts.get("start"):
            clustering = Clustering(parts["labels"], parts["centroids"], parts["sizes"], math.nan, 0, 0)
            self.start = (parts["reduced"], clustering)

    def write_history(self) -> None:
        self.folder.write_rows("history.csv", self.columns, self.history)

    def so_far(self, rounds: int, given: Mapping[str, Tensor], stopped_because: str = "") -> Trained:
        return Trained(rounds, stopped_because, self.start, given)

    def add(self, round: Round, sample: Sample | None, groups: str, rounds: int) -> None:
        """Keep one of ``rounds``; ``sample``: its features, where needed; ``groups``: whether these got better."""
        if sample and self.start is None and round.index == 0:
            first = round.clustering
            self.start = (sample.reduced, first)
            parts = {"labels": first.labels, "centroids": first.centroids, "sizes": first.sizes}
            self.checkpoints.add("start", {"reduced": sample.reduced, **parts})
        row = history_row(round, self.truth)
        self.history.append(row)
        self.write_history()
        self.job.display.round(row, rounds, groups)


def train(
    job: Job,
    folder: RunFolder,
    network: Network,
    images: ImagesRead,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    about: Mapping[str, Any],
    publish: Publish,
) -> Trained:
    """Alternate until the recipe or the time limit ends it; keep history.csv up to date, checkpoints and the result.

    Args:
        job: The fit.
        folder: Its folder.
        network: It is trained in place.
        images: Its images and recipe.
        checkpoints: Where checkpoints go.
        checkpoint: The one to go on from, for the main rank.
        about: What each checkpoint says of the run.
        publish: Called with the features of each pass and the rounds so far.
    """
    store, recipe, processes, clock = images.store, images.recipe, job.processes, job.clock
    needed_again = recipe.average < 1
    given = {name: value.clone() for name, value in network.body.state_dict().items()} if needed_again else {}
    kept = Kept(job, folder, checkpoints, recipe, job.truth(store.kept))
    timed = job.request.time_limit is not None
    limit = TimeLimit(job.request.time_limit, clock.elapsed, recipe, len(store.kept))
    if checkpoint:
        kept.restore(checkpoint)
        clock.add(checkpoint.about["elapsed"])
        if timed and "schedule" in checkpoint.about:
            limit.schedule = Schedule(*checkpoint.about["schedule"])
        job.display.say("Resumed", f"in round {checkpoint.round + 1}, from {checkpoints.folder}")
    if processes.is_main:
        kept.write_history()
    state = _restored(network, checkpoint, recipe, store.partition)
    steps = recipe.epochs * max(1, math.ceil(store.partition.total / recipe.batch_size))
    checkpointer = Checkpointer(
        checkpoints,
        network,
        lambda: {
            **about,
            "elapsed": clock.elapsed(),
            **({"schedule": [*astuple(limit.schedule)]} if timed else {}),
        },
        job.stop,
        job.request.checkpoint_every,
        store.partition,
        lambda trained: limit.is_enough(trained.steps, steps),
    )
    groups, ended = "", ""
    left_over: Tensor | None = None

    def on_state(state: State) -> bool:
        nonlocal groups, left_over, ended
        features, begin = None, clock.elapsed()
        if state.work is not None and state.work.features is not None:
            features = state.work.features
            groups = publish(features, kept.so_far(state.round, given))
            state = replace(state, work=replace(state.work, features=None))
        if state.work is not None and limit.round != state.round:
            is_first = limit.round < 0
            limit.begin_round(state.round, state.work, clock.elapsed() - begin)
            follow_main_rank()
            if timed and is_first:
                job.display.say("Time", limit.text)
            if limit.schedule.rounds <= state.round:
                left_over, ended = features, "time limit"
                return True
        if state.work and state.work.trained and limit.measure(state.work.trained.steps, steps):
            follow_main_rank()
        return checkpointer(state)

    def follow_main_rank() -> None:
        """All ranks train by its schedule."""
        limit.schedule = Schedule(*processes.broadcast_json(lambda: astuple(limit.schedule)))

    rounds = rounds_of(
        network,
        store.images,
        recipe,
        lambda time: learning_rate(recipe, *limit.time(time)),
        job.request.seed,
        state=state,
        on_state=on_state,
        progress=job.display.progress,
        processes=processes,
    )
    done = state.round if state else 0
    del state  # it may hold features
    for round in rounds:
        done = round.index + 1
        sample = sample_of(round.reduced, store.partition, job.request.seed) if round.index == 0 else None
        if processes.is_main:
            kept.add(round, sample, groups, limit.schedule.rounds)
        groups = ""
        limit.end_round(done)
        follow_main_rank()
        if limit.schedule.rounds <= done < recipe.rounds:
            ended = "time limit"
            break
    job.stop.at_once = True
    if processes.any(job.stop.wanted):
        raise Stopped("stopped after the last round")
    ended = ended or ("assignments settled" if checkpointer.settled >= recipe.patience else "all rounds done")
    return replace(kept.so_far(done, given, ended), features=left_over)


def _restored(network: Network, checkpoint: Checkpoint | None, recipe: Recipe, partition: Partition) -> State | None:
    """The state to go on from, and the network as it was then, on each rank; None: from the beginning."""
    processes = partition.processes
    if not processes.any(checkpoint is not None):
        return None
    tensors = processes.broadcast_tensors(lambda: checkpoint.network if checkpoint else {})
    network.restore(tensors, recipe.temperature or None)
    return restored(checkpoint, partition)
