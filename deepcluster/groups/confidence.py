"""Can the groups be trusted? What can be said without labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.agreement import ari
from deepcluster.groups.choose_k import ROWS, stability
from deepcluster.groups.cut import cut, place
from deepcluster.seeding import derive, generator

LEAST_ROWS = 30
LEAST_WIDTH = 16  # numbers of a row: groups may show in few of them, and then half of these tell nothing
LEAST_EACH = 2  # rows of the sample for each group, on average: of a lone row no neighbour can share the group
MOST_WEAKER = 3  # groups, that are named
# Of few images the halves of the features agree less, however good the groups are: by about the power LESS of their
# number (200 to 1,000 images of five sets by a pretrained network, of three by an untrained one; docs/decisions.md).
MANY, LESS = 1000, 0.7
LEAST_OF_GROUP = 10  # rows of the sample, to judge a group alone


@dataclass(frozen=True)
class Grade:
    """A degree of confidence: from which score on, and what it means."""

    word: str
    least: float
    meaning: str


# From the worst to the best. The scores were read off states of runs with known labels, so that an ARI of .1, .3 and .6
# is where the next grade begins (benchmarks/confidence.py).
GRADES = (
    Grade("poor", -math.inf, "hardly better than chance: do not rely on them"),
    Grade("weak", 0.05, "a first sorting: most of them mix several kinds of images"),
    Grade("useful", 0.15, "most of them hold, but some mix several kinds of images"),
    Grade("strong", 0.4, "images that belong together are together, with few exceptions"),
)


def grade(score: float) -> Grade:
    return [each for each in GRADES if score >= each.least][-1]


@dataclass(frozen=True)
class Confidence:
    """How far the groups can be trusted, by a sample of the images.

    stability: How well the cuts of several samples agree, at most 1 (choose_k.py).
    halves: How well the cuts by one and by the other half of the features' numbers agree (ARI), at most 1.
    kept: How well the groups agree with these two cuts (ARI), at most 1.
    by_group: The score of each group alone; None where too few of its rows are in the sample.
    rows: How many images the sample had.
    """

    stability: float
    halves: float
    kept: float
    by_group: Sequence[float | None]
    rows: int

    @property
    def score(self) -> float:
        """Do the groups stay with half of the features (and are they these groups), and with other samples?"""
        return min(1.0, min(self.halves, self.kept) * self.stability * for_few(self.rows))

    @property
    def grade(self) -> Grade:
        return grade(self.score)

    @property
    def grades(self) -> list[str]:
        """The word for each group; empty where nothing can be said."""
        return ["" if score is None else grade(score).word for score in self.by_group]

    @property
    def weaker(self) -> list[int]:
        """The groups of a lower grade than all together, the worst first."""
        scores = {i: score for i, score in enumerate(self.by_group) if score is not None}
        return sorted((i for i in scores if scores[i] < self.grade.least), key=scores.__getitem__)


def confidence_of(reduced: Tensor, cluster: Tensor, *, seed: int = 0) -> Confidence | None:
    """The confidence in the groups ``cluster`` (int64, N) of N x d features (rows of length 1).

    None where nothing can be said: with fewer than two groups, with fewer than ``LEAST_ROWS`` rows or ``LEAST_WIDTH``
    numbers in them, or with so many groups that the sample has fewer than ``LEAST_EACH`` rows for each.
    """
    chosen = torch.randperm(len(reduced), generator=generator(seed, "signs"))[:ROWS]
    rows, groups = reduced[chosen], cluster[chosen]
    count = len(cluster.unique())
    few = len(rows) < max(LEAST_ROWS, LEAST_EACH * count) or rows.shape[1] < LEAST_WIDTH
    if few or len(groups.unique()) < 2:
        return None
    one, other = (cut_again(half, count, derive(seed, "half")) for half in in_halves(rows))
    pairs = (one, other), (groups, one), (groups, other)
    halves, *kept = (ari(*pair) for pair in pairs)
    halves_by_group, *kept_by_group = (ari_by_group(*pair, groups) for pair in pairs)
    by_group = torch.minimum(halves_by_group, torch.stack(kept_by_group).mean(0))
    sizes = torch.bincount(groups, minlength=int(cluster.max()) + 1).tolist()
    stable = stability(rows, count, derive(seed, "stability"))
    return Confidence(
        stable,
        halves,
        mean(kept),
        [
            min(1.0, by_group[i].item() * stable * for_few(len(rows))) if size >= LEAST_OF_GROUP else None
            for i, size in enumerate(sizes)
        ],
        len(rows),
    )


def for_few(rows: int) -> float:
    """What a score of so few rows is multiplied by, to compare with one of many."""
    return float(max(1.0, MANY / max(1, rows)) ** LESS)


def cut_again(rows: Tensor, count: int, seed: int) -> Tensor:
    """The ``count`` groups that the rows have by themselves."""
    parts = cut(rows, count, seed=seed)
    return place(rows, parts, parts.centroids[:1]).cluster


def in_halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 of every other number, by turns: as principal components come by size, the halves are alike."""
    return F.normalize(rows[:, ::2], dim=1), F.normalize(rows[:, 1::2], dim=1)


