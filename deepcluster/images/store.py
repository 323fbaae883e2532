"""Read once: every image is decoded and resized a single time; then a run works on one uint8 tensor.

A survey of a few images comes before: by it a run chooses its image size and learns if colour matters.
"""

import hashlib
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageChops
from torch import Tensor

from deepcluster.errors import DataError, DiskError
from deepcluster.images.decode import Reason, explain, pillow_limits
from deepcluster.images.source import Source, nothing_readable
from deepcluster.runtime.machine import available, local_world_size
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.runtime.threads import cores, in_order, pool_of

Pixels = npt.NDArray[np.uint8]
Value = TypeVar("Value")

# Threads pass the interpreter on at every file operation: for tiny images that costs more than a second core
# gains. JPEGs of 32 px came at 10,000/s from one thread and 6,300/s from two, JPEGs of 128 px at 3,500/s and 4,800/s.
_QUICK_SECONDS = 0.0002  # an image: below this, one thread is faster than several
_TRIAL_IMAGES = 4  # timed at the start of each stretch
_STRETCH_IMAGES = 4096
_BATCH_IMAGES = 4  # given to a thread at a time: one by one costs 25 % at 32 px
_BLOCK_ROWS = 1024  # rows that move at a time
MEMORY_BUDGET = 4 << 30  # bytes of images in memory, at most; more go to a mapped file


@dataclass(frozen=True)
class Store:
    """Usable images of a source, in its order.

    Examples:
        >>> store = read_once(find(load_digits().images[:5] / 16), size=16)
        >>> store.usable, store.skipped
        ((0, 1, 2, 3, 4), ())
    """

    # uint8, N x 3 x S x S, channels-last in memory (a mapped file above the budget); of several ranks only this one's.
    images: Tensor
    usable: tuple[int, ...]  # row i of all ranks is ``source.paths[usable[i]]``
    skipped: tuple[tuple[str, Reason], ...]  # (path, reason) of all other images, in the order of their bytes
    partition: Partition  # owner (rank) of every row


