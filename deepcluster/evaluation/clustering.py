"""Protocol ``clustering``: do clusters and labels agree? Accuracy, NMI, AMI and ARI, each with its chance level."""

from collections.abc import Iterator, Sequence

import torch

from deepcluster.clustering.agreement import scores
from deepcluster.errors import DataError
from deepcluster.evaluation.common import NamedFigure, Once, anew
from deepcluster.evaluation.options import ClusteringOptions
from deepcluster.seeding import generator


def clustering(
    clusters: Sequence[int],
    labels: Sequence[str],
    options: ClusteringOptions | None = None,
    *,
    seed: int = 0,
    once: Once = anew,
) -> Iterator[NamedFigure]:
    """``acc``, ``nmi`` (geometric mean), ``ami``, ``ari`` of the clusters of images against their labels ("": none),
    and ``*_chance``: the same for the labels in another order, the mean of several.

    Raises DataError where no image has a label.
    """
    options = options or ClusteringOptions()
    known = [i for i, label in enumerate(labels) if label]
    if not known:
        raise DataError("no image that has a cluster has a label: check --labels")
    truth, found = [labels[i] for i in known], [clusters[i] for i in known]

    def by_chance() -> dict[str, float]:
        drawn = []
        for i in range(options.shuffles):
            order = torch.randperm(len(truth), generator=generator(seed, "chance", i)).tolist()
            drawn.append(scores([truth[j] for j in order], found))
        return {f"{name}_chance": sum(each[name] for each in drawn) / len(drawn) for name in drawn[0]}

    yield from {"images": len(truth), "classes": len({*truth}), "clusters": len({*found})}.items()
    yield from once("agreement", lambda: scores(truth, found)).items()
    if options.shuffles > 0:
        yield from once("chance", by_chance).items()
