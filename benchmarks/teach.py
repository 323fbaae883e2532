"""Simulated persons teach a run: how many wrong images become right without being asked about.

    python benchmarks/teach.py CACHE NAME [NAME ...] [--step 20] [--grid | --holds]

`sets.py` makes CACHE/NAME.pt. A person names each cluster by the kind of most of its typical images and answers by the
true label, `--step` questions at a time (0: all at once). `fixed` is the share of the wrong images that become right
although nobody was asked about them, `worth` the same as a share of all images. --grid tries other constants, too: each
set with those that are best on all others.

--holds writes results/holds.json instead: the share of images under the right name after one to six answers for each
cluster, by a person who names all clusters first and by one who only answers; and that share after five answers a
cluster and then a new cut of another seed as by `fit --like`, or `recut` to a fifth more, or to a cluster for each
kind.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
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
from deepcluster.groups import spread
from deepcluster.groups.cut import cut_features
from deepcluster.groups.graph import Embeddings
from deepcluster.model import Model
from deepcluster.nets.network import build, no_network
from deepcluster.recipes.options import Recipe
from deepcluster.runs.recut import cut_anew, kinds_kept
from deepcluster.runs.run import Rows, Run
from deepcluster.runs.teach import Answer, asked, taught_by
from deepcluster.runtime.console import Silent
from deepcluster.storage.content import FILES, IMAGES, Facts, RunRecord, Table
from deepcluster.storage.images_table import Images

ANSWERS = (2, 5, 10)  # for each cluster
STEPS = range(1, 7)  # of the curve by names and by answers alone
FIVE = 5  # answers for each cluster before a new cut
SEEDS = (0, 1)
TYPICAL = 9  # images of a cluster by which a person names it
LARGEST = 0.8  # share of the images that are asked about
GRID = [*product((0.05, 0.07), (0.2, 0.4), (0.6, 0.8))]
CONSTANTS = ("PRESENT", "FOLLOWER", "SHRINKAGE")


def run_on(rows: Tensor, k: int, seed: int, embeddings: Embeddings) -> Run:
    """Return a run of features."""
    cut = cut_features(rows, k, seed=seed, embed=embeddings)
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
    images = Rows(Images(table), rows, rows, nothing[0], embeddings)
    return Run(RunRecord(run="", images="rows", base="", seed=seed), Facts(), model, images)


def named(run: Run, truth: list[str]) -> Run:
    """Name each cluster by the kind of most of its typical images."""
    rows, cluster = run.rows.reduced, run.placement.cluster
    names = [*run.model.names]
    for group in cluster.unique().tolist():
        members = torch.nonzero(cluster == group).flatten()
        order = (rows[members] - rows[members].mean(0)).norm(dim=1).argsort()[:TYPICAL]
        names[group] = Counter(truth[row] for row in members[order]).most_common(1)[0][0]
    return replace(run, model=replace(run.model, names=tuple(names)))


def right(run: Run, truth: list[str]) -> np.ndarray:
    return np.array([run.model.names[group] for group in run.placement.cluster.tolist()]) == truth


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
            paths = [one.path for one in asked(run, min(step or left, left))]
            run = taught_by(run, [Answer(path, name=truth[int(path)]) for path in paths]).run
        yield run


def like(old: Run, seed: int) -> Run:
    """Return a new fit of the images of a run, ``--like`` it."""
    rows = old.rows.reduced
    new = run_on(rows, len(old.model.cut.cluster_of.unique()), seed, old.rows.embeddings)
    return continued(new, Former(Path("old"), old, [], 1), torch.arange(len(rows)))[0]


def holds(name: str, rows: Tensor, truth: list[str], k: int, step: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a set in results/holds.json."""
    embeddings = Embeddings()
    for seed in SEEDS:
        run = run_on(rows, k, seed, embeddings)
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
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--holds", action="store_true")
    arguments = parser.parse_args()
    constants = [tuple(getattr(spread, name) for name in CONSTANTS), *(GRID if arguments.grid else [])]
    network = build(LITE0, image_size=SIDE, weights="timm")
    fixed: dict[tuple[Any, str], float] = {}
    sets: dict[str, list[dict[str, Any]]] = {}
    held: list[dict[str, Any]] = []
    for name in arguments.names:
        data = load(arguments.cache / f"{name}.pt")
        truth = [str(label) for label in data["labels"].tolist()]
        k, embeddings = len({*truth}), Embeddings()
        rows = plainly_reduced(network, data, k)
        if arguments.holds:
            for row in holds(name, rows, truth, k, arguments.step):
                held.append(
                    {key: one if isinstance(one, str | int) else round(float(one), 4) for key, one in row.items()}
                )
                print(held[-1], flush=True)
            continue
        runs = [run_on(rows, k, seed, embeddings) for seed in SEEDS]
        for choice in constants:
            for constant, value in zip(CONSTANTS, choice, strict=True):
                setattr(spread, constant, value)
            figures = [list(taught(run, truth, k, arguments.step)) for run in runs]
            fixed[choice, name] = mean(one["fixed"] for seed in figures for one in seed)
            if choice == constants[0]:
                sets[name] = [
                    {key: mean(one[key] for one in each) for key in each[0]} for each in zip(*figures, strict=True)
                ]
        for constant, value in zip(CONSTANTS, constants[0], strict=True):
            setattr(spread, constant, value)
        print(name, len(rows), k, *(f"{one['fixed']:+.2f} ({one['worth']:+.3f})" for one in sets[name]), flush=True)
    if arguments.holds:
        save("holds", {"step": arguments.step, "runs": held})
        return
    content: dict[str, Any] = {"step": arguments.step}
    content["sets"] = [{"set": name, **figures} for name, of_set in sets.items() for figures in of_set]
    for count in ANSWERS:
        rows_of_count = [row for row in content["sets"] if row["answers"] == count]
        figures = [mean(row["fixed"] for row in rows_of_count), min(row["worth"] for row in rows_of_count)]
        content[f"mean of fixed and least worth, {count} answers"] = figures
    if arguments.grid:
        left_out = {}
        for name in arguments.names:
            others = {
                choice: mean(fixed[choice, other] for other in arguments.names if other != name) for choice in GRID
            }
            left_out[name] = fixed[max(others, key=lambda choice: others[choice]), name]
        content["grid"] = {str(choice): mean(fixed[choice, name] for name in arguments.names) for choice in GRID}
        content["left_out"] = mean(left_out.values())
    print({name: value for name, value in content.items() if name != "sets"})
    save("teach" if arguments.step else "teach_at_once", content)


if __name__ == "__main__":
    main()
