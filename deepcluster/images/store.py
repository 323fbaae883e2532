"""Read once: every image is decoded and resized a single time; then a run works on one uint8 tensor.

A preview of a few images comes before: a run chooses its image size by it, and whether colour matters.
"""

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from deepcluster.errors import DataError, DiskError
from deepcluster.images.decode import explain, pillow_limits
from deepcluster.images.source import Source, nothing_readable
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.runtime.threads import cores, in_order, pool_of

Pixels = npt.NDArray[np.uint8]

# Threads hand the interpreter to each other at every file operation: for tiny images that costs more than a second core
# gains. JPEGs of 32 px came at 10,000/s from one thread and 6,300/s from two; those of 128 px at 3,500/s and 4,800/s.
# The break-even depends on the disk, the cores and their load, so one thread and all are tried, again and again.
_TRIAL = 8  # images a thread
_STRETCH = 64  # times as many follow in the quicker way
# Seconds of work that a thread is given at a time, but no more than a trial: one by one costs 25 % at 32 px.
_BATCH = 0.005
_BLOCK = 1024  # rows that move at a time
MEMORY_BUDGET = 4 << 30  # bytes of images in memory; more go to a mapped file


@dataclass(frozen=True)
class Store:
    """The usable images of a source, in its order.

    Attributes:
        images: uint8 N x 3 x S x S, channels-last in memory (a memory-mapped file above the budget); with several ranks
            those of this one.
        kept: Row i of all ranks is ``source.paths[kept[i]]``.
        skipped: (path, reason) of all other images, in the order of their bytes.
        partition: Which rank has which rows.
    """

    images: Tensor
    kept: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]
    partition: Partition


