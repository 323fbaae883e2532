"""Hints for the name of a cluster: nouns that the network knows. Only a person makes one a name."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from deepcluster.storage.content import Table
from deepcluster.texts import number

HINTS = 3
MIN_HINTED = 20  # images of a cluster with a noun
CLEAR = 0.12  # mean probability of the hints together (benchmarks/judgement.py)
MOST = 0.6  # share of the probability below a general word


@cache
def _hypernyms() -> Mapping[str, str]:
    """Return the more general word of each noun and of each general word (WordNet, by benchmarks/hypernyms.py)."""
    table: dict[str, str] = json.loads((files("deepcluster.report") / "hypernyms.json").read_text(encoding="utf-8"))
    return table


def above(noun: str) -> list[str]:
    """Return the words more general than a noun, the most general last."""
    words = []
    while noun := _hypernyms().get(noun, ""):
        words.append(noun)
    return words


def hints(rows: Table, noun_of: Mapping[str, tuple[str, float]]) -> list[str]:
    """Return up to three hints for a cluster of these images, none if its nouns are improbable. Its nearer half counts.

    ``noun_of`` has the most probable noun and its probability, by path.
    """
    known = rows.at([i for i, path in enumerate(rows.column("path")) if path in noun_of])
    if len(known) < MIN_HINTED:
        return []
    distances = np.array([number(cell) or 0.0 for cell in known.column("distance")])
    typical = known.at(np.argsort(distances, kind="stable")[: len(known) // 2])
    return fitting([noun_of[path] for path in typical.column("path")])


def fitting(known: Sequence[tuple[str, float]], clear: float = CLEAR) -> list[str]:
    """Return the most probable nouns of images, the last replaced by the most special word above most of them."""
    sums: dict[str, float] = defaultdict(float)
    general: dict[str, float] = defaultdict(float)
    for noun, probability in known:
        sums[noun] += probability
        for word in above(noun):
            general[word] += probability
    nouns = sorted(sums, key=lambda noun: -sums[noun])[:HINTS]
    if sum(sums[noun] for noun in nouns) <= clear * len(known):
        return []
    shared = [word for word in general if general[word] >= MOST * sum(sums.values()) and word not in nouns]
    return [*nouns[: HINTS - 1], max(shared, key=lambda word: len(above(word)))] if shared else nouns
