"""Near-duplicates: the same picture saved again, smaller, or a little brighter.

Candidates are images whose difference hashes (64 bits: the lighter one of two neighbouring patches) are close in
sorted order; they are then compared as small pictures. Measured on CIFAR-10, flowers and steel defects: JPEGs saved
again with quality 75 differ by at most .07, JPEGs at 2/3 of the size by .08 (.25 at 32 px); 99 % of images differ by
.24 or more from every other, and all pairs below .1 are true copies.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE

SIDE = 16  # px of the small pictures
MAX_DISTANCE = 0.1  # root mean square difference, as a share of the larger standard deviation
MIN_CONTRAST = 4.0  # grey levels: below this standard deviation a picture is plain, and its noise does not count
NEIGHBOURS = 32  # neighbours in sorted order that are compared
MAX_WRONG_BITS = 8  # of 64 that may differ: JPEG of quality 75 changes up to 5
# Bits by which the hash is rotated before sorting: with up to 3 wrong bits one of its four 16-bit blocks is intact.
ROTATIONS_BITS = (0, 16, 32, 48)
IMAGES_AT_ONCE = 512  # images described at a time
PAIRS_AT_ONCE = 1 << 14  # compared at a time


def near_duplicates(
    images: Tensor | Sequence[Tensor], partition: Partition | None = None
) -> list[list[tuple[int, float]]]:
    """Return sets of nearly identical images by their first rows; none on other ranks than the main rank.

    The main rank has the hashes and small pictures of all images: 784 bytes an image.

    ``images`` is uint8 N x 3 x S x S, with several ranks this one's (by default this one has all), or several such
    tensors, whose rows follow one another. A set is (row, distance) of its images; the distance is that to the
    first image of the set: the root mean square difference as a share of the contrast.
    """
    tensors = [images] if isinstance(images, Tensor) else images
    partition = partition or Partition.of(ALONE, sum(map(len, tensors)))
    parts = [_described(part) for rows in tensors for part in rows.split(IMAGES_AT_ONCE) if len(part)]
    none = torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, 4 + 3 * SIDE**2, dtype=torch.uint8)
    hashes, light, pictures = (partition.gather(torch.cat(rows)) for rows in zip(none, *parts, strict=True))
    if not partition.processes.is_main:
        return []
    ties = torch.empty(0, 2, dtype=torch.int64)
    for turn in ROTATIONS_BITS:
        alike = [pairs[_distances(pictures, pairs) <= MAX_DISTANCE] for pairs in _near_pairs(hashes, light, turn)]
        ties = _sets(torch.cat([ties, *alike]))  # a thousand equal images are 999 pairs then, not 32,000
    members: dict[int, list[tuple[int, float]]] = {}
    for (first, row), distance in zip(ties.tolist(), _distances(pictures, ties).tolist(), strict=True):
        members.setdefault(first, []).append((row, distance))
    return [*members.values()]


def _described(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hashes (int64), the lightness and the pictures of images.

    A bit of the hash tells if one of 8 x 8 patches is darker than its right neighbour. A picture is 4 bytes of
    contrast, the standard deviation (float32, at least ``MIN_CONTRAST``), and 3 ``SIDE``² pixels.
    """
    small = interpolate(images.float(), size=(SIDE, SIDE), mode="area")
    grey = interpolate(small.mean(1, keepdim=True), size=(8, 9), mode="area")[:, 0]
    darker = (grey[:, :, 1:] > grey[:, :, :-1]).flatten(1).numpy()
    hashes = torch.from_numpy(np.packbits(darker, axis=1)).view(torch.int64).squeeze(1)
    pixels = small.flatten(1).round().byte()
    contrast = small.flatten(1).std(1, keepdim=True).clamp(min=MIN_CONTRAST).view(torch.uint8)
    return hashes, pixels.float().mean(1), torch.cat([contrast, pixels], 1)


def _near_pairs(hashes: Tensor, light: Tensor, turn: int) -> Iterator[Tensor]:
    """Yield pairs of images (n x 2) with nearly equal hashes: neighbours in sorted order, then the next but one, ...

    Images are sorted by their hashes rotated by ``turn``, then by lightness.
    """
    bits = hashes.numpy().view(np.uint64)
    turned = (bits << np.uint64(turn)) | (bits >> np.uint64(-turn % 64))
    order = np.lexsort((light.numpy(), turned))
    for step in range(1, NEIGHBOURS + 1):
        one, other = order[:-step], order[step:]
        near = np.bitwise_count(turned[one] ^ turned[other]) <= MAX_WRONG_BITS
        yield torch.from_numpy(np.stack([one[near], other[near]], 1))


def _distances(pictures: Tensor, pairs: Tensor) -> Tensor:
    """Return the distances of pairs of images (numbers, n x 2)."""
    distances = []
    for part in pairs.split(PAIRS_AT_ONCE):
        first, second = pictures[part[:, 0]], pictures[part[:, 1]]
        difference = (first[:, 4:].float() - second[:, 4:].float()).square().mean(1).sqrt()
        contrast = (rows[:, :4].contiguous().view(torch.float32).squeeze(1) for rows in (first, second))
        distances.append(difference / torch.maximum(*contrast))
    return torch.cat(distances)


def _sets(pairs: Tensor) -> Tensor:
    """Return (first row of its set, row) of all rows in pairs (n x 2), ascending. Pairs tie rows to sets."""
    rows: Tensor
    rows, index = torch.unique(pairs, return_inverse=True)
    row, column = index.reshape(-1, 2).T.numpy()
    ties = scipy.sparse.coo_array((np.ones(len(row), bool), (row, column)), (len(rows), len(rows)))
    component = scipy.sparse.csgraph.connected_components(ties, directed=False)[1]
    first = np.unique(component, return_index=True)[1][component]
    order = np.argsort(first, kind="stable")
    return rows[torch.from_numpy(np.stack([first[order], order], 1))]
