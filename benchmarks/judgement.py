"""How right is the program about its own result? Judgements on cached features; labels and other sets only judge them.

    python benchmarks/judgement.py CACHE outliers NAME [NAME ...] [--images 300 600 1500 3000] [--seeds 0 1 2]
                                                   [--alike NAME,NAME]
    python benchmarks/judgement.py CACHE hints NAME [NAME ...]

`sets.py` makes CACHE/NAME.pt. Every constant is chosen on all other sets, and the figures of a set are by the constants
chosen without it.

outliers: N images of each set are fitted and 300 kept aside; false alarms are the share of these that is flagged.
Strangers are 60 images of each other set (not of one that is --alike, such as two sets of digits), or the images of
every third class of the set, which is then fitted without them (hard, because they are of the same kind). `within`:
strangers are 2 % of the images of the fit itself.

hints: the hints for names of clusters, and how often one is right; as many clusters as classes and twice as many. The
right words of a class are in hint_words.json; "dog*" is a dog or any word below it in WordNet. Classes that the network
cannot name have few words, so a hint for them is wrong.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import parser_of, save
from sets import LITE0, installed, load, plainly_reduced
from torch import Tensor

from deepcluster.clustering.outliers import Outliers, fit_outliers, limit_of
from deepcluster.clustering.whitening import Preparation
from deepcluster.groups.cut import cut_features, placement_of
from deepcluster.nets.timm import nouns
from deepcluster.report import hints

HELD_OUT, STRANGERS = 300, 60
TAILS = (1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.5)
MAX_FALSE_ALARMS = 0.0075  # a tail is the one that finds most among those with so many false alarms in the mean
Features = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trial:
    """Residuals of the images of a fit, of others of the same set, of strangers, and of strangers inside the fit."""

    fitted: Tensor
    held_out: Tensor
    strangers: Tensor
    within: Tensor


def shuffled(x: Tensor, seed: int) -> Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]


def fit(rows: Tensor) -> Outliers:
    return fit_outliers(rows, Preparation(root=True))


def others(sets: Features, name: str, alike: Sequence[str], seed: int) -> Tensor:
    """Images of the other sets: half of them are strangers, half may be put into a fit."""
    near = alike if name in alike else ()
    return torch.cat([shuffled(sets[other][0], seed)[: 2 * STRANGERS] for other in sets if other not in (name, *near)])


def of_other_sets(sets: Features, name: str, count: int, seed: int, alike: Sequence[str], dirty: float) -> Trial:
    features = shuffled(sets[name][0], seed)
    held_out, fitted = features[:HELD_OUT], features[HELD_OUT:][:count]
    strange = others(sets, name, alike, seed).unflatten(0, (-1, STRANGERS))
    inside = shuffled(strange[1::2].flatten(0, 1), seed)[: round(dirty * len(fitted))]
    judge = fit(shuffled(torch.cat([fitted, inside]), seed))
    residuals = [judge.residuals(rows) for rows in (fitted, held_out, strange[::2].flatten(0, 1), inside)]
    return Trial(*residuals) if not dirty else Trial(torch.cat([residuals[0], residuals[3]]), *residuals[1:])


def of_other_classes(sets: Features, name: str, count: int, seed: int) -> Trial:
    features, labels = (shuffled(column, seed) for column in sets[name])
    strange = labels % 3 == 0
    held_out, fitted = features[~strange][:HELD_OUT], features[~strange][HELD_OUT:][:count]
    judge = fit(fitted)
    residuals = [judge.residuals(rows) for rows in (fitted, held_out, features[strange][:300])]
    return Trial(*residuals, within=torch.empty(0))


def scores(trial: Trial, tail: float) -> dict[str, float]:
    limit = limit_of(trial.fitted, tail)
    columns = {"found": trial.strangers, "false_alarms": trial.held_out, "within": trial.within}
    return {name: (rows > limit).double().mean().item() for name, rows in columns.items() if len(rows)}


def averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: mean(row[name] for row in rows) for name in rows[0]}


def chosen(trials: dict[str, list[Trial]], names: Sequence[str]) -> float:
    """The tail that finds most strangers of the sets ``names`` with few false alarms."""
    figures = {tail: averaged([scores(trial, tail) for name in names for trial in trials[name]]) for tail in TAILS}
    few = [tail for tail in TAILS if figures[tail]["false_alarms"] <= MAX_FALSE_ALARMS]
    return max(few, key=lambda tail: figures[tail]["found"])


def summary(by_set: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean and the worst of the sets, and the figures of each."""
    rows = list(by_set.values())
    worst = {name: (max if name == "false_alarms" else min)(row[name] for row in rows) for name in rows[0]}
    shown = {"mean": averaged(rows), "worst": worst, **by_set}
    return {key: {name: round(value, 4) for name, value in row.items()} for key, row in shown.items()}


