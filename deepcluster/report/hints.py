"""Hints for the name of a cluster: nouns that the network knows. Only a person makes one a name."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from deepcluster.storage.content import Row, Table
from deepcluster.texts import number

HINTS = 2  # special words, beside a more general one
MIN_HINTED = 10  # images of a cluster with a noun
CLEAR = 0.16  # weight of a word: its mean probability times the collection's mean certainty (benchmarks/judgement.py)


@cache
def _table(name: str) -> Mapping[str, str]:
    table: dict[str, str] = json.loads((files("deepcluster.report") / name).read_text(encoding="utf-8"))
    return table


def above(noun: str) -> list[str]:
    """Return the words more general than a noun, the most general last (WordNet, by benchmarks/hypernyms.py)."""
    words = []
    while noun := _table("hypernyms.json").get(noun, ""):
        words.append(noun)
    return words


def everyday(word: str) -> str:
    """Return the everyday word for a rare one, or the word itself."""
    return _table("plain_words.json").get(word, word)


def chinese(hint: str) -> str:
    """Return the Chinese of a hint; empty if it is a rare word."""
    return _table("chinese_words.json").get(hint, "")


def weighted_nouns(nouns: Sequence[Row]) -> dict[str, tuple[str, float]]:
    """Return the noun of each image and its weight, by path, for rows of nouns.csv.

    The weight is the noun's probability times the mean probability over the collection: a network that does not know
    most of a collection is also wrong about the images of which it is sure.
    """
    rows = [(row["path"], row["noun"], number(row["probability"]) or 0.0) for row in nouns]
    certainty = sum(probability for _, _, probability in rows) / max(1, len(rows))
    return {path: (noun, probability * certainty) for path, noun, probability in rows}


def hints(rows: Table, noun_of: Mapping[str, tuple[str, float]]) -> list[str]:
    """Return up to three hints for a cluster of these images, none if no word is clear. Its nearer half counts.

    ``noun_of`` is of :func:`weighted_nouns`.
    """
    known = rows.at([i for i, path in enumerate(rows.column("path")) if path in noun_of])
    if len(known) < MIN_HINTED:
        return []
    distances = np.array([number(cell) or 0.0 for cell in known.column("distance")])
    typical = known.at(np.argsort(distances, kind="stable")[: len(known) // 2])
    return fitting_words([noun_of[path] for path in typical.column("path")])


def fitting_words(known: Sequence[tuple[str, float]], clear: float = CLEAR) -> list[str]:
    """Return plain words for weighted nouns: the most special ones whose mean weight is clear, and one above them."""
    weights: dict[str, float] = defaultdict(float)
    for noun, weight in known:
        for word in (noun, *above(noun)):
            weights[word] += weight / len(known)
    words = [word for word in weights if weights[word] > clear]
    general = {word for special in words for word in above(special)}
    special = sorted((word for word in words if word not in general), key=lambda word: -weights[word])[:HINTS]
    shared = [word for word in general if all(word in above(other) for other in special)]
    closest = sorted(shared, key=lambda word: -len(above(word)))[:1]
    return list(dict.fromkeys(map(everyday, [*special, *closest])))
