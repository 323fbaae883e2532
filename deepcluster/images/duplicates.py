"""Near-duplicates: the same picture saved again, smaller, or a little brighter.

Candidates are images whose difference hashes (64 bits: the lighter one of two neighbouring patches) are close in
sorted order; they are then compared as small pictures. Measured on CIFAR-10, flowers and steel defects: JPEGs saved
again with quality 75 differ by at most .07, those at 2/3 of their size by .08 (.25 at 32 px); 99 % of images differ by
.24 or more from every other, and all of the rest that differ by less than .1 are true copies.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deepcluster.runtime.partition import Partition

SIDE = 16  # px of the small pictures
ALIKE = 0.1  # root mean square difference, as a share of the larger standard deviation
FAINTEST = 4.0  # grey levels: below this standard deviation a picture is plain, and its noise does not count
WINDOW = 32  # neighbours in sorted order that are compared
BITS = 8  # of 64 that may differ: JPEG of quality 75 changes up to 5
# Bits by which the hash is rotated before sorting: with up to 3 wrong bits one of its four 16-bit blocks is intact.
TURNS = (0, 16, 32, 48)
IMAGES_AT_ONCE = 512  # images described at a time
PAIRS = 1 << 14  # compared at a time


def near_duplicates(
    images: Tensor | Sequence[Tensor], partition: Partition | None = None
) -> list[list[tuple[int, float]]]:
    """Return sets of nearly identical images by their first rows; none on other ranks than the main rank.

    The main rank has the hashes of all images, and fetches the small pictures of the images that it compares.

    ``images`` is uint8 N x 3 x S x S, with several ranks this one's (by default this one has all), or several such
    tensors, whose rows follow one another. A set is (row, distance) of its images; the distance is that to the
    first image of the set: the root mean square difference as a share of the contrast.
    """
    tensors = [images] if isinstance(images, Tensor) else images
    partition = partition or Partition.single(sum(map(len, tensors)))
    processes = partition.processes
    parts = [_described(part) for rows in tensors for part in rows.split(IMAGES_AT_ONCE) if len(part)]
    none = torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, 4 + 3 * SIDE**2, dtype=torch.uint8)
    hashes, light, pictures = (torch.cat(rows) for rows in zip(none, *parts, strict=True))
    hashes = partition.gather(hashes)
    light = partition.gather(light)

    def on_all(pairs: Callable[[], Tensor]) -> Tensor:
        return processes.broadcast_tensors(lambda: {"pairs": pairs()})["pairs"]

    def apart(pairs: Tensor) -> Tensor:
        """Return the distances of pairs of images (numbers, n x 2), on the main rank."""
        distances = []
        for part in pairs.split(PAIRS):
            one, other = partition.to_main(pictures, part.T.flatten()).tensor_split(2)
            difference = (one[:, 4:].float() - other[:, 4:].float()).square().mean(1).sqrt()
            contrast = (rows[:, :4].contiguous().view(torch.float32).squeeze(1) for rows in (one, other))
            distances.append(difference / torch.maximum(*contrast))
        return torch.cat(distances)

    no_pairs = torch.empty(0, 2, dtype=torch.int64)
    ties = [no_pairs]
    for turn in TURNS:
        near = _near(hashes, light, turn)
        while len(pairs := on_all(partial(next, near, no_pairs))):
            distances = apart(pairs)
            if processes.is_main:
                ties.append(pairs[distances <= ALIKE])
        ties = [_spanning(torch.cat(ties))]  # a thousand equal images are 999 pairs then, not 32,000
    alike = on_all(lambda: ties[0])
    members: dict[int, list[tuple[int, float]]] = {}
    for (first, row), distance in zip(alike.tolist(), apart(alike).tolist(), strict=False):  # none on other ranks
        members.setdefault(first, []).append((row, distance))
    return [*members.values()]


def _described(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hashes (int64), the lightness and the pictures of images.

    A bit of the hash tells if one of 8 x 8 patches is darker than its right neighbour. A picture is 4 bytes of
    contrast, the standard deviation (float32, at least ``FAINTEST``), and 3 ``SIDE``² pixels.
    """
    small = interpolate(images.float(), size=(SIDE, SIDE), mode="area")
    grey = interpolate(small.mean(1, keepdim=True), size=(8, 9), mode="area")[:, 0]
    darker = (grey[:, :, 1:] > grey[:, :, :-1]).flatten(1).numpy()
    hashes = torch.from_numpy(np.packbits(darker, axis=1)).view(torch.int64).squeeze(1)
    pixels = small.flatten(1).round().byte()
    contrast = small.flatten(1).std(1, keepdim=True).clamp(min=FAINTEST).view(torch.uint8)
    return hashes, pixels.float().mean(1), torch.cat([contrast, pixels], 1)


def _near(hashes: Tensor, light: Tensor, turn: int) -> Iterator[Tensor]:
    """Yield pairs of images (n x 2) with nearly equal hashes: neighbours in sorted order, then the next but one, ...

    The order is that of the hashes rotated by ``turn``, then of lightness. About ``PAIRS`` or more come at a time.
    """
    bits = hashes.numpy().view(np.uint64)
    turned = (bits << np.uint64(turn)) | (bits >> np.uint64(-turn % 64))
    order = np.lexsort((light.numpy(), turned))
    waiting = np.empty((0, 2), np.int64)
    for step in range(1, WINDOW + 1):
        one, other = order[:-step], order[step:]
        near = np.bitwise_count(turned[one] ^ turned[other]) <= BITS
        waiting = np.concatenate([waiting, np.stack([one[near], other[near]], 1)])
        if len(waiting) and (len(waiting) >= PAIRS or step == WINDOW):
            yield torch.from_numpy(waiting)
            waiting = waiting[:0]


def _spanning(pairs: Tensor) -> Tensor:
    """Return (first row of its set, row) of all rows in pairs (n x 2), ascending. Pairs tie rows to sets."""
    rows: Tensor
    rows, index = torch.unique(pairs, return_inverse=True)
    row, column = index.reshape(-1, 2).T.numpy()
    ties = scipy.sparse.coo_array((np.ones(len(row), bool), (row, column)), (len(rows), len(rows)))
    component = scipy.sparse.csgraph.connected_components(ties, directed=False)[1]
    first = np.unique(component, return_index=True)[1][component]
    order = np.argsort(first, kind="stable")
    return rows[torch.from_numpy(np.stack([first[order], order], 1))]
