"""A fit reads as its steps: decide, read, alternate, conclude, write."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from deepcluster.build import network_of
from deepcluster.fitting.conclude import conclude, features_with_nouns, result_features, run_of
from deepcluster.fitting.forecast import announce
from deepcluster.fitting.journal import opened
from deepcluster.fitting.like import read_former
from deepcluster.fitting.plan import check_weights_here, decide, decide_features, first_record
from deepcluster.fitting.read import read_images
from deepcluster.fitting.train import rounds_text, train
from deepcluster.fitting.values import Decided, ImagesRead, Request, Start
from deepcluster.images import Images, find
from deepcluster.images.given import true_labels
from deepcluster.images.own_features import OwnFeatures, read_features
from deepcluster.images.store import check_alike
from deepcluster.nets.network import Network, no_network
from deepcluster.runs.inherit import kept_text
from deepcluster.runs.result import Outcome, summary_text
from deepcluster.runtime.console import Display, Several, Silent
from deepcluster.runtime.devices import CPU, choose_device, keep_freed_memory, working_on
from deepcluster.runtime.plain_files import shaped
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.storage import run_folder


def fit(
    images: Images | OwnFeatures,
    request: Request,
    display: Display | None = None,
    processes: Processes = ALONE,
) -> run_folder.RunFolder:
    """Cluster images, and return the run folder (docs/run-folder.md).

    Wrong options, labels or weights raise an error before anything is written. With ``resume`` the run goes on from the
    last checkpoint in its folder, or begins if there is none.

    Args:
        images: A folder, a list of paths, an array, ...; if the request says that these are features, anything
            that ``read_features`` takes, which are grouped without a network.
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
        features, source = read_features(images) if request.features else (None, find(images))
        check_alike(source, processes)
        start_of = decide if features is None else partial(decide_features, images, features.shape[1])
        told = processes.broadcast_json(lambda: asdict(start_of(source, request, display)))
        start: Start = shaped(told, Start, "start")
        run = run_folder.RunFolder(Path(start.out))
        if start.state == "finished":
            display.say("Done", f"{run.path} is finished already")
            return run
        check_weights_here(start.facts.published if start.facts else "")
        labels = true_labels(start.labels, source) if start.labels else None
        former = read_former(run_folder.open_run(Path(start.like))) if start.like and processes.is_main else None
        record = first_record(request, start, source, former, device, processes)
        decided = Decided(request, start, source, features, labels, former, record, device)

        # Step 1, backbone.
        network = _backbone(decided, processes, display)
        with opened(decided, processes, begin) as journal:
            display.say("Run", decided.start.out)
            read = read_images(decided, network, processes, display)
            journal.begin(read)

            # Steps 2 to 5, features, reduction, clustering and learning, in every round of step 6, the alternation.
            rounds, reason = 0, "all rounds done" if decided.features is None else "features were given"
            if read.recipe.rounds:
                last = decided.request.recipe.all_options.get("rounds", read.recipe.rounds)
                rounds, reason = train(network, read, decided.request.steps, last, journal, display)
            journal.end_phase("rounds", rounds=rounds, stopped_because=reason)

            # Step 7, result. From the reduced features on there are no ranks.
            features = result_features(network, read, display)
            final = conclude(network, read, journal.record.seed, features, display)
            seen = None if read.recipe.rounds else features_with_nouns(network, read, features)  # or written already
            if journal.folder:
                made = run_of(network, read, journal.record, final, display)
                outcome = journal.end(journal.folder, made, seen, display.progress)
                _say_done(decided.request, read, outcome, display)
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


def _say_done(request: Request, images: ImagesRead, outcome: Outcome, display: Display) -> None:
    kept = ""
    if images.former and images.former_rows is not None:
        before = [*images.former.run.names, ""]  # of -1, too
        kept = kept_text((before[row] for row in images.former_rows.tolist()), outcome.usable.column("name"))
    if request.features:
        done = f"{len(outcome.summary):,} clusters of {len(images.paths):,} rows of features"
        display.say("Done", f"{done}.{kept}" if kept else done)
        return
    if images.recipe.weights and "rounds" not in request.recipe.all_options and not images.recipe.rounds:
        display.say("Training", "none: the network is used as it is; --rounds 1 trains it, which takes longer")
    display.say("Done", f"{summary_text(outcome, request.n_clusters, rounds_text(outcome.record))}{kept}")
