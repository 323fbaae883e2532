"""Which parts of the paper's recipe matter? One factor at a time, over seeds; the labels only score.

    python benchmarks/ablation.py TRAIN TEST [--settings NAME ...] [--seeds 0 1 2]

Recipe v1 (Caron et al. 2018) as far as it runs on one core: CIFAR-10 class folders, 5,000 images of TRAIN chosen by
the seed, 6 passes over them, K = 100, batches of 64, and the compact network, its first convolution halving the image,
behind the paper's Sobel filter in place of AlexNet. Everything else is v1's. A setting changes one thing. The settings
that begin with ``tail`` have classes of unequal size: 2,000 images of the first, 20 of the last, exponential between.

Measured after the last pass, by the labels: accuracy on 2,000 images of TEST, of a linear classifier (logistic
regression on standardised features, classes weighted equally; `change`: less that of the setting it departs from) and
of the vote of 20 neighbours; ACC and NMI of k-means with k = 10; neighbours and k-means by features of whitening 0.5
and length 1. Without labels, of the last clustering trained on: NMI to the one before, share of the largest cluster.
`seen` is the share of the images that an epoch draws, on average.

results/ablation.json grows by every run, and a run in it is not repeated. The algorithm is called, not the command,
because draws are counted and the command has no Sobel filter for this network.
"""

import sys
from pathlib import Path
from runpy import run_path
from statistics import mean
from typing import Any

import torch
from common import labelled, parser_of, runs_of, save, vote_accuracy
from torch import Tensor, nn

from deepcluster.algorithm import alternate
from deepcluster.clustering import agreement
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.whitening import Reduction, whiten
from deepcluster.learning.draws import each_once, official_draws, uniform_over_clusters
from deepcluster.learning.features import extract
from deepcluster.learning.heads import CentroidHead
from deepcluster.learning.training import Learning, Sampler
from deepcluster.nets.network import Network
from deepcluster.nets.paper import sobel_filter
from deepcluster.nets.small import WIDTH, Compact
from deepcluster.records import Round
from deepcluster.seeding import derive, generator

SIZE, COUNT, TESTED, PASSES = 32, 5000, 2000, 6
LARGEST, RATIO = 2000, 100  # of unequal classes: images of the first, and how many times those of the last
SAMPLERS: dict[str, Sampler] = {"uniform": uniform_over_clusters, "official": official_draws, "none": each_once}
POWER_ITERATION = run_path(str(Path(__file__).parents[1] / "examples/research/pic.py"))["power_iteration"]
# Changed arguments of alternate, and of Learning (head, epochs); sobel, sampling and tail are this script's own.
SETTINGS: dict[str, dict[str, Any]] = {
    "v1": {},
    "untrained": {"rounds": 0},
    "untrained, sobel off": {"rounds": 0, "sobel": False},
    "sampling official": {"sampling": "official"},
    "sampling none": {"sampling": "none"},
    "tail, v1": {"tail": True},
    "tail, sampling official": {"tail": True, "sampling": "official"},
    "tail, sampling none": {"tail": True, "sampling": "none"},
    "K 1000": {"clusters": 1000},
    "K 30": {"clusters": 30},
    "K 300": {"clusters": 300},
    "whitening 0.5": {"reduction": Reduction(whitening=0.5)},
    "whitening 0": {"reduction": Reduction(whitening=0.0)},
    "no reduction": {"reduction": Reduction(dims=None)},
    "sobel off": {"sobel": False},
    "head frozen means": {"head": CentroidHead(0.1)},
    "PIC": {"clustering": POWER_ITERATION},
    "PIC, sampling official": {"clustering": POWER_ITERATION, "sampling": "official"},
    "PIC, sampling none": {"clustering": POWER_ITERATION, "sampling": "none"},
    "2 epochs a round": {"epochs": 2},
    "3 epochs a round": {"epochs": 3},
    "K 1000, sampling official": {"clusters": 1000, "sampling": "official"},
    "K 1000, sampling none": {"clusters": 1000, "sampling": "none"},
}


