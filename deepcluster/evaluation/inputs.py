"""The images of an evaluation: the split into those to learn from and those to score, and their identity."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from deepcluster.errors import DataError
from deepcluster.evaluation.common import held_out
from deepcluster.images import Source


def split(source: Source, labels: Sequence[str], seed: int) -> tuple[Source, list[str], Source, list[str]]:
    """Return four fifths of the labelled images with their labels, and the other fifth with theirs."""
    labelled = [i for i, label in enumerate(labels) if label]
    train, test = ([labelled[i] for i in rows.tolist()] for rows in held_out(len(labelled), seed))
    return source.rows(train), [labels[i] for i in train], source.rows(test), [labels[i] for i in test]


def check_apart(train: Source, test: Source) -> None:
    """Raise DataError if images to score are among those to learn from."""
    learnt = {*_identities(train)}
    if shared := sum(identity in learnt for identity in _identities(test)):
        raise DataError(
            f"{shared:,} images of {test.name} are among those to learn from: give others, or leave IMAGES out to"
            " hold out a fifth"
        )


def _identities(source: Source) -> Iterator[tuple[object, str]]:
    """Yield the identity of each image under any name: device and inode of its file, and its member of that file."""

    @cache
    def identity(place: str) -> object:
        with suppress(OSError, ValueError):
            status = os.stat(place)  # noqa: PTH116 (a location may be no path)
            return (status.st_dev, status.st_ino) if status.st_ino else place  # 0: a file system without numbers
        return place

    for origin in map(source.origin, range(len(source.paths))):
        yield identity(origin.source), origin.member


def fingerprint(source: Source, labels: Sequence[str] = ()) -> str:
    """Return the SHA-256 of paths and labels, and of the sizes and times of the files; no image is read."""
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        digest.update("\0".join(map(str, values)).encode(errors="surrogateescape") + b"\n")

    add(source.location)
    for i, path in enumerate(source.paths):
        add(path, labels[i] if labels else "")
    for place in dict.fromkeys(source.origin(i).source for i in range(len(source.paths))):
        add(place, *_stamp(Path(place)))
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ()
    return () if path.is_dir() else (status.st_size, status.st_mtime_ns)
