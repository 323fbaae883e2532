"""The rounds of a run, with their history, checkpoints and preliminary results, and the rule that ends them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from deepcluster.build import compute_of, learning_rate, rounds_of, shares_pass
from deepcluster.clustering.agreement import compared
from deepcluster.errors import DiskError
from deepcluster.fitting.plan import Job
from deepcluster.fitting.writer import SHARE_OF_TIME, ResultWriter
from deepcluster.recipe import Recipe
from deepcluster.records import Round, State
from deepcluster.runs.result import label_numbers
from deepcluster.runtime.compute import Stopwatch
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints, fitting, restored
from deepcluster.storage.run_folder import LockedFolder

KEPT_BACK = 0.05  # share of a time limit left unplanned, as a safety margin
BACKWARD = 3.0  # a training step in forward passes


class History:
    """The rows of history.csv, on the main rank. An earlier process has written the first ``done`` rows."""

    def __init__(self, folder: LockedFolder, writer: ResultWriter, done: int):
        store = writer.images.store
        self.folder = folder
        self.truth = writer.job.truth(store.usable)
        self.images = store.partition.total * writer.images.recipe.epochs  # that a round trains on
        self.more = () if self.truth is None else ("nmi_labels",)  # columns
        self.rows: list[Mapping[str, Any]] = [*folder.read_rows("history.csv")] if done else []
        numbers = [row["round"] for row in self.rows]
        if numbers[:done] != [str(number) for number in range(done)]:
            raise DiskError(
                f"{folder.path / 'history.csv'} has the rounds {', '.join(numbers[:10]) or 'of none'}, and the"
                f" checkpoint comes after {done}: restore the file from a copy"
            )
        del self.rows[done:]
        folder.write_rows("history.csv", self.rows, *self.more)

    def add(self, finished: Round, seconds: Mapping[str, float]) -> Mapping[str, Any]:
        """Write the row of a round whose steps took so many ``seconds``, and return it."""
        clustering = finished.clustering
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
            "images_per_second": (self.images / seconds["training"], 1),
        }
        if self.truth is not None:
            labels, known = label_numbers(self.truth, sorted(set(self.truth)))
            figures["nmi_labels"] = (compared(labels[known], clustering.labels[known])[0], 5)
        cells = {
            name: "" if math.isnan(value) else round(float(value), digits) for name, (value, digits) in figures.items()
        }
        self.rows.append({"round": finished.index, "reseeded": clustering.reseeded, **cells})
        self.folder.write_rows("history.csv", self.rows, *self.more)
        return self.rows[-1]


def train(
    writer: ResultWriter, checkpoints: Checkpoints, checkpoint: Checkpoint | None, about: Mapping[str, Any]
) -> tuple[int, str, Tensor | None]:
    """Alternate until the recipe or the time limit ends it; write history, a checkpoint and a result as it goes on.

    The network of the ``writer`` is trained in place, from the main rank's ``checkpoint`` if there is one; ``about``
    has facts about the run, for its checkpoints.

    Returns the number of rounds, the reason why there are no more, and the features of the network if they are known.
    """
    job = writer.job
    recipe = writer.images.recipe
    network = writer.network
    store = writer.images.store

    def save(state: State) -> None:
        so_far = {"elapsed": job.clock.elapsed(), "rounds": planned, "baseline": writer.baseline}
        checkpoints.write(state, network.state_dict(), {**about, **so_far})

    is_resumed = job.processes.any(checkpoint is not None)
    state, planned = _resumed(writer, checkpoints, checkpoint) if is_resumed else (State(), recipe.rounds)
    if state.round == 0:
        planned, features = _first_result(writer)
        if not planned:
            return 0, "time limit" if recipe.rounds else "all rounds done", features
        state = replace(state, features=features if shares_pass(recipe, network) else None)
        del features
    if not is_resumed:
        save(State())
    history = History(writer.folder, writer, state.round) if writer.folder else None
    watch = Stopwatch(job.display.progress)
    rounds = rounds_of(
        network,
        store.images,
        recipe,
        lambda time: learning_rate(recipe, time, planned),
        job.request.seed,
        steps=job.request.steps,
        state=state,
        compute=compute_of(network, recipe, store.partition, watch),
    )
    state = replace(state, features=None)  # the round frees its features before it trains
    begin = job.clock.elapsed()
    goes_on = state.round < planned and state.settled < recipe.patience
    if goes_on:
        writer.before_round()
    elif recipe.average < 1:
        writer.weights_before = checkpoints.body(state.round - 1, "--overwrite starts anew")
    for round in rounds if goes_on else ():
        seconds = watch.seconds()
        state = replace(round.state, features=None)
        row = history.add(round, seconds) if history else {}
        writer.pass_seconds = max(writer.pass_seconds, seconds["features"])
        cost = job.clock.elapsed() - begin - seconds["features"] + writer.pass_seconds
        planned = whole_rounds(job, recipe, state.round, cost, writer.next_seconds)
        save(round.state)
        job.display.round(row, planned)
        if state.round >= planned or state.settled >= recipe.patience:
            break
        if job.processes.broadcast_json(lambda: writer.is_due):
            writer.preliminary(state.round)
        writer.before_round()
        begin = job.clock.elapsed()
        watch.start()
    reason = "all rounds done" if state.round >= recipe.rounds else "time limit"
    return state.round, "assignments settled" if state.settled >= recipe.patience else reason, None


def _resumed(writer: ResultWriter, checkpoints: Checkpoints, checkpoint: Checkpoint | None) -> tuple[State, int]:
    """Restore the checkpoint of the main rank, and return its state and the planned rounds. A collective."""
    job = writer.job
    with fitting(checkpoints.folder):
        state, parameters = restored(checkpoint, writer.images.store.partition)
        writer.network.load_state_dict(parameters)
    about = job.processes.broadcast_json(lambda: checkpoint.about if checkpoint else {})
    job.clock.add(about["elapsed"])
    writer.baseline = about["baseline"]
    job.display.say("Resumed", f"in round {state.round + 1}")
    return state, writer.images.recipe.rounds if job.request.time_limit is None else about["rounds"]


def _first_result(writer: ResultWriter) -> tuple[int, Tensor | None]:
    """Write the first result, unless it is the final one or reports are not wanted. A collective.

    It comes before the first checkpoint and history.csv, so that a run that it replaces is whole until then.

    Returns the number of planned rounds, and the features of the network if they were computed.
    """
    job = writer.job
    recipe = writer.images.recipe
    if not recipe.rounds or not (job.request.report or job.request.overwrite):
        return recipe.rounds, None
    features = writer.features()
    cost = writer.pass_seconds + training_cost(recipe, writer.pass_seconds)
    if whole_rounds(job, recipe, 0, cost, writer.next_seconds):
        writer.preliminary(0, features)
    return whole_rounds(job, recipe, 0, cost, writer.next_seconds), features  # the seconds of a result are known now


def training_cost(recipe: Recipe, features: float) -> float:
    """Estimate the seconds of a round's training from ``features``, the seconds of a pass over the images."""
    sides = [recipe.view_size or recipe.image_size] * recipe.views + [recipe.small_size] * recipe.small_views
    return features * recipe.epochs * BACKWARD * sum(side**2 for side in sides) / recipe.image_size**2


def whole_rounds(job: Job, recipe: Recipe, done: int, cost: float, results: float) -> int:
    """Return the number of rounds, ``done`` ones included, that the time limit leaves room for. A collective.

    ``cost``: Seconds of a round and its pass, without the preliminary results. ``results``: Seconds of the results that
    must be written whatever the number of rounds.
    """
    if job.request.time_limit is None:
        return recipe.rounds
    left = (1 - KEPT_BACK) * job.request.time_limit - job.clock.elapsed() - results
    planned = min(recipe.rounds, done + max(0, math.floor(left / max(1e-9, (1 + SHARE_OF_TIME) * cost))))
    return job.processes.broadcast_json(lambda: planned)
