"""What fits into a time limit: how many images, how many rounds, and how much of each round's training.

Only `measured` looks at a clock; everything else turns given seconds into plans.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from deepcluster.images import Source
from deepcluster.images.store import read_once
from deepcluster.learning.features import extract
from deepcluster.nets.backbone import Network
from deepcluster.recipe import Recipe
from deepcluster.records import Work
from deepcluster.seeding import generator

KEPT_BACK = 0.05  # of a limit: nothing is planned for it, as no estimate is exact
# Seconds of the files of a result (graph, cut, signs, tree, map, report), and for each image with its digest and the
# search for duplicates. Measured on one core with 1,000 to 10,000 images; only until the first result is written.
RESULT, RESULT_EACH = 8.0, 1.5e-3
SHARE_OF_TIME = 0.08  # that the preliminary results after the first may take
BACKWARD = 3.0  # a training step in forward passes
LEAST, WORTH = 0.1, 0.5  # shares of a round: less is no round, less than WORTH no reason to begin one more
TRIAL = 32  # images that are read, and seen by the network, to tell how long all take
FEWEST, FEWEST_EACH = 200, 10  # images that are used whatever the limit: in all, and for a group
LEFT_OUT = "left out: it did not fit into --time-limit (deepcluster predict RUN FILE places it)"


@dataclass(frozen=True)
class Pace:
    """Seconds for an image: to read it, and for its features."""

    reading: float
    features: float

    def shared(self, ranks: int) -> "Pace":
        """Of all ranks together, where each reads its share."""
        return Pace(self.reading / ranks, self.features / ranks)


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a run with all its images.

    features: A pass over them.
    clustering: What a round does beside its pass and its training.
    training: The training of a whole round.
    result: The files of a result, from the features on.
    """

    features: float
    clustering: float
    training: float
    result: float


@dataclass(frozen=True)
class Schedule:
    """The rounds that there will be in all, and the share of the training that each of those to come makes."""

    rounds: int
    share: float

    @property
    def text(self) -> str:
        if not self.rounds:
            return "the groups of the network as it was given"
        plural = "" if self.rounds == 1 else "s"
        return f"{self.rounds} round{plural}{'' if self.share == 1 else f' of {self.share:.0%} of the images'}"


def fitting(limit: float, elapsed: float, pace: Pace, count: int, groups: int = 0) -> int:
    """How many of ``count`` images can be read, seen once by the network and put into ``groups`` before the limit."""
    left = (1 - KEPT_BACK) * limit - elapsed - RESULT
    fewest = max(FEWEST, FEWEST_EACH * groups)
    return max(min(count, fewest), min(count, int(left / (pace.reading + pace.features + RESULT_EACH))))


def first_result(pace: Pace, count: int) -> float:
    """Seconds until the first result."""
    return count * (pace.reading + pace.features + RESULT_EACH) + RESULT


def scheduled(left: float, costs: Costs, done: int, most: int) -> Schedule:
    """What fits into ``left`` seconds after the pass of round ``done``, of ``most`` rounds in all.

    A round costs its training, its clustering and the pass after it: that of the next round, or of the result. As many
    whole rounds as fit, and one more where all are then at least ``WORTH`` of one; where not even one fits, a part.
    """
    left, each = left - costs.result, costs.clustering + costs.features
    fit = left / max(1e-9, costs.training + each)
    if fit >= most - done:
        return Schedule(most, 1.0)

    def share(rounds: int) -> float:
        return min(1.0, (left / rounds - each) / max(1e-9, costs.training))

    more = max(1, math.ceil(fit))
    if share(more) >= (LEAST if more == 1 else WORTH):
        return Schedule(done + more, share(more))
    return Schedule(done + max(0, math.floor(fit)), 1.0)


def training_cost(recipe: Recipe, features: float) -> float:
    """Seconds of a round's training, by those of a pass: until they are measured."""
    sides = [recipe.view_size or recipe.image_size] * recipe.views + [recipe.small_size] * recipe.small_views
    return features * recipe.epochs * BACKWARD * sum((side / recipe.image_size) ** 2 for side in sides)


def round_cost(pace: Pace, count: int, recipe: Recipe) -> float:
    """Seconds of a round of ``count`` images: its training, and the pass after it."""
    features = count * pace.features
    return features + training_cost(recipe, features)


