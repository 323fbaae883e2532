"""The rounds of a run: history, checkpoints and now and then a result; and when they end."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deepcluster.clustering.agreement import compared
from deepcluster.place import Stopwatch
from deepcluster.recipe import Recipe
from deepcluster.records import Round, State
from deepcluster.report.text import count
from deepcluster.runs import resume as resuming
from deepcluster.runs.build import learning_rate, place_of, rounds_of, shares_pass
from deepcluster.runs.forecast import SHARE_OF_TIME, in_words, training_cost
from deepcluster.runs.result import label_numbers
from deepcluster.runs.writer import Cost, ResultWriter
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints, restored
from deepcluster.storage.run_folder import HISTORY, LockedFolder

KEPT_BACK = 0.05  # share of the limit left unplanned, as a safety margin


class TimeLimit:
    """The number of whole rounds in a time limit, planned again after each round.

    Args:
        seconds: The limit of the whole run; None: there is none.
        elapsed: Tells the seconds of the run so far.
        most: The rounds of the recipe.

    Attributes:
        rounds: The number of rounds planned, those done included.
        end: The seconds of the whole run by this plan.
    """

    def __init__(self, seconds: float | None, elapsed: Callable[[], float], most: int):
        self.seconds, self.elapsed, self.most = seconds, elapsed, most
        self.rounds, self.end = most, math.inf

    def plan(self, done: int, round: float, result: float) -> None:
        """Plan the rounds after the first ``done``.

        Args:
            done: The number of rounds done.
            round: Seconds of a round, and of what belongs to it.
            result: Seconds of the results that must be written whatever the number of rounds.
        """
        if self.seconds is None:
            return
        left = (1 - KEPT_BACK) * self.seconds - self.elapsed() - result
        self.rounds = min(self.most, done + max(0, math.floor(left / max(1e-9, round))))
        self.end = self.elapsed() + result + (self.rounds - done) * round


@dataclass(frozen=True)
class Rounds:
    """The rounds of a run that has ended.

    Attributes:
        count: Their number.
        stopped_because: The reason why there are no more.
        features: The features of the network as it is now, if its pass is made already.
    """

    count: int
    stopped_because: str
    features: Tensor | None = None


class History:
    """The rows of history.csv, on the main rank. An earlier process has written those of the first ``done`` rounds.

    images: Number of images that a round trains on.
    """

    def __init__(self, folder: LockedFolder, truth: list[str] | None, done: int, images: int):
        self.folder, self.truth, self.images = folder, truth, images
        self.columns = HISTORY if truth is None else (*HISTORY, "nmi_labels")
        self.rows: list[Mapping[str, Any]] = resuming.history(folder, self.columns, done) if done else []
        folder.write_rows("history.csv", self.columns, self.rows)

    def add(self, round: Round, seconds: Mapping[str, float]) -> Mapping[str, Any]:
        """Write the row of a round, and return it."""
        self.rows.append(history_row(round, seconds, self.images, self.truth))
        self.folder.write_rows("history.csv", self.columns, self.rows)
        return self.rows[-1]


def history_row(
    round: Round, seconds: Mapping[str, float], images: int, truth: list[str] | None = None
) -> dict[str, Any]:
    """Return the row of a round in history.csv.

    Args:
        round: The round.
        seconds: Those of its steps.
        images: Number of images that it trained on.
        truth: The true labels, if there are any.
    """

    def blank_if_nan(value: float) -> float | str:
        return "" if math.isnan(value) else _rounded(value, 5)

    row: dict[str, Any] = {
        "round": round.index,
        "loss": _rounded(round.loss, 5),
        "chance_loss": _rounded(round.chance_loss, 5),
        "inertia": _rounded(round.clustering.inertia, 3),
        "nmi_previous": blank_if_nan(round.nmi_previous),
        "changed": blank_if_nan(round.changed),
        "cluster_weight": _rounded(round.cluster_weight, 5),
        "largest_share": _rounded(round.clustering.largest_share, 5),
        "reseeded": round.clustering.reseeded,
        "lr": _rounded(round.lr, 8),
        **{f"{step}_seconds": _rounded(value, 3) for step, value in seconds.items()},
        "images_per_second": _rounded(images / seconds["training"], 1),
    }
    if truth is not None:
        labels, known = label_numbers(truth, sorted(set(truth)))
        row["nmi_labels"] = _rounded(compared(labels[known], round.clustering.labels[known])[0], 5)
    return row


def _rounded(value: float, digits: int) -> float:
    return round(float(value), digits)


def train(
    writer: ResultWriter, checkpoints: Checkpoints, checkpoint: Checkpoint | None, about: Mapping[str, Any]
) -> Rounds:
    """Alternate until the recipe or the time limit ends it; write history, a checkpoint and a result as it goes on.

    Args:
        writer: Writes the results of the fit, whose network is trained in place.
        checkpoints: Where checkpoints go.
        checkpoint: The one to go on from, on the main rank.
        about: What each checkpoint says of the run.
    """
    job, recipe, network = writer.job, writer.images.recipe, writer.network
    processes, clock = job.processes, job.clock
    limit = TimeLimit(job.request.time_limit, clock.elapsed, recipe.rounds)

    def save(state: State) -> None:
        so_far = {"elapsed": clock.elapsed(), "rounds": limit.rounds, "baseline": writer.baseline}
        checkpoints.write(state, network.state_dict(), {**about, **so_far})

    if processes.any(checkpoint is not None):
        state = _resumed(writer, checkpoint, limit)
    else:
        state = State()
        save(state)
    store = writer.images.store
    trained = store.partition.total * recipe.epochs
    history = History(writer.folder, job.truth(store.kept), state.round, trained) if writer.folder else None
    if state.round == 0 and recipe.rounds and job.request.report:
        features = _first_result(writer, limit)
        if not limit.rounds:
            return Rounds(0, "time limit", features)
        state = replace(state, features=features if shares_pass(recipe, job.device) else None)
        del features
    watch = Stopwatch(job.display.progress)
    rounds = rounds_of(
        network,
        store.images,
        recipe,
        lambda time: learning_rate(recipe, time, limit.rounds),
        job.request.seed,
        state=state,
        place=place_of(network, recipe, store.partition, watch),
    )
    state, begin = replace(state, features=None), clock.elapsed()  # the round frees its features before it trains
    for round in rounds if state.round < limit.rounds else ():
        seconds = watch.seconds()
        state = replace(round.state, features=None)
        row = history.add(round, seconds) if history else {}
        _plan(limit, writer.cost, state.round, clock.elapsed() - begin, seconds["features"])
        limit.rounds, is_due = processes.broadcast_json(lambda: [limit.rounds, writer.is_due])
        save(round.state)
        job.display.round(row, limit.rounds)
        if state.round >= limit.rounds or state.settled >= recipe.patience:
            break
        if is_due:
            writer.preliminary(state.round)
        begin = clock.elapsed()
        watch.start()
    return Rounds(state.round, _reason(state, recipe))


def _resumed(writer: ResultWriter, checkpoint: Checkpoint | None, limit: TimeLimit) -> State:
    """Restore the checkpoint of the main rank, and return its state. A collective."""
    job = writer.job
    state, parameters = restored(checkpoint, writer.images.store.partition)
    writer.network.load_state_dict(parameters)
    about = job.processes.broadcast_json(lambda: checkpoint.about if checkpoint else {})
    job.clock.add(about["elapsed"])
    writer.baseline = about["baseline"]
    if job.request.time_limit is not None:
        limit.rounds = about["rounds"]
    job.display.say("Resumed", f"in round {state.round + 1}")
    return state


def _first_result(writer: ResultWriter, limit: TimeLimit) -> Tensor:
    """Plan the rounds, and write the first result if there are any; return its features. A collective."""
    job, features = writer.job, writer.features()
    one_pass = writer.cost.one_pass
    seconds = (1 + SHARE_OF_TIME) * (one_pass + training_cost(writer.images.recipe, one_pass))
    limit.plan(0, seconds, one_pass + 2 * writer.cost.result)  # this result and the final one
    limit.rounds = job.processes.broadcast_json(lambda: limit.rounds)
    if job.request.time_limit is not None:
        rounds = count(limit.rounds, "round") if limit.rounds else "the groups of the network as it was given"
        job.display.say("Time", f"{rounds}, done after about {in_words(limit.end)}")
    if limit.rounds:
        writer.preliminary(0, features)
    return features


def _plan(limit: TimeLimit, cost: Cost, done: int, seconds: float, features: float) -> None:
    """Plan the rounds after the ``done`` ones by the seconds of the last and of its pass, which may have been 0."""
    one_pass = max(cost.one_pass, features)
    limit.plan(done, (1 + SHARE_OF_TIME) * (seconds - features + one_pass), max(cost.result, one_pass))


def _reason(state: State, recipe: Recipe) -> str:
    if state.settled >= recipe.patience:
        return "assignments settled"
    return "all rounds done" if state.round >= recipe.rounds else "time limit"
