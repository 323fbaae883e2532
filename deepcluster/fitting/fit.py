"""A fit, in the order of its execution: decide, read, alternate, conclude, write."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from deepcluster import algorithm
from deepcluster.algorithm import Conclusion
from deepcluster.errors import DataError, NonFiniteError
from deepcluster.fitting.forecast import announce
from deepcluster.fitting.journal import Journal, opened
from deepcluster.fitting.like import continued
from deepcluster.fitting.plan import decide_for_all
from deepcluster.fitting.read import knows_nouns, nouns_of, pass_features, read_images
from deepcluster.fitting.values import Decided, ImagesRead, Request
from deepcluster.images import Images
from deepcluster.images.own_features import OwnFeatures
from deepcluster.learning.training import average_weights, measure_statistics
from deepcluster.model import Model
from deepcluster.nets.network import Network, no_network
from deepcluster.recipes.build import compute_of, kmeans_of_result, network_of, reduction_of, rounds_of
from deepcluster.records import Identity, State
from deepcluster.runs.change import cut_of
from deepcluster.runs.inherit import kept_text
from deepcluster.runs.page import NOUNS, read_nouns
from deepcluster.runs.result import Outcome, choose_number, metrics, summary_text
from deepcluster.runs.run import Rows, Run, cut_rows, sample_of
from deepcluster.runtime.compute import CUT_PHASE, MAX_PASS_BATCH, Stopwatch
from deepcluster.runtime.console import Display, Several, Silent
from deepcluster.runtime.devices import CPU, choose_device, keep_freed_memory, working_on
from deepcluster.runtime.log import warn
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.storage import run_folder
from deepcluster.storage.content import Facts, Row, RunRecord
from deepcluster.texts import plural

ROUNDS_TO_LEARN = 3
MAX_LOSS = 0.95  # of the loss of guessing, after these rounds
SETTLED = "assignments settled"  # a reason in run.json for the end of the rounds
COLLAPSED = 0.5  # share of the images in one fine cluster
MIN_COLLAPSED = 30  # images: of fewer, one cluster may have most of them by chance


def fit(
    images: Images | OwnFeatures, request: Request, display: Display | None = None, processes: Processes = ALONE
) -> run_folder.RunFolder:
    """Cluster images, and return the run folder (docs/run-folder.md).

    Wrong options, labels or weights raise an error before anything is written. With ``resume`` the run goes on from the
    last checkpoint in its folder, or begins if there is none.

    Args:
        images: A folder, a list of paths, an array, ...; if the request says that these are features, anything
            that ``read_features`` takes, which are clustered without a network.
        display: Shows the run (None: nothing does).
        processes: They share the images; the main rank writes and displays.
    """
    begin = time.perf_counter()
    device = choose_device(request.device)
    if request.features:  # no network would use a GPU
        device = CPU
    display = Several(display) if processes.is_main else Silent()
    with working_on(device, deterministic=request.deterministic):
        keep_freed_memory()
        decided = decide_for_all(images, request, device, display, processes)
        run = run_folder.RunFolder(Path(decided.start.out))
        if decided.start.is_finished:
            display.say("Done", f"{run.path} is finished already")
            return run

        # Step 1, backbone.
        network = _backbone(decided, processes, display)
        with opened(decided, processes, begin) as journal:
            display.say("Run", decided.start.out)
            read = read_images(decided, network, processes, display)
            journal.begin(read)

            # Steps 2 to 5, features, reduction, clustering and learning, in every round of step 6, the alternation.
            rounds, reason = 0, "all rounds done" if decided.features is None else "features were given"
            if read.recipe.rounds:
                rounds, reason = train(network, read, journal, display)
            journal.end_phase("rounds", rounds=rounds, stopped_because=reason)

            # Step 7, result. From the reduced features on there are no ranks.
            features = result_features(network, read, display)
            final = conclude(network, read, features, display)
            nouns = () if read.recipe.rounds else nouns_of(network, read, features)
            if journal.folder:
                nouns = read_nouns(journal.folder) if read.recipe.rounds else nouns  # written before the rounds
                made = run_of(network, read, journal.record, final, nouns, display)
                outcome = journal.end(journal.folder, made, nouns, display.progress)
                _say_done(read, outcome, display)
        return run


def _backbone(decided: Decided, processes: Processes, display: Display) -> Network:
    """Return the network, after the lines about the plan; for features a placeholder."""
    if decided.features is not None:
        return no_network(decided.features.shape[1])
    start, request = decided.start, decided.request
    network = network_of(start.plan.recipe, request.seed, decided.device, request.module)
    if processes.is_main:
        announce(start, request, network, len(decided.source.paths), display)
    return network


def train(network: Network, images: ImagesRead, journal: Journal, display: Display) -> tuple[int, str]:
    """Alternate until the recipe ends it; write history and a checkpoint as it goes on.

    The network is trained in place, from the last checkpoint if there is one; at the end it has the weights of the
    result.

    Returns the number of rounds, and the reason why there are no more.
    """
    recipe = images.recipe
    store = images.store
    request = images.decided.request
    last = request.recipe.all_options.get("rounds", recipe.rounds)  # with --resume maybe fewer than the recipe has
    if journal.checkpoint:
        state = journal.restore(network)
        display.say("Resumed", f"after {plural(state.round, 'round')}")
    else:
        journal.baseline = _measured_before(network, images, journal, display)
        journal.save(state := State(), network)
    watch = Stopwatch(display.progress)
    alternation = rounds_of(
        network,
        store.images,
        recipe,
        request.seed,
        rounds=last,
        steps=request.steps,
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
            compute = compute_of(network, recipe, store.partition, float32=True)
            measure_statistics(network, store.images, compute, request.seed)
    reason = "all rounds done" if state.round >= recipe.rounds else "ended on request"
    return state.round, SETTLED if state.settled >= recipe.patience else reason


def _measured_before(network: Network, images: ImagesRead, journal: Journal, display: Display) -> dict[str, float]:
    """Return metrics of the clusters before the rounds, and write the nouns of the images. A collective.

    A pass over the images is made only if there are true labels or nouns.
    """
    if images.truth is None and not knows_nouns(network, images.recipe):
        return {}
    features = result_features(network, images, display)
    nouns = nouns_of(network, images, features)
    if nouns and journal.folder:
        journal.folder.write_rows(NOUNS, nouns)
    if images.truth is None:
        return {}
    before = conclude(network, images, features, Silent())
    if not journal.folder:
        return {}
    request, recipe = images.decided.request, images.recipe
    rows = rows_of(images, before)
    count, _ = choose_number(request.n_clusters, rows, request.seed, recipe, nouns, Silent())
    _, placement = cut_rows(rows, before.clustering, count, request.seed, recipe)
    return {**metrics(images.truth, placement.cluster), "clusters": len(placement.cluster.unique())}


def result_features(network: Network, images: ImagesRead, display: Display) -> Tensor:
    """Return this rank's features for a result: those that are known, or of the network as it is now."""
    known = images.known
    return pass_features(network, images.store, images.recipe, display) if known is None else known


