"""Near-duplicates: the same picture saved again, smaller, or a little brighter.

Candidates are images whose difference hashes (which of two neighbouring patches is lighter, 64 bits) are close in
sorted order; they are then compared as small pictures. Measured on CIFAR-10, flowers and steel defects: JPEGs saved
again with quality 75 differ by at most .07, those at 2/3 of their size by .08 (.25 at 32 px); 99 % of images differ by
.24 or more from every other, and of the rest all below .1 are true copies.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import interpolate

from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes

SIDE = 16  # px of the small pictures
ALIKE = 0.1  # root mean square difference, as a share of the larger standard deviation
FAINTEST = 4.0  # grey levels: a picture with a smaller standard deviation is plain, and its noise does not count
WINDOW = 32  # neighbours in sorted order that are compared
BITS = 8  # of 64 that may differ: JPEG of quality 75 changes up to 5
# Bits by which the hash is rotated before sorting: with up to 3 wrong bits one of its four 16-bit blocks is intact.
TURNS = (0, 16, 32, 48)
CHUNK = 512
SPLITTERS = 256  # hashes of each rank that tell where the bands of all begin
PICTURE = 8 + 8 + 4 + 4  # bytes of a record before the small picture: number, hash, lightness, contrast
RECORD = PICTURE + 3 * SIDE**2


def near_duplicates(images: Tensor, partition: Partition | None = None) -> list[list[tuple[int, float]]]:
    """Groups of nearly identical images, in the order of their first rows; none on other ranks than the main rank.

    Each rank compares the images of one band of hashes, whoever has them.

    Args:
        images: uint8 N x 3 x S x S; with several ranks this one's.
        partition: Which rank has which images; default: this one has all.

    Returns:
        (row, distance) for each image of a group. The distance is that to the group's first image: the root mean square
        difference as a share of the contrast.
    """
    partition = partition or Partition.single(len(images))
    processes = partition.processes
    own = _records(images, partition.local.start)
    found = torch.cat([_ties(_band(own, turn, processes), turn, processes) for turn in TURNS])
    ties = Partition.of(processes, len(found)).gather(found)
    alike = processes.broadcast_tensors(lambda: {"pairs": _spanning(ties)})["pairs"].split(CHUNK)
    distances = [_apart(*(partition.to_main(own, rows) for rows in pairs.T)).tolist() for pairs in alike]
    members: dict[int, list[tuple[int, float]]] = {}
    for pairs, apart in zip(alike, distances, strict=True):
        for (first, row), distance in zip(pairs.tolist(), apart, strict=False):  # other ranks have no distances
            members.setdefault(first, []).append((row, distance))
    return [*members.values()]


def _records(images: Tensor, begin: int) -> Tensor:
    """A row of bytes for each image: its number, its hash, its lightness, its contrast and its small picture."""
    parts = [torch.empty(0, RECORD, dtype=torch.uint8)]
    for part in images.split(CHUNK) if len(images) else ():  # split makes an empty part of none
        small, hashes, spread = _signatures(part)
        numbers = torch.arange(begin, begin + len(part))
        begin += len(part)
        columns = [numbers, small.float().mean(1), spread]
        number, light, contrast = (column.unsqueeze(1).view(torch.uint8) for column in columns)
        parts.append(torch.cat([number, hashes, light, contrast, small], 1))
    return torch.cat(parts)


def _column(records: Tensor, begin: int, dtype: torch.dtype) -> Tensor:
    return records[:, begin : begin + dtype.itemsize].contiguous().view(dtype).squeeze(1)


def _turned(records: Tensor, turn: int) -> npt.NDArray[np.uint64]:
    hashes: npt.NDArray[np.uint64] = _column(records, 8, torch.int64).numpy().view(np.uint64)
    turned: npt.NDArray[np.uint64] = (hashes << np.uint64(turn)) | (hashes >> np.uint64(-turn % 64))
    return turned


def _band(own: Tensor, turn: int, processes: Processes) -> Tensor:
    """The records of all ranks whose hashes, rotated by ``turn``, are in this rank's range, by their numbers."""
    if processes.alone:
        return own
    turned = _turned(own, turn)
    seen = np.sort(turned)[:: max(1, len(turned) // SPLITTERS)].tolist()
    every = np.sort(np.array([each for part in processes.all_gather_json(seen) for each in part], np.uint64))
    bounds = every[[len(every) * (rank + 1) // processes.world_size for rank in range(processes.world_size - 1)]]
    owner = np.searchsorted(bounds, turned, "right")
    send = np.bincount(owner, minlength=processes.world_size).tolist()
    receive = [sizes[processes.rank] for sizes in processes.all_gather_json(send)]
    return processes.all_to_all(own[torch.from_numpy(np.argsort(owner, kind="stable"))], send, receive)


def _ties(band: Tensor, turn: int, processes: Processes) -> Tensor:
    """Pairs of images (numbers, n x 2) in a band that are nearly identical, as few as tie together what belongs
    together. Compared are those that are near each other when sorted by rotated hash, then by light."""
    order = np.lexsort((_column(band, 16, torch.float32).numpy(), _turned(band, turn)))
    own = len(order)
    if not processes.alone:  # the last ones are compared with the first ones of the next bands
        heads = Partition.of(processes, min(WINDOW, own))
        following = heads.all_gather(band[torch.from_numpy(order[:WINDOW])])[heads.local.stop :][:WINDOW]
        order = np.concatenate([order, own + np.arange(len(following))])
        band = torch.cat([band, following])
    turned = _turned(band, turn)
    pairs = [torch.empty(0, 2, dtype=torch.int64)]
    for step in range(1, min(WINDOW, len(order) - 1) + 1):
        one = order[: min(own, len(order) - step)]
        other = order[step : step + len(one)]
        near = np.bitwise_count(turned[one] ^ turned[other]) <= BITS
        candidates = torch.from_numpy(np.stack([one[near], other[near]], 1))
        pairs += [part[_apart(*(band[rows] for rows in part.T)) <= ALIKE] for part in candidates.split(32 * CHUNK)]
    numbers = _column(band, 0, torch.int64)
    return _spanning(numbers[torch.cat(pairs)])


def _spanning(pairs: Tensor) -> Tensor:
    """(first, row) for each row that is in a pair (n x 2), with the first row that pairs tie it to: groups in the order
    of their first rows, and rows ascending."""
    rows: Tensor
    rows, place = torch.unique(pairs, return_inverse=True)
    row, column = place.reshape(-1, 2).T.numpy()
    ties = coo_array((np.ones(len(row), bool), (row, column)), (len(rows), len(rows)))
    component = connected_components(ties, directed=False)[1] if len(rows) else np.empty(0, np.int64)
    _, lowest, component = np.unique(component, return_index=True, return_inverse=True)
    first = lowest[component]
    order = np.lexsort((np.arange(len(rows)), first))
    return rows[torch.from_numpy(np.stack([first[order], order], 1))]


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """The distance of the images of two lists of records."""
    difference = (one[:, PICTURE:].float() - other[:, PICTURE:].float()).square().mean(1).sqrt()
    apart: Tensor = difference / torch.maximum(*(_column(records, 20, torch.float32) for records in (one, other)))
    return apart


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