def outliers(cache: Path, arguments: argparse.Namespace) -> None:
    contents = {name: load(cache / f"{name}.pt") for name in arguments.names}
    sets: Features = {name: (content["whole"], content["labels"]) for name, content in contents.items()}

    def of_sets(dirty: float) -> Callable[[str, int, int], Trial]:
        return lambda name, count, seed: of_other_sets(sets, name, count, seed, arguments.alike, dirty)

    def of_classes(name: str, count: int, seed: int) -> Trial:
        return of_other_classes(sets, name, count, seed)

    def trials(make: Callable[[str, int, int], Trial], count: int) -> dict[str, list[Trial]]:
        return {name: [make(name, count, seed) for seed in arguments.seeds] for name in sets}

    easy = {count: trials(of_sets(0), count) for count in arguments.images}
    every = {name: [trial for count in arguments.images for trial in easy[count][name]] for name in sets}
    tails = {name: chosen(every, [other for other in sets if other != name]) for name in sets}
    results: dict[str, Any] = {"tail by all sets": chosen(every, [*sets]), "tails": tails}

    def judge(title: str, trials: dict[str, list[Trial]]) -> None:
        results[title] = summary(
            {name: averaged([scores(trial, tails[name]) for trial in many]) for name, many in trials.items()}
        )
        print(title, {key: results[title][key] for key in ("mean", "worst")}, flush=True)

    print(results, flush=True)
    for count in arguments.images:
        judge(f"{count}, other sets, frozen", easy[count])
        judge(f"{count}, 2 % within, frozen", trials(of_sets(0.02), count))
        judge(f"{count}, other classes, frozen", trials(of_classes, count))
    save("judgement_outliers", results)


CLEAR = (0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.25, 0.3)
MIN_RIGHT = 0.85  # share of the hinted words of the other sets


def is_right(hint: str, words: Sequence[str]) -> bool:
    def same(one: str, word: str) -> bool:
        name, wanted = f" {one.lower()}", f" {word.lower()}"
        return name.endswith(wanted) or wanted.endswith(name)

    true = {plain: "*" in word for word in words for plain in (word.rstrip("*"), hints.everyday(word.rstrip("*")))}
    return any(
        same(one, word) for word, below in true.items() for one in [hint, *hints.above(hint)][: None if below else 1]
    )


def hinted(cache: Path, arguments: argparse.Namespace) -> None:
    """How many clusters get hints for a name, and how often are they right, by lists of words made before?"""
    words = json.loads((Path(__file__).parent / "hint_words.json").read_text(encoding="utf-8"))
    counts: dict[str, dict[float, Counter[str]]] = {}
    network = installed()
    for name in arguments.names:
        content = load(cache / f"{name}.pt")
        labels, kinds = content["labels"], len(content["labels"].unique())
        pairs = nouns(LITE0, network.classifier, content["whole"])
        rows = [{"path": str(i), "noun": noun, "probability": str(value)} for i, (noun, value) in enumerate(pairs)]
        known = hints.weighted_nouns(rows)
        reduced = plainly_reduced(network, content, kinds)
        counts[name] = {clear: Counter() for clear in CLEAR}
        for factor in (1, 2):
            cut = cut_features(reduced, max(2, round(factor * kinds)))
            placed = placement_of(reduced, cut, cut.centroids[:1])
            for number in range(cut.count):
                inside = torch.nonzero(placed.cluster == number).flatten()
                if len(inside) < hints.MIN_HINTED:
                    continue
                typical = inside[placed.distance[inside].argsort(stable=True)[: len(inside) // 2]]
                true = words[name][sorted(words[name])[int(torch.bincount(labels[inside]).argmax())]]
                for clear, count in counts[name].items():
                    right = [
                        is_right(hint, true)
                        for hint in hints.fitting_words([known[str(i)] for i in typical.tolist()], clear)
                    ]
                    count.update(
                        clusters=1, shown=bool(right), right=any(right), words=len(right), right_words=sum(right)
                    )
    by_clear = {clear: sum((of_set[clear] for of_set in counts.values()), Counter()) for clear in CLEAR}
    chosen = {}
    for name in counts:
        rest = {clear: total - counts[name][clear] for clear, total in by_clear.items()}
        chosen[name] = min(
            (clear for clear in CLEAR if rest[clear]["right_words"] >= MIN_RIGHT * rest[clear]["words"]),
            default=CLEAR[-1],
        )
    left_out = {name: counts[name][clear] for name, clear in chosen.items()}
    by_set = {name: {**count, "clear": chosen[name]} for name, count in left_out.items()}
    total = {"sets": "all_left_out", **sum(left_out.values(), Counter())}
    save("judgement_hints", {"total": total, "by_clear": by_clear, "by_set": by_set})


def main() -> None:
    parser = parser_of(__doc__, seeds=(0, 1, 2))
    parser.add_argument("cache", type=Path)
    judgements = {"outliers": outliers, "hints": hinted}
    parser.add_argument("judgement", choices=judgements)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--images", type=int, nargs="+", default=[300, 600, 1500, 3000])
    parser.add_argument("--alike", type=lambda text: text.split(","), default=[])
    arguments = parser.parse_args()
    judgements[arguments.judgement](arguments.cache, arguments)


if __name__ == "__main__":
    main()