def conclude(network: Network, images: ImagesRead, features: Tensor, display: Display) -> Conclusion:
    """Cluster this rank's ``features`` (n x D), of one pass of the network as it is now. A collective."""
    display.progress(CUT_PHASE, 0, 0)
    recipe, store = images.recipe, images.store
    try:
        return algorithm.conclude(
            network,
            store.images,
            clusters=recipe.pseudo_labels,
            seed=images.decided.request.seed,
            reduction=reduction_of(recipe, network.feature_dim, network.classifier),
            clustering=kmeans_of_result(recipe),
            compute=compute_of(network, recipe, store.partition, float32=True),
            features=features,
        )
    except NonFiniteError as error:
        if images.decided.features is None:
            raise
        raise DataError("the features are too large or too small to compare: scale them, say to length 1") from error


def run_of(
    network: Network,
    images: ImagesRead,
    record: RunRecord,
    final: Conclusion,
    nouns: Sequence[Row],
    display: Display,
) -> Run:
    """Cut the clusters of all images, on the main rank. ``record`` has the number of rounds."""
    recipe = images.recipe
    if record.rounds and (text := collapse(final)):
        warn(text)
    rows = rows_of(images, final)
    cut_k = record.n_clusters
    former = images.decided.former
    if cut_k is None and former:  # as many as the run of --like has, unless others were asked for
        cut_k = min(len(former.run.model.cut.cluster_of.unique()), rows.fitted)
    n_clusters, candidates = choose_number(cut_k, rows, record.seed, recipe, nouns, display)
    cut, _ = cut_rows(rows, final.clustering, n_clusters, record.seed, recipe)
    if cut.count < n_clusters:
        why = "the features have no more distinct values (are many equal?)"
        warn(f"only {cut.count} of {n_clusters} clusters are not empty: {why}")
    # Without a network the model takes no images.
    image_size, store_size = (recipe.image_size, recipe.store_size) if images.decided.features is None else (1, 1)
    model = Model(
        network=network,
        reduction=final.reduction,
        fine_centroids=final.clustering.centroids,
        cut=cut,
        outliers=final.outliers,
        names=("",) * cut.count,
        image_size=image_size,
        store_size=store_size,
        batch_size=min(recipe.batch_size, MAX_PASS_BATCH),
        identity=Identity(run=record.run),
    )
    run = Run(record, Facts(cut_k=cut_k, candidates=candidates), model, rows)
    if former and images.former_rows is not None:
        run, text = continued(run, former, images.former_rows)
        display.say("Names", text)
    return replace(run, facts=replace(run.facts, cut=cut_of(run)))


