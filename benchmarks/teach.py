"""Simulated persons teach a run: how many wrong images become right without being asked about.

    python benchmarks/teach.py CACHE NAME [NAME ...] [--step 20] [--grid | --pairs]

`sets.py` makes CACHE/NAME.pt. A person names each cluster by the kind of most of its typical images and answers by the
true label, `--step` questions at a time (0: all at once). `fixed` is the share of the wrong images that become right
although nobody was asked about them, `worth` the same as a share of all images. The coverage is the share of the 90 %
intervals of the estimated quality that hold the true one. --grid tries other constants, too: each set with those that
are best on all others. --pairs simulates another question instead, one of ten: whether the two clusters with most ties
between them are one kind, by four pictures of each; yes gives them one name. It makes twice and half as many clusters
as kinds, which have their names at first or have none, and prints the share of right images by minutes.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
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
from deepcluster.groups import spread
from deepcluster.groups.cut import cut_features
from deepcluster.groups.graph import Embeddings, graph_rows
from deepcluster.model import Model
from deepcluster.nets.network import build, no_network
from deepcluster.runs.rows import Rows
from deepcluster.runs.teach import Answer, asked, lesson
from deepcluster.runtime.partition import Partition

ANSWERS = (2, 5, 10)  # for each cluster
SEEDS = (0, 1)
TYPICAL = 9  # images of a cluster by which a person names it
DRAWN = 15  # images, for an interval
ONE_IN = 10  # questions is about two clusters
PICTURES = 4  # of each of them
SECONDS = 1.5  # of a question about an image
PAIR_SECONDS = 4.0  # and of one about two clusters
MINUTES = (1, 2, 3, 5)
CASES = (  # clusters for each kind, whether they have names, and which pairs are asked about
    ("twice, named", 2, True, "all"),
    ("twice, without names", 2, False, "all"),
    ("the same, pairs of one kind alone", 2, False, "one kind"),
    ("half, named", 0.5, True, "all"),
)
COLUMNS = ("first", "pairs", "yes", "without", "with", "free")
LARGEST = 0.8  # share of the images that are asked about
GRID = [*product((0.05, 0.07), (0.2, 0.4), (0.6, 0.8))]
CONSTANTS = ("PRESENT", "FOLLOWER", "SHRINKAGE")


def run_on(rows: Tensor, k: int, seed: int, embeddings: Embeddings) -> tuple[Model, Rows]:
    """Return the model and the images of a run of features."""
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
    paths = [*map(str, range(len(rows)))]
    images = Rows(paths, None, [], rows, rows, Partition.single(len(rows)), nothing[0], embeddings=embeddings)
    return model, images


def named(model: Model, rows: Tensor, truth: list[str], shown: int = TYPICAL) -> Model:
    """Name each cluster by the kind of most of its typical images."""
    cluster = model.place(rows).cluster
    names = [*model.names]
    for group in cluster.unique().tolist():
        members = torch.nonzero(cluster == group).flatten()
        order = (rows[members] - rows[members].mean(0)).norm(dim=1).argsort()[:shown]
        names[group] = Counter(truth[row] for row in members[order]).most_common(1)[0][0]
    return replace(model, names=tuple(names))


def right(model: Model, rows: Tensor, truth: list[str]) -> np.ndarray:
    return np.array([model.names[group] for group in model.place(rows).cluster.tolist()]) == truth


def taught(model: Model, images: Rows, truth: list[str], k: int, seed: int, step: int) -> Iterator[dict[str, float]]:
    """Yield the figures after each number of answers."""
    model = named(model, images.reduced, truth)
    before = right(model, images.reduced, truth)
    for count in ANSWERS:
        most = min(count * k, int(LARGEST * len(truth)))
        while (left := most - len(model.answers)) > 0:
            paths = [one.path for one in asked(model, images, min(step or left, left), seed)]
            model = lesson(model, images, [Answer(path, name=truth[int(path)]) for path in paths]).model
        after = right(model, images.reduced, truth)
        rest = np.delete(np.arange(len(truth)), model.answers)
        gain = int(after[rest].sum()) - int(before[rest].sum())
        figures = {"fixed": gain / max(1, int((~before[rest]).sum())), "worth": gain / len(truth)}
        yield {"answers": count, "right": float(before.mean()), **figures, "now": float(after.mean())}


def covered(model: Model, images: Rows, truth: list[str], seeds: range) -> float:
    """Return the share of intervals, one for each seed, that hold the true quality."""
    model = named(model, images.reduced, truth)
    is_right = right(model, images.reduced, truth)
    intervals = []
    for seed in seeds:
        rows = [int(one.path) for one in asked(model, images, DRAWN, seed, drawn=True)]
        intervals.append(spread.estimated_quality([(row, int(is_right[row])) for row in rows]))
    return mean(float(one["low"] <= is_right.mean() <= one["high"]) for one in intervals)


def tied(
    model: Model, images: Rows, known: set[tuple[int, int]], kinds: tuple[str, ...] = ()
) -> tuple[int, int] | None:
    """Return the two clusters of different names, not yet ``known``, with most ties between them.

    ``kinds``: Of all clusters; with them only clusters of one kind count.
    """
    rows = images.reduced[graph_rows(images.reduced)]
    members = np.eye(len(model.names))[model.place(rows).cluster.numpy()]
    between = np.triu(members.T @ (images.embeddings.ties(rows) @ members), 1)
    names = np.array([name or str(group) for group, name in enumerate(model.names)])
    between[names[:, None] == names] = 0
    between[tuple(np.array([*known], int).reshape(-1, 2).T)] = 0
    if kinds:
        between[np.array(kinds)[:, None] != kinds] = 0
    first, second = np.unravel_index(between.argmax(), between.shape)
    return (int(first), int(second)) if between[first, second] else None


def curve(run: tuple[Model, Rows], truth: list[str], seed: int, step: int, has_names: bool, pairs: str) -> Tensor:
    """Return numbers of questions about images and about clusters, of those with a yes, and shares of right images.

    ``pairs``: Asked about: none, all, or those of one kind.
    """
    model, images = run
    kinds = [*named(model, images.reduced, truth).names]  # as the person sees them
    model = replace(model, names=tuple(kinds)) if has_names else model
    known: set[tuple[int, int]] = set()
    count = same = 0
    points = []
    while True:
        cluster = model.place(images.reduced).cluster.tolist()
        points.append((count, len(known), same, mean(kinds[group] == truth[row] for row, group in enumerate(cluster))))
        if count >= min(60 * MINUTES[-1] / SECONDS, LARGEST * len(truth)):
            return torch.tensor(points).T
        shown = named(model, images.reduced, truth, PICTURES).names
        left = step
        for _ in range(0 if pairs == "none" else step // ONE_IN):
            if pair := tied(model, images, known, shown if pairs == "one kind" else ()):
                left -= 1
                known.add(pair)
                if shown[pair[0]] == shown[pair[1]]:
                    same += 1
                    kinds[pair[1]] = kinds[pair[0]]
                    names = (kinds[pair[0]] if group in pair else name for group, name in enumerate(model.names))
                    model = replace(model, names=tuple(names))
        answers = []
        for question in asked(model, images, left, seed):
            row = int(question.path)
            near = (cluster[row], *question.likely, *sorted({*cluster}))
            group = next((group for group in near if kinds[group] == truth[row]), None)
            answers.append(Answer(row, group, "" if group is not None else truth[row]))
        count += len(answers)
        model = lesson(model, images, answers).model
        kinds += model.names[len(kinds) :]


def by_minutes(points: Tensor, seconds: float) -> list[float]:
    """Return the shares of right images after ``MINUTES``. ``seconds``: For a question about two clusters."""
    count, pairs, _, right = points.numpy()
    return [float(share) for share in np.interp(MINUTES, (count * SECONDS + pairs * seconds) / 60, right)]


def of_pairs(cache: Path, names: list[str], step: int) -> Iterator[dict[str, Any]]:
    """Yield shares right by minutes, means of the seeds; ``free``: If questions about clusters took no time."""
    network = build(LITE0, image_size=SIDE, weights="timm")
    for name, (case, times, has_names, pairs) in product(names, CASES):
        data = load(cache / f"{name}.pt")
        truth = [str(label) for label in data["labels"].tolist()]
        k = max(2, round(len({*truth}) * times))
        rows = plainly_reduced(network, data, k)
        figures = []
        for seed in SEEDS:
            run = run_on(rows, k, seed, Embeddings())
            plain, points = (curve(run, truth, seed, step, has_names, which) for which in ("none", pairs))
            shares = [by_minutes(plain, 0), by_minutes(points, PAIR_SECONDS), by_minutes(points, 0)]
            figures.append([*plain[3, :1].tolist(), *points[1:3, -1].tolist(), *shares])
        means = (np.mean(each, 0).round(4).tolist() for each in zip(*figures, strict=True))
        yield {"set": name, "case": case, "k": k} | dict(zip(COLUMNS, means, strict=True))


def gains(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield mean and deviation over the collections of what questions about clusters add to the share right."""
    for (case, *_), way in product(CASES, ("with", "free")):
        of_sets = np.array([np.subtract(row[way], row["without"]) for row in rows if row["case"] == case])
        spread = of_sets.std(0, ddof=1).round(4).tolist()
        yield {"case": case, "way": way, "gain": of_sets.mean(0).round(4).tolist(), "deviation": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--step", type=int, default=20)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--pairs", action="store_true")
    arguments = parser.parse_args()
    if arguments.pairs:
        of_sets = [*of_pairs(arguments.cache, arguments.names, arguments.step)]
        save("teach_pairs", {"gains": [*gains(of_sets)], "sets": of_sets})
        return
    constants = [tuple(getattr(spread, name) for name in CONSTANTS), *(GRID if arguments.grid else [])]
    network = build(LITE0, image_size=SIDE, weights="timm")
    fixed: dict[tuple[Any, str], float] = {}
    sets: dict[str, list[dict[str, Any]]] = {}
    coverage: list[float] = []
    for name in arguments.names:
        data = load(arguments.cache / f"{name}.pt")
        truth = [str(label) for label in data["labels"].tolist()]
        k, embeddings = len({*truth}), Embeddings()
        rows = plainly_reduced(network, data, k)
        runs = [run_on(rows, k, seed, embeddings) for seed in SEEDS]
        for choice in constants:
            for constant, value in zip(CONSTANTS, choice, strict=True):
                setattr(spread, constant, value)
            figures = [
                list(taught(*run, truth, k, seed, arguments.step)) for seed, run in zip(SEEDS, runs, strict=True)
            ]
            fixed[choice, name] = mean(one["fixed"] for seed in figures for one in seed)
            if choice == constants[0]:
                sets[name] = [
                    {key: mean(one[key] for one in each) for key in each[0]} for each in zip(*figures, strict=True)
                ]
        for constant, value in zip(CONSTANTS, constants[0], strict=True):
            setattr(spread, constant, value)
        coverage.append(covered(*runs[0], truth, range(20)))
        print(name, len(rows), k, *(f"{one['fixed']:+.2f} ({one['worth']:+.3f})" for one in sets[name]), flush=True)
    content: dict[str, Any] = {"step": arguments.step, "coverage": mean(coverage)}
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