def read_once(
    source: Source,
    size: int,
    *,
    folder: Path | None = None,
    memory_budget: int = MEMORY_BUDGET,
    none_is_fine: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Decode and resize every image of the source. Unusable images are left out.

    The result does not depend on the number of threads: one a core, or this thread alone as long as that is quicker.

    Args:
        size: The side of the squares, in px. A JPEG is decoded reduced, see ``decode``.
        folder: Place of images.u8 if the images exceed the budget.
        memory_budget: Bytes.
        none_is_fine: No usable image is not an error.
        progress: Called after each image with (done, total).

    Raises:
        DataError: No image is usable, or a folder is needed and not given.
        DiskError: The folder has no room.
    """
    total = len(source.paths)
    rows = _allocate(total, size, folder, memory_budget)

    def fill(i: int) -> str | None:
        try:
            rows[i] = square(source.read(i, size), size)
        except (MemoryError, DataError):  # a DataError concerns the whole source
            raise
        except Exception as error:
            return explain(error)
        return None

    failures: dict[int, str] = {}
    # pillow_limits() here and not in fill(): the warning filters belong to the process, not to a thread.
    with pillow_limits(), closing(_results(fill, total)) as reasons:
        for i, reason in enumerate(reasons):
            if reason is not None:
                failures[i] = reason
            if progress is not None:
                progress(i + 1, total)
    if len(failures) == total and not none_is_fine:
        raise nothing_readable(source.location, total, [(source.paths[i], failures[i]) for i in failures])
    kept = np.array([i for i in range(total) if i not in failures], np.int64)
    _close_gaps(rows, kept)
    images = torch.from_numpy(rows[: len(kept)]).permute(0, 3, 1, 2)
    skipped = [*source.skipped, *((source.paths[i], reason) for i, reason in failures.items())]
    return Store(images, tuple(kept.tolist()), _in_order(skipped), Partition.single(len(kept)))


def read_share(
    source: Source,
    size: int,
    processes: Processes,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """:func:`read_once` by several ranks; each reads its part of the source and keeps those images."""
    share = processes.part(len(source.paths))
    local = read_once(
        source.rows(share), size, folder=folder, memory_budget=MEMORY_BUDGET, none_is_fine=True, progress=progress
    )
    kept = tuple(i for rows in processes.all_gather_json([share.start + i for i in local.kept]) for i in rows)
    failures = [(path, reason) for skipped in processes.all_gather_json([*local.skipped]) for path, reason in skipped]
    if not kept:
        raise nothing_readable(source.location, len(source.paths), failures)
    skipped = _in_order([*source.skipped, *failures])
    return Store(local.images, kept, skipped, Partition.of(processes, len(local.kept)))


def check_alike(source: Source, processes: Processes) -> None:
    """DataError if the ranks do not see the same images, for instance because each has its own disk."""
    digest = hashlib.sha256("\0".join(source.paths).encode(errors="surrogateescape")).hexdigest()
    first, *others = processes.all_gather_json({"files": len(source.paths), "names": digest})
    other = next((seen for seen in others if seen != first), None)
    if other:
        counts = first["files"], other["files"]
        different = f"{counts[0]:,} and {counts[1]:,} files" if counts[0] != counts[1] else "files of other names"
        raise DataError(
            f"the processes see different images in {source.location} ({different}): put them where all can see them"
        )


def _in_order(skipped: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(skipped, key=lambda pair: os.fsencode(pair[0])))


def gather(images: Tensor, rows: Tensor) -> Tensor:
    """``images[rows]``, channels-last: copied image by image; indexing copies pixel by pixel, 10 times as slowly."""
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def square(image: Image.Image, size: int) -> Pixels:
    """The central square of an RGB image as uint8 ``size`` x ``size`` x 3 (bicubic, antialiased).

    It crops before it resizes, so that a very long image costs no more than a square one.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.width != image.height:
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _allocate(count: int, size: int, folder: Path | None, memory_budget: int) -> Pixels:
    shape, needed = (count, size, size, 3), count * size * size * 3
    if needed <= memory_budget:
        return np.empty(shape, np.uint8)
    if folder is None:
        raise DataError(
            f"{count} images of {size} x {size} pixels need {needed} bytes, more than the memory budget of "
            f"{memory_budget}: name a folder for them, or use smaller images"
        )
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


def _results(work: Callable[[int], str | None], count: int) -> Generator[str | None, None, None]:
    """work(0), work(1), ... in order, by this thread or by one a core, whichever proves quicker."""
    threads = cores()
    pace: dict[int, float] = {}  # seconds an image, by the number of threads

    def turns() -> Iterator[tuple[int, int]]:
        """(number of threads, number of images) to go on with."""
        while True:
            for width in sorted({1, threads}):
                yield width, _TRIAL * width
            best = min(pace, key=lambda width: pace[width])
            yield best, _STRETCH * _TRIAL * best

    def all_of(batch: range) -> list[str | None]:
        return [work(i) for i in batch]

    begun, step = 0, 1
    with pool_of(threads) as pool:
        for width, length in turns():
            if begun >= count:
                return
            end, start = min(begun + length, count), time.perf_counter()
            batches = (range(i, min(i + step, end)) for i in range(begun, end, step))
            for reasons in map(all_of, batches) if width == 1 else in_order(pool, all_of, batches, ahead=2 * width):
                yield from reasons
            pace[width] = (time.perf_counter() - start) / (end - begun)
            begun, step = end, min(_TRIAL, max(1, round(_BATCH / (pace[width] * width))))


def _close_gaps(rows: Pixels, kept: npt.NDArray[np.int64]) -> None:
    """Move row ``kept[i]`` to row i, in place; ``kept`` rises, so no row is overwritten before it has moved."""
    moved = np.flatnonzero(kept != np.arange(len(kept)))
    for start in range(int(moved[0]) if len(moved) else len(kept), len(kept), _BLOCK):
        rows[start : min(start + _BLOCK, len(kept))] = rows[kept[start : start + _BLOCK]]


_JPEG_NOISE = 2.0  # mean difference between the channels of a grey image that was saved as a colour JPEG, at most
_GREY_SHARE = 0.95
COUNT = 200  # images
_SIZE = 64  # px: enough to see colour; a large JPEG is decoded at an eighth of its size


@dataclass(frozen=True)
class Preview:
    """Traits of all images, by a sample of them.

    Attributes:
        short_side: The median shorter side, px.
        grey: The images have no colour.
    """

    short_side: int
    grey: bool


def preview(source: Source) -> Preview:
    """Decode the first ``COUNT`` usable images in the order of the SHA-256 of their path.

    So the choice is as good as random, the same on every machine, and the same with or without unusable files.
    Raises ``DataError`` if no image is usable.
    """
    sides: list[int] = []
    grey: list[bool] = []
    failures: list[tuple[str, str]] = []
    with pillow_limits():
        for i in sorted(range(len(source.paths)), key=lambda i: hashlib.sha256(os.fsencode(source.paths[i])).digest()):
            try:
                image = source.read(i, _SIZE)
                side = min(image.size) if source.short_side is None else source.short_side(i)
            except (MemoryError, DataError):  # a DataError concerns the whole source
                raise
            except Exception as error:
                failures.append((source.paths[i], explain(error)))
                continue
            sides.append(side)
            grey.append(_is_grey(image))
            if len(sides) == COUNT:
                break
    if not sides:
        raise nothing_readable(source.location, len(source.paths), failures)
    return Preview(int(np.median(sides)), sum(grey) >= _GREY_SHARE * len(grey))


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(band) for band in image.split())
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean()) <= _JPEG_NOISE
