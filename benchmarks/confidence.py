"""Does the confidence know how good groups are? States of networks on sets with class folders, cut into groups.

    python benchmarks/confidence.py digits=sklearn:digits mnist=mnist cifar=cifar10 flowers=flowers5 steel=neu_det \
        --weights weights/ --cache features/

A state is a set, a network and how far it was trained: random weights and rounds of `auto` and `classic`, published
weights (`weights/` has timm's files) as they are and adapted, noise. Each is cut into the number of classes, half and
twice as many. Labels only judge. The features are made once, in half an hour of one core; the table takes minutes.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from scipy.stats import spearmanr
from torch import Tensor

from deepcluster.algorithm import conclude
from deepcluster.clustering.agreement import ari, nmi
from deepcluster.groups.confidence import GRADES, ari_by_group, confidence_of, grade
from deepcluster.groups.cut import cut, place
from deepcluster.images import find
from deepcluster.images.labels import true_labels
from deepcluster.images.preview import preview
from deepcluster.images.store import read_once
from deepcluster.presets import Facts, resolve
from deepcluster.runs.build import kmeans_of_result, learning_rate, network_of, reduction_of, rounds_of
from deepcluster.seeding import generator
from deepcluster.storage.csv_rows import round_to

LITE0, LITE2 = "timm:tf_efficientnet_lite0", "timm:tf_efficientnet_lite2"
NOISE = "noise"
RANGES = (0.1, 0.3, 0.6)  # of the ARI
SIGNS = ("stability", "halves", "kept", "score")
COUNTS = {"digits": 1797, "mnist": 2500, "cifar": 3000, "flowers": 1000, "steel": 900, NOISE: 600}


@dataclass(frozen=True)
class Run:
    """A training of which the features after some ``rounds`` are kept (0: before it)."""

    name: str
    sets: Sequence[str]
    rounds: Sequence[int]
    recipe: str = "auto"
    network: str = "compact"
    size: int | None = None


SMALL, PHOTOGRAPHS = ("digits", "mnist", "cifar"), ("flowers", "steel")
RUNS = (
    Run("auto", SMALL, (0, 1, 3, 8, 20)),
    Run("auto", (*PHOTOGRAPHS, NOISE), (0, 3)),
    Run("lite0", (*SMALL, *PHOTOGRAPHS), (0,), network=LITE0),
    Run("lite2", (*SMALL, *PHOTOGRAPHS), (0,), network=LITE2),
    Run("classic", (*PHOTOGRAPHS, *SMALL), (4,), recipe="classic"),
    Run("adapted", PHOTOGRAPHS, (1,), network=LITE0),
)


class Images:
    """Some images of a set, in an order by chance, in any size."""

    def __init__(self, name: str, where: str) -> None:
        if name == NOISE:
            self.labels = torch.arange(COUNTS[name]) % 10
            self.short_side, self.grey = 32, False
            return
        source = find(where)
        names = true_labels("folders", source)
        chosen = torch.randperm(len(source.paths), generator=generator(0, "images"))[: COUNTS[name]].tolist()
        kinds = sorted(set(names))
        self.labels = torch.tensor([kinds.index(names[i]) for i in chosen])
        self.source = source.rows(chosen)
        seen = preview(self.source)
        self.short_side, self.grey = seen.short_side, seen.grey

    def pixels(self, size: int) -> Tensor:
        if not hasattr(self, "source"):
            random = generator(0, "noise")
            return torch.randint(256, (len(self.labels), 3, size, size), generator=random, dtype=torch.uint8)
        return read_once(self.source, size).images


def features_of(run: Run, images: Images, weights: Path) -> Iterator[tuple[int, Tensor]]:
    """(rounds, N x d features, as a run of `deepcluster` ends with)."""
    options: dict[str, Any] = {"backbone": run.network, "rounds": run.rounds[-1]}
    if run.network != "compact":
        options["weights"] = str(weights / f"{run.network.removeprefix('timm:')}.safetensors")
    if run.size:
        options["image_size"] = run.size
    k = len(images.labels.unique())
    recipe = resolve(run.recipe, options, Facts(len(images.labels), images.short_side, images.grey, k, "cpu")).recipe
    network = network_of(recipe, 0, torch.device("cpu"))
    pixels = images.pixels(round(recipe.margin * recipe.image_size))

    def now() -> Tensor:
        return conclude(
            network, pixels, clusters=recipe.pseudo_labels, seed=0, size=recipe.image_size,
            batch_size=recipe.batch_size, reduction=reduction_of(recipe, network.feature_dim),
            clustering=kmeans_of_result(recipe),
        ).reduced  # fmt: skip

    if 0 in run.rounds:
        yield 0, now()
    for found in rounds_of(network, pixels, recipe, lambda at: learning_rate(recipe, at, recipe.rounds), 0):
        if found.index + 1 in run.rounds:
            yield found.index + 1, now()


def make(sets: dict[str, str], weights: Path, cache: Path) -> None:
    cache.mkdir(exist_ok=True, parents=True)
    for run in RUNS:
        for name in run.sets:
            last = cache / f"{name}-{run.name}-{run.rounds[-1]}.pt"
            if last.exists() or name not in sets:
                continue
            begin = time.process_time()
            images = Images(name, sets[name])
            for rounds, reduced in features_of(run, images, weights):
                torch.save({"reduced": reduced, "labels": images.labels}, cache / f"{name}-{run.name}-{rounds}.pt")
                print(f"{name} {run.name} {rounds}: {time.process_time() - begin:.0f} s", flush=True)


def signs_of(reduced: Tensor, labels: Tensor, k: int) -> dict[str, Any]:
    """The signs and the truth of the features cut into ``k`` groups."""
    groups = cut(reduced, k, seed=7)
    cluster = place(reduced, groups, groups.centroids[:1]).cluster
    begin = time.process_time()
    found = confidence_of(reduced, cluster)
    seconds = time.process_time() - begin
    assert found
    return {
        "k": k, "classes": len(labels.unique()), "images": len(reduced),
        "nmi": nmi(labels, cluster), "ari": ari(labels, cluster),
        **asdict(found), "score": found.score, "grade": found.grade.word, "seconds": seconds,
        "ari_by_group": ari_by_group(cluster, labels, cluster).tolist(),
    }  # fmt: skip


def table(cache: Path) -> dict[str, Any]:
    """The signs of every state, by set-network-rounds/k; made once, too."""
    file = cache / "signs.json"
    states: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for factor in (1, 0.5, 2):
        for features in sorted(cache.glob("*.pt")):
            state = torch.load(features, weights_only=True)
            k = int(factor * len(state["labels"].unique()))
            name = f"{features.stem}/{k}"
            if name not in states:
                states[name] = signs_of(state["reduced"], state["labels"], k)
                print(
                    name,
                    {key: round(value, 2) for key, value in states[name].items() if isinstance(value, float)},
                    flush=True,
                )
                file.write_text(json.dumps(states))
    return states


def correlation(states: Iterable[Mapping[str, Any]], sign: str) -> float:
    """Spearman's, of a sign with the NMI."""
    return float(spearmanr([(each[sign], each["nmi"]) for each in states])[0])


