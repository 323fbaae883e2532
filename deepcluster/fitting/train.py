"""The rounds of a run, with their history and checkpoints, and the rule that ends them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deepcluster.build import compute_of, rounds_of
from deepcluster.clustering.agreement import compared
from deepcluster.errors import DiskError
from deepcluster.fitting.writer import SETTLED, ResultWriter
from deepcluster.records import Round, State
from deepcluster.runs.result import label_numbers
from deepcluster.runtime.compute import Stopwatch
from deepcluster.storage.checkpoint import Checkpoint, fitting, restored
from deepcluster.storage.run_folder import LockedFolder
from deepcluster.texts import plural


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


def train(writer: ResultWriter, checkpoint: Checkpoint | None, about: Mapping[str, Any]) -> tuple[int, str]:
    """Alternate until the recipe ends it; write history and a checkpoint as it goes on.

    A request for fewer rounds than the recipe's ends a resumed run that has as many.

    The network of the ``writer`` is trained in place, from the main rank's ``checkpoint`` if there is one; ``about``
    has facts about the run, for its checkpoints.

    Returns the number of rounds, and the reason why there are no more.
    """
    job = writer.job
    recipe = writer.images.recipe
    network = writer.network
    store = writer.images.store

    def save(state: State) -> None:
        so_far = {"elapsed": job.clock.elapsed(), "baseline": writer.baseline}
        writer.checkpoints.write(state, network.state_dict(), {**about, **so_far})

    if not recipe.rounds:
        return 0, "all rounds done" if job.features is None else "features were given"
    if job.processes.any(checkpoint is not None):
        state = _resumed(writer, checkpoint)
    else:
        writer.measure_start()
        save(state := State())
    last = min(recipe.rounds, job.request.recipe.all_options.get("rounds", recipe.rounds))
    history = History(writer.folder, writer, state.round) if writer.folder else None
    watch = Stopwatch(job.display.progress)
    rounds = rounds_of(
        network,
        store.images,
        recipe,
        job.request.seed,
        rounds=last,
        steps=job.request.steps,
        state=state,
        compute=compute_of(network, recipe, store.partition, watch),
    )
    state = replace(state, features=None)  # the round frees its features before it trains
    for round in rounds:
        seconds = watch.seconds()
        state = replace(round.state, features=None)
        row = history.add(round, seconds) if history else {}
        save(round.state)
        job.display.round(row, last)
        watch.start()
    reason = "all rounds done" if state.round >= recipe.rounds else "ended on request"
    return state.round, SETTLED if state.settled >= recipe.patience else reason


def _resumed(writer: ResultWriter, checkpoint: Checkpoint | None) -> State:
    """Restore the checkpoint of the main rank, and return its state. A collective."""
    job = writer.job
    with fitting(writer.checkpoints.folder):
        state, parameters = restored(checkpoint, writer.images.store.partition)
        writer.network.load_state_dict(parameters)
    about = job.processes.broadcast_json(lambda: checkpoint.about if checkpoint else {})
    job.clock.add(about["elapsed"])
    writer.baseline = about["baseline"]
    job.display.say("Resumed", f"after {plural(state.round, 'round')}")
    return state
