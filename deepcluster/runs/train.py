"""The rounds of a run: history, checkpoints and now and then a result; and when they end."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deepcluster.nets.backbone import Network
from deepcluster.recipe import Recipe
from deepcluster.records import Round, State
from deepcluster.report.text import count
from deepcluster.runs import resume as resuming
from deepcluster.runs.build import learning_rate, rounds_of, shares_pass
from deepcluster.runs.finish import Results
from deepcluster.runs.job import ImagesRead, Job
from deepcluster.runs.time_limit import SHARE_OF_TIME, TimeLimit, in_words, training_cost
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints, restored
from deepcluster.storage.csv_rows import history_row
from deepcluster.storage.run_folder import HISTORY, LockedFolder


@dataclass(frozen=True)
class Rounds:
    """The rounds of a run, which have ended.

    Attributes:
        count: Their number.
        stopped_because: The reason why there are no more.
        features: The features of the network as it is now, if its pass is made already.
    """

    count: int
    stopped_because: str
    features: Tensor | None = None


class History:
    """The rows of history.csv, on the main rank. An earlier process has written those of the first ``done`` rounds."""

    def __init__(self, folder: LockedFolder, truth: list[str] | None, done: int):
        self.folder, self.truth = folder, truth
        self.columns = HISTORY if truth is None else (*HISTORY, "nmi_labels")
        self.rows: list[Mapping[str, Any]] = resuming.history(folder, self.columns, done) if done else []
        folder.write_rows("history.csv", self.columns, self.rows)

    def add(self, round: Round) -> Mapping[str, Any]:
        """Write the row of a round, and return it."""
        self.rows.append(history_row(round, self.truth))
        self.folder.write_rows("history.csv", self.columns, self.rows)
        return self.rows[-1]


def train(
    job: Job,
    folder: LockedFolder | None,
    network: Network,
    images: ImagesRead,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    about: Mapping[str, Any],
    results: Results,
) -> Rounds:
    """Alternate until the recipe or the time limit ends it; after each round write what it leaves.

    Args:
        folder: The run folder, on the main rank.
        network: It is trained in place.
        checkpoint: The one to go on from, for the main rank.
        about: What each checkpoint says of the run.
        results: Writes the first result and the preliminary ones.
    """
    recipe, processes, clock = images.recipe, job.processes, job.clock
    limit = TimeLimit(job.request.time_limit, clock.elapsed, recipe.rounds)

    def save(state: State) -> None:
        so_far = {"elapsed": clock.elapsed(), "rounds": limit.rounds, "baseline": results.baseline}
        checkpoints.write(state, network.state_dict(), {**about, **so_far})

    state = _resumed(job, network, images, checkpoint, limit, results)
    if state is None:
        save(state := State())
    history = History(folder, job.truth(images.store.kept), state.round) if folder else None
    if state.round == 0 and recipe.rounds and job.request.report:
        features = _first_result(job, recipe, limit, results)
        if not limit.rounds:
            return Rounds(0, "time limit", features)
        state = replace(state, features=features if shares_pass(recipe, job.device) else None)
        del features
    rounds = rounds_of(
        network,
        images.store.images,
        recipe,
        lambda time: learning_rate(recipe, time, limit.rounds),
        job.request.seed,
        state=state,
        progress=job.display.progress,
        processes=processes,
    )
    state, begin = replace(state, features=None), clock.elapsed()  # the round frees its features before it trains
    for round in rounds if state.round < limit.rounds else ():
        state = replace(round.state, features=None)
        row = history.add(round) if history else {}
        _plan(limit, results, round, clock.elapsed() - begin)
        limit.rounds, is_due = processes.broadcast_json(lambda: [limit.rounds, results.is_due])
        save(round.state)
        goes_on = state.round < limit.rounds and state.settled < recipe.patience
        groups = results.preliminary(state.round) if goes_on and is_due else ""
        job.display.round(row, limit.rounds, groups)
        if not goes_on:
            break
        begin = clock.elapsed()
    return Rounds(state.round, _reason(state, recipe))


def _resumed(
    job: Job, network: Network, images: ImagesRead, checkpoint: Checkpoint | None, limit: TimeLimit, results: Results
) -> State | None:
    """Put back what the checkpoint of the main rank says, and return its state; None if it has none. A collective."""
    if not job.processes.any(checkpoint is not None):
        return None
    state, parameters = restored(checkpoint, images.store.partition)
    network.load_state_dict(parameters)
    about = job.processes.broadcast_json(lambda: checkpoint.about if checkpoint else {})
    job.clock.add(about["elapsed"])
    results.baseline = about["baseline"]
    if job.request.time_limit is not None:
        limit.rounds = about["rounds"]
    job.display.say("Resumed", f"in round {state.round + 1}")
    return state


def _first_result(job: Job, recipe: Recipe, limit: TimeLimit, results: Results) -> Tensor:
    """Plan the rounds, and write the first result if there are any; return its features. A collective."""
    features = results.features()
    one_pass = results.pass_seconds
    each = (1 + SHARE_OF_TIME) * (one_pass + training_cost(recipe, one_pass))
    limit.plan(0, each, one_pass + 2 * results.seconds)  # this result and the final one
    limit.rounds = job.processes.broadcast_json(lambda: limit.rounds)
    if job.request.time_limit is not None:
        rounds = count(limit.rounds, "round") if limit.rounds else "the groups of the network as it was given"
        job.display.say("Time", f"{rounds}, done after about {in_words(limit.end)}")
    if limit.rounds:
        results.preliminary(0, features)
    return features


def _plan(limit: TimeLimit, results: Results, round: Round, seconds: float) -> None:
    """Plan the rounds after one that took so many seconds, in which its pass may have been made already."""
    one_pass = max(results.pass_seconds, round.features_seconds)
    each = (1 + SHARE_OF_TIME) * (seconds - round.features_seconds + one_pass)
    limit.plan(round.state.round, each, max(results.seconds, one_pass))


def _reason(state: State, recipe: Recipe) -> str:
    if state.settled >= recipe.patience:
        return "assignments settled"
    return "all rounds done" if state.round >= recipe.rounds else "time limit"
