"""The rounds of a run (steps 2 to 6), with their history and checkpoints, and the rule that ends them."""

from collections.abc import Mapping
from dataclasses import replace

from deepcluster.build import Steps, compute_of, rounds_of
from deepcluster.fitting.conclude import conclude, features_with_nouns, knows_nouns, metrics_of, result_features
from deepcluster.fitting.journal import Journal
from deepcluster.fitting.values import ImagesRead
from deepcluster.learning.training import average_weights, measure_statistics
from deepcluster.nets.network import Network
from deepcluster.records import State
from deepcluster.runs.page import write_nouns
from deepcluster.runtime.compute import Stopwatch
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.log import warn
from deepcluster.storage.content import RunRecord
from deepcluster.texts import plural

ROUNDS_TO_LEARN = 3
MAX_LOSS = 0.95  # of the loss of guessing, after these rounds
SETTLED = "assignments settled"  # a reason in run.json for the end of the rounds


def train(
    network: Network, images: ImagesRead, steps: Steps, last: int, journal: Journal, display: Display
) -> tuple[int, str]:
    """Alternate until the recipe ends it, or for ``last`` rounds; write history and a checkpoint as it goes on.

    The network is trained in place, from the last checkpoint if there is one; at the end it has the weights of the
    result.

    Returns the number of rounds, and the reason why there are no more.
    """
    recipe = images.recipe
    store = images.store
    if store.partition.processes.any(journal.checkpoint is not None):
        state = journal.restore(network)
        display.say("Resumed", f"after {plural(state.round, 'round')}")
    else:
        journal.baseline = _measured_before(network, images, journal, display)
        journal.save(state := State(), network)
    journal.open_history()
    watch = Stopwatch(display.progress)
    alternation = rounds_of(
        network,
        store.images,
        recipe,
        journal.record.seed,
        rounds=last,
        steps=steps,
        state=state,
        compute=compute_of(network, recipe, store.partition, watch),
    )
    state = replace(state, features=None)  # the round frees its features before it trains
    for round in alternation:
        seconds = watch.seconds()
        state = replace(round.state, features=None)
        row = journal.add(round, seconds)
        journal.save(round.state, network)
        display.round(row, last)
        if state.round == ROUNDS_TO_LEARN and round.loss > MAX_LOSS * round.chance_loss:
            warn(
                f"after {plural(state.round, 'round')} the network learns little (loss {round.loss:.2f}, by chance"
                f" {round.chance_loss:.2f}): raise --epochs or --lr, or lower --batch-size, for more optimizer steps"
            )
        watch.start()
    if state.round and recipe.average < 1:
        average_weights(network.body, journal.checkpoints.body(state.round - 1), recipe.average)
        if recipe.average and not network.frozen_statistics:
            compute = compute_of(network, recipe, store.partition, exact=True)
            measure_statistics(network, store.images, compute, journal.record.seed)
    reason = "all rounds done" if state.round >= recipe.rounds else "ended on request"
    return state.round, SETTLED if state.settled >= recipe.patience else reason


def _measured_before(network: Network, images: ImagesRead, journal: Journal, display: Display) -> Mapping[str, float]:
    """Return metrics of the clusters before the rounds, and write the nouns of the images. A collective.

    A pass over the images is made only if there are true labels or nouns.
    """
    if images.truth is None and not knows_nouns(network, images.recipe):
        return {}
    features = result_features(network, images, display)
    seen = features_with_nouns(network, images, features)
    if seen is not None and journal.folder:
        write_nouns(journal.folder, network, seen, images.paths)
    if images.truth is None:
        return {}
    start = conclude(network, images, journal.record.seed, features, Silent())
    return metrics_of(images, journal.record, start) if journal.folder else {}


def rounds_text(record: RunRecord) -> str:
    """Return the number of rounds and the reason of their end, as the end of a sentence."""
    rounds = f"after {plural(record.rounds, 'round')} of training" if record.rounds else "without training"
    return f", {rounds}{', because the clusters no longer change' if record.stopped_because == SETTLED else ''}"
