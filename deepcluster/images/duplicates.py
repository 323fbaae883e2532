"""Near-duplicates: the same picture saved again, smaller, or a little brighter.

Candidates are images whose difference hashes (which of two neighbouring patches is lighter, 64 bits) are close in
sorted order; they are then compared as small pictures. Measured on CIFAR-10, flowers and steel defects: JPEGs saved
again with quality 75 differ by at most .07, those at 2/3 of their size by .08 (.25 at 32 px); 99 % of images differ by
.24 or more from every other, and of the rest all below .1 are true copies.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import interpolate

from deepcluster.runtime.partition import Partition

SIDE = 16  # px of the small pictures
ALIKE = 0.1  # root mean square difference, as a share of the larger standard deviation
FAINTEST = 4.0  # grey levels: a picture with a smaller standard deviation is plain, and its noise does not count
WINDOW = 32  # neighbours in sorted order that are compared
BITS = 8  # of 64 that may differ: JPEG of quality 75 changes up to 5
# Bits by which the hash is rotated before sorting: with up to 3 wrong bits one of its four 16-bit blocks is intact.
TURNS = (0, 16, 32, 48)
CHUNK = 512


def near_duplicates(images: Tensor, partition: Partition | None = None) -> list[list[tuple[int, float]]]:
    """Groups of nearly identical images, in the order of their first rows; none on other ranks than the main rank.

    Args:
        images: uint8 N x 3 x S x S.
        partition: Which rank has which images; default: this one has all.

    Returns:
        (row, distance) for each image of a group. The distance is that to the group's first image: the root mean square
        difference as a share of the contrast.
    """
    partition = partition or Partition.single(len(images))
    signatures = [_signatures(part) for part in images.split(CHUNK)]
    small, hashes, spread = (partition.gather(torch.cat(parts)) for parts in zip(*signatures, strict=True))
    if not partition.processes.is_main:
        return []
    light = torch.cat([part.float().mean(1) for part in small.split(CHUNK)])

    def apart(one: Tensor, other: Tensor) -> Tensor:
        difference = (small[one].float() - small[other].float()).square().mean(1).sqrt()
        return difference / torch.maximum(spread[one], spread[other])

    pairs = [torch.empty(0, 2, dtype=torch.int64)]
    for candidates in _candidates(hashes.numpy().view(np.uint64).ravel(), light.numpy()):
        pairs += [part[apart(*part.T) <= ALIKE] for part in torch.from_numpy(candidates).split(32 * CHUNK)]
    row, column = torch.cat(pairs).numpy().T
    ties = coo_array((np.ones(len(row), bool), (row, column)), (len(small), len(small)))
    _, component = connected_components(ties, directed=False)
    members: dict[int, list[int]] = {}
    for i in np.unique(np.concatenate([row, column])).tolist():
        members.setdefault(int(component[i]), []).append(i)
    groups = []
    for rows in members.values():
        distances = apart(torch.full((len(rows),), rows[0]), torch.tensor(rows))
        groups.append(list(zip(rows, distances.tolist(), strict=True)))
    return groups


def _signatures(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Small pictures, hashes and contrasts of the images.

    Returns:
        N x 3 SIDE² small pictures (uint8); N x 8 bytes of 64 bits (is each of 8 x 8 patches darker than its right
        neighbour?); the standard deviation of each small picture, at least ``FAINTEST``.
    """
    small = interpolate(images.float(), size=(SIDE, SIDE), mode="area")
    grey = interpolate(small.mean(1, keepdim=True), size=(8, 9), mode="area")[:, 0]
    darker = (grey[:, :, 1:] > grey[:, :, :-1]).flatten(1).numpy()
    flat = small.flatten(1)
    return flat.round().byte(), torch.from_numpy(np.packbits(darker, axis=1)), flat.std(1).clamp(min=FAINTEST)


def _candidates(hashes: npt.NDArray[np.uint64], light: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs of rows (n x 2) with similar hashes that are near each other when sorted by rotated hash, then by light."""
    for turn in TURNS:
        turned = (hashes << np.uint64(turn)) | (hashes >> np.uint64((64 - turn) % 64)) if turn else hashes
        order = np.lexsort((light, turned))
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            near = np.bitwise_count(turned[order[:-step]] ^ turned[order[step:]]) <= BITS
            yield np.stack([order[:-step][near], order[step:][near]], 1)