def rows_of(images: ImagesRead, final: Conclusion) -> Rows:
    """Return the images of a run with their reduced features."""
    sample = sample_of(final.reduced, images.decided.request.seed)
    return Rows(images.table, final.reduced, sample, final.residuals)


def collapse(conclusion: Conclusion) -> str:
    """Return a warning if most images are in one fine cluster or the features differ in one direction only, else ""."""
    share = conclusion.clustering.largest_share
    sizes = conclusion.clustering.sizes
    is_crowded = share > COLLAPSED and sizes.sum() >= MIN_COLLAPSED
    if len(sizes) <= 2 or not (is_crowded or conclusion.reduced.shape[1] == 1):
        return ""
    what = f"{share:.0%} of the images are in one fine cluster" if is_crowded else "all features are alike"
    return f"training has collapsed ({what}): lower --lr, or use --rounds 0, which keeps the network untrained"


def _say_done(images: ImagesRead, outcome: Outcome, display: Display) -> None:
    request, former = images.decided.request, images.decided.former
    kept_names = ""
    if former and images.former_rows is not None:
        before = [*former.run.names, ""]  # of -1, too
        kept_names = kept_text((before[row] for row in images.former_rows.tolist()), outcome.usable.column("name"))
    if request.features:
        done = f"{len(outcome.summary):,} clusters of {len(images.paths):,} rows of features"
        display.say("Done", f"{done}.{kept_names}" if kept_names else done)
        return
    if images.recipe.weights and "rounds" not in request.recipe.all_options and not images.recipe.rounds:
        display.say("Training", "none: the network is used as it is; --rounds 1 trains it, which takes longer")
    record = outcome.record
    rounds = f", after {plural(record.rounds, 'round')} of training" if record.rounds else ", without training"
    rounds += ", because the clusters no longer change" if record.stopped_because == SETTLED else ""
    display.say("Done", f"{summary_text(outcome, request.n_clusters, rounds)}{kept_names}")