def read_once(
    source: Source,
    size: int,
    processes: Processes = ALONE,
    *,
    folder: Path | None = None,
    none_is_fine: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Decode and resize every usable image of the source. The result does not depend on the number of threads.

    Args:
        size: The side of the squares, in px. A JPEG is decoded reduced, see ``decode``.
        processes: They share the images: a rank reads and keeps its part of them.
        folder: Place of images.u8 if the images exceed the :func:`store_budget`; None: they are in memory.
        none_is_fine: Return an empty store if no image is usable.
        progress: Called after every image of this rank with (done, total).

    Raises:
        DataError: No image is usable.
        DiskError: The folder has no room.

    Examples:
        >>> read_once(find(load_digits().images[:5] / 16), size=16).images.shape
        torch.Size([5, 3, 16, 16])
    """
    share = processes.part(len(source.paths))
    rows = _allocate(len(share), size, folder)

    def fill(row: int) -> None:
        rows[row] = square(source.read(share[row], size), size)

    failures: dict[int, Reason] = {}
    # pillow_limits() here and not in fill(): the warning filters belong to the process, not to a thread.
    with pillow_limits(), closing(_results(partial(_value_or_reason, fill), len(share))) as reasons:
        for row, reason in enumerate(reasons):
            if reason is not None:
                failures[row] = reason
            if progress is not None:
                progress(row + 1, len(share))
    filled = np.array([row for row in range(len(share)) if row not in failures], np.int64)
    # Rows move to the front in place. The numbers ascend, so no row is overwritten before it has moved.
    for start in range(min(failures, default=len(share)), len(filled), _BLOCK_ROWS):
        rows[start : min(start + _BLOCK_ROWS, len(filled))] = rows[filled[start : start + _BLOCK_ROWS]]
    failed_here = [(source.paths[share[row]], reason, reason.category) for row, reason in failures.items()]
    usable = [i for part in processes.all_gather_json([share[row] for row in filled.tolist()]) for i in part]
    failed = [(path, Reason(*reason)) for part in processes.all_gather_json(failed_here) for path, *reason in part]
    if not usable and not none_is_fine:
        raise nothing_readable(source.location, len(source.paths), failed)
    skipped = sorted([*source.skipped, *failed], key=lambda pair: os.fsencode(pair[0]))
    images = torch.from_numpy(rows[: len(filled)]).permute(0, 3, 1, 2)
    return Store(images, tuple(usable), tuple(skipped), Partition.of(processes, len(filled)))


def store_budget() -> int:
    """Return the bytes of images that this process may keep in memory: three tenths of all that is available now."""
    return int(min(MEMORY_BUDGET, 0.3 * available() / local_world_size()))


def check_alike(source: Source, processes: Processes) -> None:
    """Raise DataError if the ranks see different images, for instance on disks of their own."""
    digest = hashlib.sha256("\0".join(source.paths).encode(errors="surrogateescape")).hexdigest()
    first, *others = processes.all_gather_json({"files": len(source.paths), "names": digest})
    other = next((seen for seen in others if seen != first), None)
    if other:
        counts = first["files"], other["files"]
        different = f"{counts[0]:,} and {counts[1]:,} files" if counts[0] != counts[1] else "files of other names"
        raise DataError(
            f"the processes see different images in {source.location} ({different}): put them where all can see them"
        )


def square(image: Image.Image, size: int) -> Pixels:
    """Return the central square of an RGB image as uint8 ``size`` x ``size`` x 3 (bicubic, antialiased).

    It crops before it resizes, so that a very long image costs no more than a square one.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.width != image.height:
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _allocate(count: int, size: int, folder: Path | None) -> Pixels:
    shape = (count, size, size, 3)
    needed = count * size * size * 3
    if folder is None or needed <= store_budget():
        return np.empty(shape, np.uint8)
    file = folder / "images.u8"
    try:
        with file.open("wb") as stream:
            # So that a full disk is an error now; later, a write to the mapped file would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, needed)
            else:
                stream.truncate(needed)
        return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DiskError(
            f"cannot write {needed} bytes to {file}: {explain(error)}. Free some space, or use another folder"
        ) from error


def _results(work: Callable[[int], Value], count: int) -> Generator[Value, None, None]:
    """Yield work(0), work(1), ... in order: by one thread a core, or by this thread if that is quicker."""
    threads = cores()
    with pool_of(threads) as pool:
        for begin in range(0, count, _STRETCH_IMAGES):
            rest = range(min(begin + _TRIAL_IMAGES, count), min(begin + _STRETCH_IMAGES, count))
            start = time.perf_counter()
            yield from [work(i) for i in range(begin, rest.start)]
            if threads == 1 or time.perf_counter() - start < _QUICK_SECONDS * _TRIAL_IMAGES:
                yield from map(work, rest)
                continue
            batches = (rest[i : i + _BATCH_IMAGES] for i in range(0, len(rest), _BATCH_IMAGES))
            for reasons in in_order(pool, lambda batch: [work(i) for i in batch], batches, ahead=2 * threads):
                yield from reasons


MAX_JPEG_NOISE = 2.0  # mean difference between the channels of a grey image that was saved as a colour JPEG
MIN_GREY_SHARE = 0.95
SIDES, COLOURS = 200, 40  # images whose sides are measured, and whose colours are
PREVIEW_SIZE = 64  # px: enough to see colour; a large JPEG is decoded at an eighth of its size


def survey(source: Source) -> tuple[int, bool]:
    """Return the median shorter side of images in px, and True if they have no colour, both from a sample.

    It is the first images in the order of the SHA-256 of their path: as good as random, and the same on every machine.
    The sides are in their headers; fewer are decoded for their colour. Unusable images are left out. Raises
    ``DataError`` if no image is usable.
    """
    order = sorted(range(len(source.paths)), key=lambda i: hashlib.sha256(os.fsencode(source.paths[i])).digest())

    def is_grey(i: int) -> bool:
        red, green, blue = source.read(i, PREVIEW_SIZE).split()
        most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
        least = ImageChops.darker(ImageChops.darker(red, green), blue)
        return bool(np.asarray(ImageChops.subtract(most, least)).mean() <= MAX_JPEG_NOISE)

    def first(count: int, look: Callable[[int], int]) -> list[int]:
        """Return ``look`` of the first usable images."""
        looked: list[int] = []
        failures: list[tuple[str, Reason]] = []
        with pool_of(cores()) as pool:
            results = in_order(pool, partial(_value_or_reason, look), order, 2 * cores())
            for i, result in zip(order, results, strict=False):
                if isinstance(result, Reason):
                    failures.append((source.paths[i], result))
                    continue
                looked.append(result)
                if len(looked) == count:
                    break
        if not looked:
            raise nothing_readable(source.location, len(source.paths), failures)
        return looked

    with pillow_limits():
        sides, grey = first(SIDES, source.short_side), first(COLOURS, is_grey)
    return int(np.median(sides)), sum(grey) >= MIN_GREY_SHARE * len(grey)


def _value_or_reason(work: Callable[[int], Value], i: int) -> Value | Reason:
    """Return the work's value for an image, or the reason why it is not usable."""
    try:
        return work(i)
    except (MemoryError, DataError):  # a DataError concerns the whole source
        raise
    except Exception as error:
        return explain(error)
