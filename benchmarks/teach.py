"""Simulated persons teach a run: how many wrong images become right without being asked about.

    python benchmarks/teach.py CACHE NAME [NAME ...] [--holds]

`sets.py` makes CACHE/NAME.pt. A person names each cluster by the kind of most of its typical images and answers by the
true label, STEP questions at a time. `fixed` is the share of the wrong images that become right although nobody was
asked about them.

--holds writes results/holds.json instead: the share of images under the right name after one to six answers for each
cluster, by a person who names all clusters first and by one who only answers; and that share after five answers a
cluster and then a new cut of another seed as by `fit --like`, or `recut` to a fifth more, or to a cluster for each
kind.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import parser_of, save
from sets import installed, load, plainly_reduced
from torch import Tensor

from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import Whitening
from deepcluster.fitting.like import Former, continued
from deepcluster.groups.cut import cut_features
from deepcluster.groups.graph import Layouts
from deepcluster.model import Model
from deepcluster.nets.network import no_network
from deepcluster.recipes.options import Recipe
from deepcluster.runs.recut import cut_anew, kinds_kept
from deepcluster.runs.run import Rows, Run
from deepcluster.runs.teach import Answer, asked, taught_by
from deepcluster.runtime.console import Silent
from deepcluster.storage.content import FILES, IMAGES, Facts, RunRecord, Table
from deepcluster.storage.images_table import ImagesTable

STEP = 20  # questions at a time
ANSWERS = (2, 5, 10)  # for each cluster
STEPS = range(1, 7)  # of the curve by names and by answers alone
FIVE = 5  # answers for each cluster before a new cut
SEEDS = (0, 1)
TYPICAL = 9  # images of a cluster by which a person names it
LARGEST = 0.8  # share of the images that are asked about


def runs_of_sets(cache: Path, names: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, list[str], list[Run]]]:
    """Yield for each set its name, the kinds of its images, and a run of as many clusters for each seed."""
    network = installed()
    for name in names:
        data = load(cache / f"{name}.pt")
        truth = [str(label) for label in data["labels"].tolist()]
        k, layouts = len({*truth}), Layouts()
        rows = plainly_reduced(network, data, k)
        yield name, truth, [run_on(rows, k, seed, layouts) for seed in seeds]


def run_on(rows: Tensor, k: int, seed: int, layouts: Layouts) -> Run:
    """Return a run of features."""
    cut = cut_features(rows, k, seed=seed, layouts=layouts)
    width = rows.shape[1]
    nothing = torch.zeros(2, width)
    model = Model(
        network=no_network(width),
        reduction=Whitening(torch.zeros(width), torch.eye(width)),
        fine_centroids=rows[:1],
        cut=cut,
        outliers=Outliers(nothing, nothing.unsqueeze(2), torch.inf),
        names=("",) * cut.count,
        image_size=1,
        store_size=1,
        batch_size=1,
    )
    blank = dict.fromkeys(FILES[IMAGES].columns, "")
    table = Table.of([{**blank, "path": str(row), "status": "ok"} for row in range(len(rows))])
    images = Rows(ImagesTable(table), rows, rows, nothing[0], layouts)
    return Run(RunRecord(run="", images="rows", base="", seed=seed), Facts(), model, images)


def named(run: Run, truth: list[str]) -> Run:
    """Name each cluster by the kind of most of its typical images."""
    rows, cluster = run.rows.reduced, run.placement.cluster
    names = [*run.model.names]
    for number in cluster.unique().tolist():
        members = torch.nonzero(cluster == number).flatten()
        order = (rows[members] - rows[members].mean(0)).norm(dim=1).argsort()[:TYPICAL]
        names[number] = Counter(truth[row] for row in members[order]).most_common(1)[0][0]
    return replace(run, model=replace(run.model, names=tuple(names)))


def right(run: Run, truth: list[str]) -> np.ndarray:
    return np.array([run.model.names[number] for number in run.placement.cluster.tolist()]) == truth


def taught(run: Run, truth: list[str]) -> Iterator[dict[str, float]]:
    """Yield the figures after each number of answers."""
    run = named(run, truth)
    before = right(run, truth)
    for count, after_answers in zip(ANSWERS, curve(run, truth, ANSWERS), strict=True):
        after = right(after_answers, truth)
        rest = np.delete(np.arange(len(truth)), [*after_answers.model.placed])
        gain = int(after[rest].sum()) - int(before[rest].sum())
        fixed = gain / max(1, int((~before[rest]).sum()))
        yield {"answers": count, "right": float(before.mean()), "fixed": fixed, "now": float(after.mean())}


def curve(run: Run, truth: list[str], counts: Iterable[int]) -> Iterator[Run]:
    """Yield the run after each number of answers for each kind."""
    for count in counts:
        most = min(count * len({*truth}), int(LARGEST * len(truth)))
        while (left := most - len(run.model.said)) > 0:
            paths = [one.path for one in asked(run, min(STEP, left))[0]]
            run = taught_by(run, [Answer(path, name=truth[int(path)]) for path in paths]).run
        yield run


def like(old: Run, seed: int) -> Run:
    """Return a new fit of the images of a run, ``--like`` it."""
    rows = old.rows.reduced
    new = run_on(rows, len(old.model.cut.cluster_of.unique()), seed, old.rows.layouts)
    return continued(new, Former(Path("old"), old, [], 1), torch.arange(len(rows)))[0]


def holds(run: Run, truth: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a set and seed in results/holds.json."""
    pairs = zip(curve(named(run, truth), truth, STEPS), curve(run, truth, STEPS), strict=True)
    for count, (first, alone) in zip(STEPS, pairs, strict=True):
        shares = {"names first": right(first, truth).mean(), "answers alone": right(alone, truth).mean()}
        yield {"seed": run.record.seed, "answers": count, **shares}
        if count == FIVE:
            old = alone
    before = float(right(old, truth).mean())
    clusters = len(old.model.cut.cluster_of.unique())
    after = {"fit --like": right(like(old, run.record.seed + len(SEEDS)), truth).mean()}
    numbers = {"a fifth more clusters": round(1.2 * clusters), "a cluster for each kind": len(kinds_kept(old))}
    for text, number in numbers.items():
        cut = cut_anew(old, number, Recipe(grouping="layout"), Silent()).run
        after[f"recut, {text}"] = right(cut, truth).mean()
    for way, now in after.items():
        yield {"seed": run.record.seed, "way": way, "before": before, "after": now, "change": now - before}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--holds", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, truth, runs in runs_of_sets(arguments.cache, arguments.names, SEEDS):
        if arguments.holds:
            figures = [row for run in runs for row in holds(run, truth)]
        else:
            pairs = zip(*(taught(run, truth) for run in runs), strict=True)
            figures = [{key: mean(row[key] for row in pair) for key in pair[0]} for pair in pairs]
        for row in figures:
            shares = {key: round(float(value), 4) for key, value in row.items() if isinstance(value, float)}
            rows.append({"set": name, **row, **shares})
            print(rows[-1], flush=True)
    save("holds" if arguments.holds else "teach", {"step": STEP, "runs": rows})


if __name__ == "__main__":
    main()
