"""The rounds of a run: what is kept of each, its checkpoints, and when they end."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from deepcluster.errors import Stopped
from deepcluster.groups.neighbour_graph import Graph, neighbour_graph
from deepcluster.nets.backbone import Network
from deepcluster.recipe import Recipe
from deepcluster.records import Clustering, Round, State
from deepcluster.runs import resume as resuming
from deepcluster.runs.build import learning_rate, rounds_of
from deepcluster.runs.checkpointing import Checkpointer, scattered
from deepcluster.runs.job import ImagesRead, Job
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import derive
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints
from deepcluster.storage.csv_rows import history_row
from deepcluster.storage.graph_file import graph_of, graph_tensors
from deepcluster.storage.run_folder import HISTORY, RunFolder

FOR_THE_RESULT = 0.05  # of a time limit: the final features, the cut and the report come after the rounds


@dataclass(frozen=True)
class Trained:
    """How the rounds went.

    rounds: Their number.
    stopped_because: Why there were no more.
    start: The reduced features and the clustering of the first round, for what the network was worth before training.
    graphs: The neighbour graph of each round's features, where the recipe joins them.
    weights: How much each of these counts.
    given: The body of the network before the rounds.
    """

    rounds: int
    stopped_because: str
    start: "Start | None"
    graphs: Sequence[Graph]
    weights: Sequence[float]
    given: Mapping[str, Tensor]


Start = tuple[Tensor, Clustering]
Publish = Callable[[Tensor, Trained], str]  # writes a preliminary result, and says whether the groups got better


@dataclass(frozen=True)
class TimeLimit:
    """How many rounds fit into the time of a run.

    seconds: The limit of the whole run (None: there is none).
    rounds: The most there may be.
    done: Rounds before this process began.
    elapsed: Seconds before its first round.
    """

    seconds: float | None
    rounds: int
    done: int
    elapsed: float

    def rounds_that_fit(self, done: int, elapsed: float) -> int:
        """The rounds that there will be, by the mean time of the rounds so far."""
        if self.seconds is None:
            return self.rounds
        mean = (elapsed - self.elapsed) / (done - self.done)
        left = max(0, int(((1 - FOR_THE_RESULT) * self.seconds - elapsed) / mean))
        return min(self.rounds, done + left)


class Kept:
    """What the main rank keeps of the rounds: history.csv, the start, and the graphs where the recipe joins them.

    ``weights``: how much the features after each round count: 1 - loss / chance loss, since a network that cannot
    predict its own clusters has forgotten.
    """

    def __init__(self, job: Job, folder: RunFolder, checkpoints: Checkpoints, recipe: Recipe, truth: list[str] | None):
        self.job, self.folder, self.checkpoints, self.recipe, self.truth = job, folder, checkpoints, recipe, truth
        self.columns = HISTORY if truth is None else (*HISTORY, "nmi_labels")
        self.history: list[Mapping[str, Any]] = []
        self.start: Start | None = None
        self.joins_graphs = recipe.neighbours == "rounds"
        self.graphs: list[Graph] = []
        self.weights: list[float] = []

    def restore(self, checkpoint: Checkpoint, images: int) -> None:
        """Take over what an earlier process kept."""
        self.history = resuming.history(self.folder, self.columns, checkpoint.state.round)
        self.start = _start_of(checkpoint.parts["start"]) if "start" in checkpoint.parts else None
        self.weights = list(checkpoint.about["weights"])
        self.graphs = [graph_of(checkpoint.parts[f"graph{i}"], images) for i in range(len(self.weights))]

    def write_history(self) -> None:
        self.folder.write_rows("history.csv", self.columns, self.history)

    def so_far(self, rounds: int, given: Mapping[str, Tensor], stopped_because: str = "") -> Trained:
        return Trained(rounds, stopped_because, self.start, [*self.graphs], [*self.weights], given)

    def needs_features(self, round: Round) -> bool:
        return self.joins_graphs or round.index == 0

    def add(self, round: Round, reduced: Tensor, groups: str) -> None:
        """Keep a round; ``reduced`` are the features of all images, ``groups`` says whether the groups got better."""
        if self.start is None and round.index == 0:
            self.start = (reduced, round.clustering)
            self.checkpoints.add("start", _tensors_of_start(*self.start))
        if self.joins_graphs:
            self.graphs.append(neighbour_graph(reduced, derive(self.job.request.seed, "graph")))
            self.checkpoints.add(f"graph{round.index}", graph_tensors(self.graphs[-1]))
            self.weights.append(max(0.0, 1 - round.loss / max(round.chance_loss, 1e-9)))
        row = history_row(round, self.truth)
        self.history.append(row)
        self.write_history()
        self.job.display.round(row, self.recipe.rounds, groups)


def _tensors_of_start(reduced: Tensor, clustering: Clustering) -> dict[str, Tensor]:
    parts = {"labels": clustering.labels, "centroids": clustering.centroids, "sizes": clustering.sizes}
    return {"reduced": reduced, **parts}


def _start_of(parts: Mapping[str, Tensor]) -> Start:
    clustering = Clustering(parts["labels"], parts["centroids"], parts["sizes"], math.nan, 0, 0)
    return parts["reduced"], clustering


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
    needed_again = recipe.neighbours != "final"
    given = {name: value.clone() for name, value in network.body.state_dict().items()} if needed_again else {}
    kept = Kept(job, folder, checkpoints, recipe, job.truth(store))
    planned = recipe.rounds
    if checkpoint:
        kept.restore(checkpoint, len(store.kept))
        clock.add(checkpoint.about["elapsed"])
        planned = planned if job.request.time_limit is None else checkpoint.about.get("rounds", planned)
        job.display.say("Resumed", f"in round {checkpoint.state.round + 1}, from {checkpoints.folder}")
    if processes.is_main:
        kept.write_history()
    state = _restored(network, checkpoint, recipe, store.partition)
    planned = processes.broadcast_json(lambda: planned)
    limit = TimeLimit(job.request.time_limit, recipe.rounds, len(kept.history), clock.elapsed())
    checkpointer = Checkpointer(
        checkpoints,
        network,
        lambda: {**about, "weights": kept.weights, "elapsed": clock.elapsed(), "rounds": planned},
        job.stop,
        job.request.checkpoint_every,
        store.partition,
    )
    groups = ""

    def on_state(state: State) -> None:
        nonlocal groups
        if state.work is not None and state.work.features is not None:
            groups = publish(state.work.features, kept.so_far(state.round, given))
            state = replace(state, work=replace(state.work, features=None))
        checkpointer(state)

    rounds = rounds_of(
        network,
        store.images,
        recipe,
        lambda time: learning_rate(recipe, time, planned),
        job.request.seed,
        state=state,
        on_state=on_state,
        progress=job.display.progress,
        processes=processes,
    )
    ended, done = "", state.round if state else 0
    for round in rounds:
        done = round.index + 1
        if kept.joins_graphs:  # a graph takes many seconds, and may be left where it is once the training is saved
            checkpointer.rest()
        reduced = store.partition.gather(round.reduced) if kept.needs_features(round) else round.reduced
        if processes.is_main:
            kept.add(round, reduced, groups)
        groups = ""
        planned = processes.broadcast_json(partial(limit.rounds_that_fit, done, clock.elapsed()))
        if planned == done < recipe.rounds:
            ended = "time limit"
            break
    checkpointer.end()
    if processes.any(job.stop.wanted):
        raise Stopped("stopped after the last round")
    ended = ended or ("assignments settled" if checkpointer.settled >= recipe.patience else "all rounds done")
    return kept.so_far(done, given, ended)


def _restored(network: Network, checkpoint: Checkpoint | None, recipe: Recipe, partition: Partition) -> State | None:
    """The state to go on from, and the network as it was then, on each rank; None: from the beginning."""
    processes = partition.processes
    if not processes.any(checkpoint is not None):
        return None
    tensors = processes.broadcast_tensors(lambda: checkpoint.network if checkpoint else {})
    network.restore(tensors, recipe.temperature or None)
    return scattered(checkpoint.state if checkpoint else None, partition)
