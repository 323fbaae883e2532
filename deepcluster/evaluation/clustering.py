"""Protocol ``clustering``: agreement of clusters and labels by accuracy, NMI, AMI and ARI, with chance levels."""

from collections.abc import Iterator, Sequence

import torch

from deepcluster.clustering.agreement import scores
from deepcluster.errors import DataError
from deepcluster.evaluation.common import NamedFigure
from deepcluster.evaluation.options import ClusteringOptions
from deepcluster.seeding import generator


def clustering(
    clusters: Sequence[int],
    labels: Sequence[str],
    options: ClusteringOptions | None = None,
    *,
    seed: int = 0,
) -> Iterator[NamedFigure]:
    """Yield ``acc``, ``nmi`` (geometric mean), ``ami`` and ``ari``, then their ``_chance``: for shuffled labels.

    Args:
        clusters: Of the images.
        labels: Of the images; "": none.
        options: None: the defaults.
        seed: Seed of the shuffles.

    Raises:
        DataError: No image has a label.
    """
    options = options or ClusteringOptions()
    labelled = [i for i, label in enumerate(labels) if label]
    if not labelled:
        raise DataError("no image that has a cluster has a label: check --labels")
    truth, assigned = [labels[i] for i in labelled], [clusters[i] for i in labelled]

    yield from {"images": len(truth), "classes": len({*truth}), "clusters": len({*assigned})}.items()
    yield from scores(truth, assigned).items()
    drawn = []
    for i in range(options.shuffles):
        order = torch.randperm(len(truth), generator=generator(seed, "chance", i)).tolist()
        drawn.append(scores([truth[j] for j in order], assigned))
    if drawn:
        yield from ((f"{name}_chance", sum(result[name] for result in drawn) / len(drawn)) for name in drawn[0])