def run(images: Tensor, labels: Tensor, tests: Tensor, truth: Tensor, seed: int, how: dict[str, Any]) -> dict[str, Any]:
    """Run one setting with one seed and return its measures."""
    how = {"clusters": 100, "epochs": 1, **how}
    rows = chosen(labels, seed, tail=how.pop("tail", False))
    images, labels = images[rows], labels[rows]
    network = network_of(seed, sobel=how.pop("sobel", True))
    sample = SAMPLERS[how.pop("sampling", "uniform")]
    drawn_shares: list[float] = []

    def counted(numbers: Tensor, count: int, random: torch.Generator) -> Tensor:
        drawn = sample(numbers, count, random)
        drawn_shares.append(len(drawn.unique()) / len(numbers))
        return drawn

    last: Round | None = None
    rounds = how.pop("rounds", PASSES // how["epochs"])
    options = {name: how.pop(name) for name in ("epochs", "head") if name in how}
    learning = Learning(batch_size=64, sample=counted, **options)
    of_rounds = alternate(network, images, rounds=rounds, seed=seed, learning=learning, patience=PASSES, **how)
    for last in of_rounds:  # noqa: B007
        pass
    measures = scores(network, images, labels, tests, truth, seed)
    if last is not None:
        measures |= {"largest_share": last.clustering.largest_share, "nmi_previous": last.nmi_previous}
        measures["seen"] = mean(drawn_shares)
    return measures


def chosen(labels: Tensor, seed: int, *, tail: bool) -> Tensor:
    """Return rows of as many images of each class, or exponentially fewer from class to class, chosen by the seed."""
    classes = int(labels.max()) + 1
    sizes = [round(LARGEST * RATIO ** (-c / (classes - 1))) if tail else COUNT // classes for c in range(classes)]
    random = generator(seed, "subset")
    parts = [torch.nonzero(labels == c).flatten() for c in range(classes)]
    parts = [part[torch.randperm(len(part), generator=random)[:size]] for part, size in zip(parts, sizes, strict=True)]
    rows = torch.cat(parts)
    # Mixed, as the released sampler depends on the order of the images.
    return rows[torch.randperm(len(rows), generator=random)]


def network_of(seed: int, *, sobel: bool) -> Network:
    random = generator(seed, "network")
    body: nn.Sequential = Compact(2 * SIZE, random)  # the size at which its first convolution halves
    if sobel:
        first = nn.Conv2d(2, WIDTH, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu", generator=random)
        body[0][0] = first  # type: ignore[index]
        body = nn.Sequential(sobel_filter(), body)
    return Network(body, 8 * WIDTH).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


# ---- measures -------------------------------------------------------------------------------------------------------


def scores(
    network: Network, images: Tensor, labels: Tensor, tests: Tensor, truth: Tensor, seed: int
) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression

    known, asked = extract(network, images), extract(network, tests)
    centre, scale = known.mean(0), known.std(0).clamp(min=1e-6)
    classifier = LogisticRegression(C=0.1, max_iter=500, class_weight="balanced").fit(
        ((known - centre) / scale).numpy(), labels.numpy()
    )
    linear = classifier.score(((asked - centre) / scale).numpy(), truth.numpy())
    reduction = whiten(known, 256, 0.5)
    rows, queries = reduction(known), reduction(asked)
    clusters = kmeans(rows, int(labels.max()) + 1, seed=derive(seed, "groups"), iterations=50).labels
    return {
        "linear": float(linear),
        "knn": vote_accuracy(rows, labels, queries, truth),
        "acc": agreement.scores(labels, clusters)["acc"],
        "nmi": agreement.nmi(labels, clusters),
    }


# ---- the comparison -------------------------------------------------------------------------------------------------


def changed_from(setting: str) -> str:
    """Return the setting that differs from ``setting`` in one thing; "" for v1."""
    of, comma, _ = setting.partition(", sampling")
    return ("tail, v1" if of == "tail" else of) if comma else "v1" if setting not in ("v1", "tail, v1") else ""


def main() -> None:
    parser = parser_of(__doc__, seeds=(0, 1, 2))
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options = parser.parse_args()
    for setting, seed in ((setting, seed) for setting in options.settings for seed in options.seeds):
        done = {(row["setting"], row["seed"]): row for row in runs_of("ablation")}
        if (setting, seed) in done:
            continue
        images, labels, _ = labelled(options.train, SIZE)
        tests, truth, _ = labelled(options.test, SIZE)
        sample = torch.arange(0, len(tests), len(tests) // TESTED)  # the same for all, as many of each class
        row = {
            "setting": setting,
            "seed": seed,
            **run(images, labels, tests[sample], truth[sample], seed, SETTINGS[setting]),
        }
        if known := done.get((changed_from(setting), seed)):
            row["change"] = row["linear"] - known["linear"]
        save("ablation", {"runs": [*runs_of("ablation"), row]})
        print(row, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
