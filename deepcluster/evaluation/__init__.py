"""Protocols that score features and clusters by labels, and their options. A protocol yields (name, figure).

Nothing here imports torch: the command line checks options before it does.
"""

from dataclasses import dataclass

from deepcluster.recipe import Options, option


@dataclass(frozen=True)
class ClusteringOptions(Options):
    """Options of the protocol ``clustering``."""

    shuffles: int = option(5, "Random orders of the labels, whose mean score is the chance level; 0: none.")


REDUCED = "By the reduced features, by which the run places images; false: the network's own."


@dataclass(frozen=True)
class KnnOptions(Options):
    """Options of the protocol ``knn``."""

    neighbours: str = option("20,200", "Number of neighbours that vote; several numbers give a score each.")
    temperature: float = option(0.07, "A vote weighs exp(cosine / temperature).", low=1e-6, high=1e6)
    reduced: bool = option(True, REDUCED)


@dataclass(frozen=True)
class LinearOptions(Options):
    """Options of the protocol ``linear``."""

    c: float = option(1.0, "C of scikit-learn's LogisticRegression: the inverse of the regularisation.", low=1e-9)
    iterations: int = option(1000, "Iterations of the solver at most.", low=1, high=1e6)
    reduced: bool = option(True, REDUCED)


PROTOCOL_OPTIONS: dict[str, type[Options]] = {
    "clustering": ClusteringOptions,
    "knn": KnnOptions,
    "linear": LinearOptions,
}
