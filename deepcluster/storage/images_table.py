"""images.csv: one row for each image and each skipped file of a run, to which rows are only ever added.

``source`` and ``member`` are the place of an image: its file, or the archive or array that holds it and the name or
number there. An empty ``source`` means the file ``path`` in the run's base or, with a ``member``, an image that came
from memory. ``added`` is the time of the update that brought the row, empty for those of the fit. ``reason`` says why a
file was skipped, or that an update rejected an image.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deepcluster.images.source import Origin, Source
from deepcluster.storage.content import FILES, IMAGES, Row, Table

REJECTED = "outlier"  # the reason of an image that an update has rejected


@dataclass(frozen=True)
class ImagesTable:
    """The content of images.csv."""

    rows: Table

    @cached_property
    def used(self) -> Table:
        """The rows of usable images, in the order of features.npy."""
        return self.rows.with_cell("status", "ok")

    @cached_property
    def skipped(self) -> Mapping[str, str]:
        """Reasons of unusable files by path. The last row of a file counts; a file with a usable image is left out."""
        reasons = {row["path"]: row["reason"] for row in self.rows.with_cell("status", "skipped")}
        usable = {*self.used.column("path")} & {*reasons}
        return {path: why for path, why in reasons.items() if path not in usable}

    @cached_property
    def fitted(self) -> int:
        """Number of usable images of the fit, which are the first ones."""
        return int((self.used.column("added") == "").sum())


def skipped_table(images: ImagesTable) -> list[Row]:
    """Return the rows of skipped.csv."""
    return [{"path": path, "reason": why} for path, why in images.skipped.items()]


def image_rows(
    source: Source, labels: Sequence[str] | None, digests: Sequence[str], base: Path, added: str = ""
) -> Iterable[Row]:
    """Yield the rows of usable images with these true labels, and ``digests`` of their pixels or features."""
    labels = labels or [""] * len(source.paths)
    folder = os.path.realpath(base)
    for i, (path, label, digest) in enumerate(zip(source.paths, labels, digests, strict=True)):
        yield _row(path, "ok", "", label, *_relative(source.origin(i), path, folder), digest, added)


def skipped_rows(skipped: Iterable[tuple[str, str]], added: str = "") -> Iterable[Row]:
    """Yield the rows of (path, reason) of skipped files."""
    for path, reason in skipped:
        yield _row(path, "skipped", reason, "", "", "", "", added)


def _row(*cells: str) -> Row:
    return dict(zip(FILES[IMAGES].columns, cells, strict=True))


def origin_of(row: Row, base: Path) -> Origin:
    """Return the place of an image by its row."""
    is_named = ":" in row["source"] and not Path(row["source"]).is_absolute()
    in_memory = row["member"] and not row["source"]
    place = row["source"] if is_named or in_memory else str(Path(os.path.realpath(base), row["source"] or row["path"]))
    return Origin(place, row["member"])


def _relative(origin: Origin, path: str, folder: str) -> Origin:
    """Return the place of an image for its row: without the folder, and without a file name that equals ``path``."""
    file = Path(origin.source)
    if not file.is_relative_to(folder):
        return origin
    near = file.relative_to(folder).as_posix()
    return Origin("" if near == path and not origin.member else near, origin.member)
