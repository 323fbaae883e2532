"""Simulated persons teach a run: how many wrong images become right without being asked about.

    python benchmarks/teach.py CACHE NAME [NAME ...] [--step 20] [--holds]

`sets.py` makes CACHE/NAME.pt. A person names each cluster by the kind of most of its typical images and answers by the
true label, `--step` questions at a time. `fixed` is the share of the wrong images that become right
although nobody was asked about them, `worth` the same as a share of all images.

--holds writes results/holds.json instead: the share of images under the right name after one to six answers for each
cluster, by a person who names all clusters first and by one who only answers; and that share after five answers a
cluster and then a new cut of another seed as by `fit --like`, or `recut` to a fifth more, or to a cluster for each
kind.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import save
from sets import LITE0, SIDE, load, plainly_reduced
from torch import Tensor

from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import Whitening
from deepcluster.fitting.like import Former, continued
from deepcluster.groups.cut import cut_features
from deepcluster.groups.graph import Layouts
from deepcluster.model import Model
from deepcluster.nets.network import build, no_network
from deepcluster.recipes.options import Recipe
from deepcluster.runs.recut import cut_anew, kinds_kept
from deepcluster.runs.run import Rows, Run
from deepcluster.runs.teach import Answer, asked, taught_by
from deepcluster.runtime.console import Silent
from deepcluster.storage.content import FILES, IMAGES, Facts, RunRecord, Table
from deepcluster.storage.images_table import ImagesTable

ANSWERS = (2, 5, 10)  # for each cluster
STEPS = range(1, 7)  # of the curve by names and by answers alone
FIVE = 5  # answers for each cluster before a new cut
SEEDS = (0, 1)
TYPICAL = 9  # images of a cluster by which a person names it
LARGEST = 0.8  # share of the images that are asked about


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


def taught(run: Run, truth: list[str], k: int, step: int) -> Iterator[dict[str, float]]:
    """Yield the figures after each number of answers."""
    run = named(run, truth)
    before = right(run, truth)
    for count, after_answers in zip(ANSWERS, curve(run, truth, k, step, ANSWERS), strict=True):
        after = right(after_answers, truth)
        rest = np.delete(np.arange(len(truth)), [*after_answers.model.placed])
        gain = int(after[rest].sum()) - int(before[rest].sum())
        figures = {"fixed": gain / max(1, int((~before[rest]).sum())), "worth": gain / len(truth)}
        yield {"answers": count, "right": float(before.mean()), **figures, "now": float(after.mean())}


def curve(run: Run, truth: list[str], k: int, step: int, counts: Iterable[int]) -> Iterator[Run]:
    """Yield the run after each number of answers for each of ``k`` clusters."""
    for count in counts:
        most = min(count * k, int(LARGEST * len(truth)))
        while (left := most - len(run.model.said)) > 0:
            paths = [one.path for one in asked(run, min(step, left))]
            run = taught_by(run, [Answer(path, name=truth[int(path)]) for path in paths]).run
        yield run


def like(old: Run, seed: int) -> Run:
    """Return a new fit of the images of a run, ``--like`` it."""
    rows = old.rows.reduced
    new = run_on(rows, len(old.model.cut.cluster_of.unique()), seed, old.rows.layouts)
    return continued(new, Former(Path("old"), old, [], 1), torch.arange(len(rows)))[0]


def holds(name: str, rows: Tensor, truth: list[str], k: int, step: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a set in results/holds.json."""
    layouts = Layouts()
    for seed in SEEDS:
        run = run_on(rows, k, seed, layouts)
        pairs = zip(curve(named(run, truth), truth, k, step, STEPS), curve(run, truth, k, step, STEPS), strict=True)
        for count, (first, alone) in zip(STEPS, pairs, strict=True):
            shares = {"names first": right(first, truth).mean(), "answers alone": right(alone, truth).mean()}
            yield {"set": name, "seed": seed, "answers": count, **shares}
            if count == FIVE:
                old = alone
        before = float(right(old, truth).mean())
        clusters = len(old.model.cut.cluster_of.unique())
        after = {"fit --like": right(like(old, seed + len(SEEDS)), truth).mean()}
        numbers = {"a fifth more clusters": round(1.2 * clusters), "a cluster for each kind": len(kinds_kept(old))}
        for text, number in numbers.items():
            cut = cut_anew(old, number, Recipe(grouping="embedding"), Silent()).run
            after[f"recut, {text}"] = right(cut, truth).mean()
        for way, now in after.items():
            yield {"set": name, "seed": seed, "way": way, "before": before, "after": now, "change": now - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--step", type=int, default=20)
    parser.add_argument("--holds", action="store_true")
    arguments = parser.parse_args()
    network = build(LITE0, image_size=SIDE, weights="timm")
    runs: list[dict[str, Any]] = []
    for name in arguments.names:
        data = load(arguments.cache / f"{name}.pt")
        truth = [str(label) for label in data["labels"].tolist()]
        k, layouts = len({*truth}), Layouts()
        rows = plainly_reduced(network, data, k)
        if arguments.holds:
            figures = [*holds(name, rows, truth, k, arguments.step)]
        else:
            of_seeds = (taught(run_on(rows, k, seed, layouts), truth, k, arguments.step) for seed in SEEDS)
            pairs = zip(*of_seeds, strict=True)
            figures = [{"set": name, **{key: mean(one[key] for one in pair) for key in pair[0]}} for pair in pairs]
        for row in figures:
            runs.append({key: round(float(one), 4) if isinstance(one, float) else one for key, one in row.items()})
            print(runs[-1], flush=True)
    save("holds" if arguments.holds else "teach", {"step": arguments.step, "runs": runs})


if __name__ == "__main__":
    main()