def ari_by_group(one: Tensor, other: Tensor, groups: Tensor) -> Tensor:
    """The part that the rows of each group have in the adjusted Rand index of ``one`` and ``other``.

    Of all pairs of a row of the group and any other row: are they together in both? (With all rows in one group: ARI.)
    """
    table = torch.zeros(int(one.max()) + 1, int(other.max()) + 1, dtype=torch.float64)
    table.index_put_((one, other), torch.ones((), dtype=torch.float64), accumulate=True)
    both = table[one, other] - 1
    here, there = table.sum(1)[one] - 1, table.sum(0)[other] - 1
    by_chance = (here * there.mean() + there * here.mean()) / (2 * max(1, len(one) - 1))
    parts = torch.stack([both - by_chance, (here + there) / 2 - by_chance])
    found, most = torch.zeros(2, int(groups.max()) + 1, dtype=torch.float64).index_add_(1, groups, parts)
    part: Tensor = found / most.clamp(min=1e-9)
    return part


def confidence_text(confidence: Confidence | None) -> str:
    """Whether the groups can be trusted, in plain sentences."""
    if confidence is None:
        return "Too few images, groups, images in a group or numbers in a feature to say how far to trust the groups."
    grade, weaker = confidence.grade, confidence.weaker
    same = min(confidence.halves, confidence.kept)
    few = f"; with only {confidence.rows} images both are low, and the grade is rough" if confidence.rows < MANY else ""
    text = (
        f"The groups are {grade.word}, {grade.meaning} (cut from either half of the features they agree to {same:.0%},"
        f" from other samples to {confidence.stability:.0%}; chance is 0%{few})."
    )
    if not weaker:
        return text
    return f"{text} Weakest: {'clusters' if weaker[1:] else 'cluster'} {', '.join(map(str, weaker[:MOST_WEAKER]))}."


def next_step(grade: Grade, *, has_weights: bool, n_clusters: int | None, other: int | None = None) -> tuple[str, str]:
    """What makes the most of groups of this grade: a sentence, and the command for it.

    Args:
        grade: Of all groups.
        has_weights: Whether the features are of a network that had learnt from other images, or from elsewhere.
        n_clusters: The number of groups that was asked for; None: it was chosen.
        other: Another number that is plausible.

    Returns:
        In the command RUN and IMAGES stand for the run and its images.
    """
    fit = f"deepcluster fit IMAGES{'' if n_clusters is None else f' -k {n_clusters}'} --backbone"
    match grade.word, has_weights:
        case "poor" | "weak", False:
            return "Start from a network that knows photographs; more rounds alone help less.", f"{fit} photos-small"
        case "poor", True:
            return "Another network may see what this one does not.", f"{fit} photos-ssl"
        case "weak", True:
            number = "auto" if n_clusters is not None else other or "N"
            return "Another number of groups may fit better.", f"deepcluster recut RUN -k {number}"
        case "useful", _:
            advice = "Look at the borderline images in the report, and correct them there."
            return advice, "deepcluster apply RUN edits.json"
    return "Name the groups in the report.", "deepcluster predict RUN NEW_IMAGES"
