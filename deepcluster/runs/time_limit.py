"""How long a run takes, and how many of its rounds fit into a time limit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from deepcluster.images import Source
from deepcluster.images.store import read_once
from deepcluster.learning.features import extract
from deepcluster.nets.network import Network
from deepcluster.recipe import Recipe

KEPT_BACK = 0.05  # share of the limit left unplanned, as a safety margin
# Seconds of the files of a result (graph, cut, signs, tree, map, report), and for each image with its digest and the
# search for duplicates. Measured on one core with 1,000 to 10,000 images; only until the first result is written.
RESULT, RESULT_EACH = 8.0, 1.5e-3
SHARE_OF_TIME = 0.1  # of preliminary results after the first: at most one per ten times its own cost
BACKWARD = 3.0  # a training step in forward passes
TRIAL = 32  # images that are read, and seen by the network, to tell how long all take


@dataclass(frozen=True)
class Pace:
    """Seconds for an image: to read it, and for its features."""

    reading: float
    features: float

    def shared(self, ranks: int) -> "Pace":
        """Of all ranks together, where each reads its share."""
        return Pace(self.reading / ranks, self.features / ranks)


def first_result(pace: Pace, count: int) -> float:
    """Seconds until the first result."""
    return count * (pace.reading + pace.features + RESULT_EACH) + RESULT


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


class TimeLimit:
    """The number of whole rounds in a time limit, planned again after each round.

    Args:
        seconds: The limit of the whole run; None: there is none.
        elapsed: Tells the seconds of the run so far.
        most: The rounds of the recipe.

    Attributes:
        rounds: The number of rounds planned, those done included.
        end: The seconds of the whole run by this plan.
    """

    def __init__(self, seconds: float | None, elapsed: Callable[[], float], most: int):
        self.seconds, self.elapsed, self.most = seconds, elapsed, most
        self.rounds, self.end = most, math.inf

    def plan(self, done: int, round: float, result: float) -> None:
        """Plan the rounds after the first ``done``.

        Args:
            done: The number of rounds done.
            round: Seconds of a round, and of what belongs to it.
            result: Seconds of the results that must be written whatever the number of rounds.
        """
        if self.seconds is None:
            return
        left = (1 - KEPT_BACK) * self.seconds - self.elapsed() - result
        self.rounds = min(self.most, done + max(0, math.floor(left / max(1e-9, round))))
        self.end = self.elapsed() + result + (self.rounds - done) * round


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``1.5 h``."""
    unit, name = next(
        (unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 1.5 * unit or unit == 1
    )
    return f"{seconds / unit:.{0 if seconds >= 10 * unit or unit == 1 else 1}f} {name}"
