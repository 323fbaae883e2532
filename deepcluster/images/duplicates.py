"""Near-duplicates: images that are the same picture again, saved anew, smaller, or a little brighter.

Pairs are looked for among images whose difference hashes (which of two neighbouring patches is lighter, 64 bits) are
close in sorted order, and are then compared as small pictures. Measured on CIFAR-10, flowers and steel defects: JPEGs
saved anew with quality 75 are apart by at most .07, those at 2/3 of their size by .08 (.25 at 32 px); 99 % of images
are apart by .24 or more from every other, and of the rest all below .1 are true copies.
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
FAINTEST = 4.0  # grey levels: below this standard deviation a picture is plain, and noise is no difference
WINDOW = 32  # neighbours in sorted order that are compared
BITS = 8  # of 64 that may differ: JPEG of quality 75 changes up to 5
TURNS = (0, 16, 32, 48)  # the hash is sorted with each of its quarters in front: up to 3 wrong bits leave one right
CHUNK = 512


def near_duplicates(images: Tensor, partition: Partition | None = None) -> list[list[tuple[int, float]]]:
    """Groups of (row, distance) of nearly identical images among uint8 N x 3 x S x S, by their first rows.

    The distance is that to the first image of the group: the root mean square difference as a share of the contrast.
    ``partition``: which rank has which images; the main rank gets the small pictures of all, and finds the groups.
    """
    partition = partition or Partition.single(len(images))
    parts = [_seen(part) for part in images.split(CHUNK)]
    small, hashes, spread = (partition.gather(torch.cat(each)) for each in zip(*parts, strict=True))
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
    groups: dict[int, list[int]] = {}
    for i in np.unique(np.concatenate([row, column])).tolist():
        groups.setdefault(int(component[i]), []).append(i)
    found = []
    for rows in groups.values():
        distances = apart(torch.full((len(rows),), rows[0]), torch.tensor(rows))
        found.append(list(zip(rows, distances.tolist(), strict=True)))
    return found


def _seen(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each image the small picture (uint8), the hash (64 bits as uint8 x 8: is each of 8 x 8 patches darker than its
    right neighbour?) and the standard deviation of the small picture, at least ``FAINTEST``."""
    small = interpolate(images.float(), size=(SIDE, SIDE), mode="area")
    grey = interpolate(small.mean(1, keepdim=True), size=(8, 9), mode="area")[:, 0]
    darker = (grey[:, :, 1:] > grey[:, :, :-1]).flatten(1).numpy()
    flat = small.flatten(1)
    return flat.round().byte(), torch.from_numpy(np.packbits(darker, axis=1)), flat.std(1).clamp(min=FAINTEST)


def _candidates(hashes: npt.NDArray[np.uint64], light: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs of rows (n x 2) with hashes that are alike, and near in one of the sorted orders: of equal ones, those of
    equal light."""
    for turn in TURNS:
        turned = (hashes << np.uint64(turn)) | (hashes >> np.uint64((64 - turn) % 64)) if turn else hashes
        order = np.lexsort((light, turned))
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            near = np.bitwise_count(turned[order[:-step]] ^ turned[order[step:]]) <= BITS
            yield np.stack([order[:-step][near], order[step:][near]], 1)