def graded(pairs: Iterable[tuple[float, float]]) -> list[list[int]]:
    """How many of (score, ARI) there are, by the range of the ARI (rows) and the grade."""
    table = np.zeros((4, 4), int)
    for score, value in pairs:
        table[np.searchsorted(RANGES, value, "right"), GRADES.index(grade(score))] += 1
    return [*map(list, table.tolist())]


def summary(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The correlations, the grades by the ARI, and both without each of the sets."""
    sets = sorted({name.partition("-")[0] for name in states})
    clusters = [pair for each in states.values() for pair in zip(each["by_group"], each["ari_by_group"], strict=True)]
    clusters = [pair for pair in clusters if pair[0] is not None]
    return {
        "states": len(states),
        "correlation with the NMI": {sign: correlation(states.values(), sign) for sign in SIGNS},
        "without a set": {
            left: correlation((each for name, each in states.items() if not name.startswith(left)), "score")
            for left in sets
        },
        "grades by ARI": graded((each["score"], each["ari"]) for each in states.values()),
        "clusters": len(clusters),
        "correlation of clusters with their ARI": float(spearmanr(clusters)[0]),
        "grades of clusters by ARI": graded(clusters),
        "seconds at most": max(each["seconds"] for each in states.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=IMAGES")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    arguments = parser.parse_args()
    sets = {NOISE: ""} | dict(each.split("=", 1) for each in arguments.sets)
    make(sets, arguments.weights, arguments.cache)
    states = table(arguments.cache)
    right = {name: each for name, each in states.items() if each["k"] == each["classes"]}
    found = {"right k": summary(right), "right and wrong k": summary(states)}
    print(json.dumps(found, indent=1))
    short = {name: {key: round_to(each[key], 4) for key in ("nmi", "ari", *SIGNS)} for name, each in states.items()}
    save("confidence", {**found, "by state": short})


if __name__ == "__main__":
    main()
