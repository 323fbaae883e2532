"""The images whose features the main rank decides by: all of a run, or a sample of very many."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.groups.neighbour_graph import SAMPLE
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import draw, generator


@dataclass(frozen=True)
class Sample:
    """Rows of N x d features that are in one place.

    rows: Their numbers among all (int64, M, ascending), on every rank.
    reduced: The features (M x d), on the main rank; none on the others.
    """

    rows: Tensor
    reduced: Tensor


def sample_of(reduced: Tensor, partition: Partition, seed: int) -> Sample:
    """The sample of this and the other ranks' features, the same for any number of ranks: all rows, or ``SAMPLE``."""
    if partition.total <= SAMPLE:
        return Sample(torch.arange(partition.total), partition.gather(reduced))
    rows = draw(partition.total, SAMPLE, generator(seed, "sample of the result")).sort().values
    return Sample(rows, partition.to_main(reduced, rows))