def measured(source: Source, network: Network, recipe: Recipe) -> Pace:
    """The pace of this machine just now, by a few images."""
    count = len(source.paths)
    few = [i * count // min(TRIAL, count) for i in range(min(TRIAL, count))]
    begin = time.perf_counter()
    images = read_once(source.rows(few), recipe.store_size, none_is_fine=True).images
    reading = (time.perf_counter() - begin) / len(few)
    if not len(images):
        return Pace(reading, 0.0)
    extract(network, images[:1], size=recipe.image_size, batch_size=1)  # the first call sets up much
    batch = images[torch.arange(min(count, recipe.batch_size)) % len(images)]  # few tiny images are slower, each
    begin = time.perf_counter()
    extract(network, batch, size=recipe.image_size, batch_size=recipe.batch_size)
    return Pace(reading, (time.perf_counter() - begin) / len(batch))


def sample(total: int, count: int, seed: int) -> list[int]:
    """``count`` of ``total`` rows, drawn at random, ascending."""
    return torch.randperm(total, generator=generator(seed, "time limit"))[:count].sort().values.tolist()


def only(source: Source, kept: Sequence[int]) -> Source:
    """The source with these images alone; the others are skipped, and it says why."""
    used = set(kept)
    left_out = ((path, LEFT_OUT) for i, path in enumerate(source.paths) if i not in used)
    return replace(source.rows(kept), skipped=(*source.skipped, *left_out))


class TimeLimit:
    """The rounds of a run under a time limit, planned anew whenever more is known.

    Args:
        seconds: The limit of the whole run; None: there is none.
        elapsed: Tells the seconds of the run so far.
        recipe: Its rounds are the most there may be.
        count: The number of images.
    """

    def __init__(self, seconds: float | None, elapsed: Callable[[], float], recipe: Recipe, count: int):
        self.seconds = math.inf if seconds is None else seconds
        self.elapsed, self.recipe = elapsed, recipe
        self.schedule = Schedule(recipe.rounds, 1.0)
        self.costs = Costs(0.0, 0.0, 0.0, RESULT + count * RESULT_EACH)
        self.round = -1  # the round under way
        self._measured = False  # the cost of a training
        self._begun, self._first = 0.0, 0

    @property
    def left(self) -> float:
        return (1 - KEPT_BACK) * self.seconds - self.elapsed()

    @property
    def text(self) -> str:
        return f"{self.schedule.text}, done after about {in_minutes(min(self.seconds, self.elapsed() + self._planned))}"

    @property
    def _planned(self) -> float:
        rounds = self.schedule.rounds - self.round
        each = self.schedule.share * self.costs.training + self.costs.clustering + self.costs.features
        return max(0, rounds) * each + self.costs.result

    def begin_round(self, round: int, work: Work, result: float) -> None:
        """Plan before the training of a round, from what it has taken so far, and its preliminary ``result``."""
        features = max(work.seconds[0], self.costs.features)
        training = self.costs.training if self._measured else training_cost(self.recipe, features)
        result = max(result, self.costs.result if self.round >= 0 else 0.0) or self.costs.result
        between = work.seconds[1] + min(result, SHARE_OF_TIME * (features + training))  # a preliminary result
        self.costs = Costs(features, between, training, result)
        self.round, self._begun = round, self.elapsed()
        self._first = work.trained.steps if work.trained else 0
        self.schedule = scheduled(self.left, self.costs, round, self.recipe.rounds)

    def measure(self, steps: int, total: int) -> bool:
        """Plan once more when the first ``steps`` of the ``total`` of a training have told how long it takes; returns
        whether it is time for that."""
        made = steps - self._first
        if self._measured or made < max(3, total // 50):
            return False
        spent = self.elapsed() - self._begun
        self.costs, self._measured = replace(self.costs, training=spent / made * total), True
        self.schedule = scheduled(self.left + spent, self.costs, self.round, self.recipe.rounds)
        return True

    def is_enough(self, steps: int, total: int) -> bool:
        """Whether the training of the round ends after ``steps`` of its ``total`` optimizer steps."""
        if self.schedule.rounds <= self.round or self.left <= self.costs.features + self.costs.result:
            return True
        return self.schedule.share < 1 and steps >= self.schedule.share * total

    def end_round(self, done: int) -> None:
        """Plan after the training of a round, before the pass of the next."""
        self.schedule = scheduled(self.left - self.costs.features, self.costs, done, self.recipe.rounds)

    def time(self, time: float) -> tuple[float, int]:
        """The time in rounds for the learning rate, where a part of a training counts as the whole, and all rounds."""
        whole = math.floor(time)
        return whole + min(1.0, (time - whole) / self.schedule.share), max(self.schedule.rounds, whole + 1)


def in_minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
