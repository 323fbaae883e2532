"""The plan of a tree of folders: a place for each image, by names that are valid and distinct on every file system."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from deepcluster.errors import DataError
from deepcluster.export.split import PARTS, balanced
from deepcluster.export.split import split as split_up
from deepcluster.images import Images, Source, find
from deepcluster.images.decode import SUFFIXES as IMAGE_SUFFIXES
from deepcluster.images.decode import Undecodable, explain, pillow_limits, sides
from deepcluster.recipes.flags import Sorting, read_shares
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.result import Outcome, describe
from deepcluster.runs.run import read_run
from deepcluster.runtime.log import warn
from deepcluster.storage import run_folder
from deepcluster.storage.content import Row
from deepcluster.texts import JOINERS, one_line

MAX_NAME_BYTES = 255  # ext4, APFS, NTFS (there UTF-16 units, which are never more)
MAX_LABEL_BYTES = 100
MAX_SUFFIX = 20  # characters
COMPARED_SIDE = 2_000  # px: a JPEG of three times as many is compared reduced; the largest cannot be decoded whole
METADATA = "metadata.csv"  # in each part of a data set
CARD = "README.md"  # of a data set
INVENTORY = "inventory.csv"
OF_FILE_MANAGERS = (".DS_Store", ".directory", "Thumbs.db", "desktop.ini")  # made by looking at a folder
OF_EXPORTS = (METADATA, CARD, INVENTORY, *OF_FILE_MANAGERS)  # files of a tree that are no images
INVENTORY_COLUMNS = ("path", "cluster", "name", "by", "exported_path", "how")
# A word in the name of a folder by which `datasets` finds the split of its images.
_SPLIT = re.compile(
    r"(^|[-._ 0-9])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?=[-._ 0-9]|$)", re.IGNORECASE
)
_FORBIDDEN = set('<>:"/\\|?*')  # on Windows

JUNK = "_junk"
APART = "_outliers"
NONE = "-1"  # the cluster of an image that an update has rejected
DUPLICATE = "duplicate of "  # begins the reason of an image that a better one stands for
# Suffixes that `datasets` takes for an image; other files are written as PNG.
SUFFIXES = IMAGE_SUFFIXES - {".heic", ".heif", ".hif", ".avif"}


@dataclass(frozen=True)
class RunImages:
    """The images of a run."""

    run: Path
    rows: tuple[Row, ...]  # all of clusters.csv
    source: Source  # the images that are at hand
    index: Mapping[str, int]  # of an image in the source, by path
    junk: Set[str]  # clusters that a person marked
    set_of: Mapping[str, str] | None  # sets of near-duplicates, by path; None if the run does not know them
    outcome: Outcome
    base: Path  # the folder of the images

    def is_file(self, row: Row) -> bool:
        """Tell if the image of a row is a file, and so not written as PNG."""
        return self.original(row["path"]) is not None or (row["path"] not in self.index and self.source.items.of_files)

    def original(self, path: str) -> Path | None:
        """Return the path of an image's file, unchecked; None if it has no file or is not at hand."""
        return self.source.file(self.index[path]) if path in self.index else None

    def quality(self, path: str) -> tuple[int, float] | None:
        """Return the shorter side of an image, and its squared differences of neighbours; None if it is unreadable."""
        try:
            image = self.source.read(self.index[path], COMPARED_SIDE)
        except (Undecodable, OSError):
            return None
        grey = np.asarray(image.convert("L"), np.float32)
        side = image.info.get("short_side", min(image.size))
        return side, sum(float(np.square(np.diff(grey, axis=axis)).sum()) for axis in (0, 1))

    def file(self, path: str) -> Path | None:
        """Return the file of an image, None if it has none. Undecodable if it does not exist or has no image header."""
        if path not in self.index:
            raise Undecodable("no such image")
        file = self.original(path)
        try:
            if file:
                sides(file)
        except OSError as error:
            raise Undecodable(explain(error)) from None
        return file


def read_run_images(run: Path, images: Images | None) -> RunImages:
    """Locate the images of a run, under the same paths in the place ``images``; None: in the run's own.

    Images that an update added from elsewhere are still there. DataError if none exists any more.
    """
    folder = run_folder.open_run(run)
    outcome = describe(read_run(folder))
    record, stored = outcome.record, outcome.run.rows.images
    if images is None or (isinstance(images, str | Path) and Path(images).is_dir()):
        base = Path(record.base if images is None else images)
        source = images_at_hand(stored, base)
    else:
        source = find(images)
        base = Path(source.location)
    index = {path: i for i, path in enumerate(source.paths)} if source else {}
    used = outcome.usable
    if source is None or not any(path in index for path in used.column("path")):
        raise DataError(
            f"none of the {len(used):,} images of {run} was found (not in {one_line(str(base))}): say where they are"
            " now with --images IMAGES"
        )
    sets = folder.read_rows("duplicates.csv") if folder.has("duplicates.csv") else None
    set_of = None if sets is None else {row["path"]: row["set"] for row in sets}
    junk = {*map(str, outcome.run.model.junk)}
    return RunImages(run, tuple(outcome.clusters), source, index, junk, set_of, outcome, base)


@dataclass(frozen=True)
class Target:
    """The place of an image in a tree."""

    row: Row  # of clusters.csv
    place: str  # FOLDER/NAME; "" if the image stays out
    reason: str  # of an image that stays out


def plan(images: RunImages, sorting: Sorting) -> list[Target]:
    """Return the targets of all images of a run, in the order of its clusters.csv."""
    left: dict[str, str] = {}  # the reasons of images that stay out, by path
    if sorting.outliers == "leave":
        junk = () if sorting.is_dataset else images.junk
        outliers = (row for row in images.rows if row["is_outlier"] == "1" and row["cluster"] not in junk)
        left = {row["path"]: "outlier" for row in outliers}
    if sorting.is_dataset:  # a rejected image has no class
        left |= {row["path"]: "outlier" for row in images.rows if row["cluster"] == NONE}
    usable = (row for row in images.rows if row["status"] == "ok" and row["path"] in images.index)
    wanted = {row["path"]: row["cluster"] for row in usable if row["path"] not in left}
    if sorting.duplicates == "first":
        worse = _duplicates(images, wanted.keys())
        left |= worse
        wanted = {path: cluster for path, cluster in wanted.items() if path not in worse}
    if sorting.n is not None:
        drawn = balanced(wanted, sorting.n, sorting.seed)
        left |= dict.fromkeys(wanted.keys() - drawn, "not drawn")
        wanted = {path: cluster for path, cluster in wanted.items() if path in drawn}
    part_of: dict[str, str] = {}
    if sorting.split is not None:
        if images.set_of is None:
            warn(f"{images.run} has no duplicates.csv: nearly identical images may come into different parts")
        part_of = split_up(wanted, read_shares(sorting.split), images.set_of or {}, sorting.seed)
    first = PARTS[0] if sorting.is_dataset or part_of else ""  # for images that are not at hand
    folder_of = class_folders(images.rows) if sorting.is_dataset else kind_folders(images.rows)
    places = distinct([
        _preferred(row, images, sorting, part_of.get(row["path"], first), folder_of)
        if row["status"] == "ok" and row["path"] not in left
        else ""
        for row in images.rows
    ])  # fmt: skip
    pairs = zip(images.rows, places, strict=True)
    return [Target(row, place, left.get(row["path"], "skipped")) for row, place in pairs]


def _preferred(row: Row, images: RunImages, sorting: Sorting, part: str, folder_of: Mapping[str, str]) -> str:
    """Return the place of an image, if no other one has that name there.

    ``part``: Of the data, the upper folder. ``folder_of``: Folders of the clusters.
    """
    name = PurePosixPath(row["path"]).name
    refused = not images.is_file(row)
    if sorting.is_dataset:
        name = plain(name)
        refused |= stem_and_suffix(name)[1].lower() not in SUFFIXES
        above = ""
    else:
        apart = APART if (sorting.outliers == "separate" and row["is_outlier"] == "1") or row["cluster"] == NONE else ""
        above = JUNK if row["cluster"] in images.junk else apart
    folder = folder_of[row["cluster"]]
    return "/".join(filter(None, (part, above, folder, _fitting(name, ".png") if refused else name)))


def _duplicates(images: RunImages, wanted: Set[str]) -> dict[str, str]:
    """Return why images stay out, by path: a better one of ``wanted`` looks (nearly) the same."""
    if images.set_of is None:
        raise DataError(
            f"{images.run} has no duplicates.csv, so nothing says which images are the same: omit --duplicates"
        )
    sets: defaultdict[str, list[tuple[int, float, str]]] = defaultdict(list)
    with pillow_limits():
        for path, number in images.set_of.items():
            if path in wanted and (quality := images.quality(path)):
                sets[number].append((*quality, path))
    worse = {}
    for alike in sets.values():
        best = max(alike, key=lambda image: image[:2])  # the first of equal ones
        for side, sharpness, path in alike:
            if path != best[2]:
                why = "larger" if side < best[0] else "sharper" if sharpness < best[1] else "the same"
                worse[path] = f"{DUPLICATE}{best[2]}, which is {why}"
    return worse


# ---- names of files and folders -------------------------------------------------------------------------------------


def cluster_folder(number: int, name: str = "") -> str:
    """Return ``003``, or ``003-name``; characters that a file system may refuse become ``_``."""
    safe = _replace(name, lambda char: (char.isprintable() or char in JOINERS) and char not in _FORBIDDEN)
    label = _shorten(safe.strip(), MAX_LABEL_BYTES).strip(" .")
    return f"{number:03}-{label}" if label else f"{number:03}"


def kind_folders(rows: Sequence[Row]) -> dict[str, str]:
    """Return the folders of clusters for a person; those of one name share the folder of their first number.

    Rejected images have none.
    """
    last_first = sorted({(int(row["cluster"]), row["name"]) for row in rows if row["cluster"]}, reverse=True)
    first = {name or number: number for number, name in last_first}
    return {str(number): cluster_folder(first[name or number], name) for number, name in last_first} | {NONE: ""}


def class_folders(rows: Sequence[Row]) -> dict[str, str]:
    """Return the folders of clusters in a data set: their names, and the numbers of those without; equal names share.

    A word by which `datasets` would take a folder for a split is in quotes.
    """
    name_of = {int(row["cluster"]): row["name"] for row in rows if row["cluster"] not in ("", NONE)}
    label_of = {number: name_of[number] or f"{number:03}" for number in sorted(name_of)}
    labels = [*dict.fromkeys(label_of.values())]
    safe = (_SPLIT.sub(r"\1'\2'", _shorten(plain(label), MAX_LABEL_BYTES).rstrip(" .")) for label in labels)
    folder_of = dict(zip(labels, distinct([METADATA, *safe])[1:], strict=True))  # which is the name of a file there
    return {str(number): folder_of[label] for number, label in label_of.items()}


def plain(name: str) -> str:
    """Return the name in letters, digits, spaces and ``-_.()``, not hidden: loaders take others for patterns."""
    safe = _replace(name, lambda char: unicodedata.category(char)[0] in "LMN" or char in " -_.()")
    stem, suffix = stem_and_suffix(safe)
    return _fitting(stem.lstrip(" ._") or "image", suffix)


def _replace(name: str, allowed: Callable[[str], bool]) -> str:
    return "".join(char if allowed(char) else "_" for char in unicodedata.normalize("NFC", name))


def stem_and_suffix(name: str) -> tuple[str, str]:
    """Return stem and suffix (``.jpg``); a suffix that is too long belongs to the stem."""
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix), suffix) if len(suffix) <= MAX_SUFFIX else (name, "")


def _fitting(stem: str, end: str) -> str:
    return _shorten(stem, MAX_NAME_BYTES - len(os.fsencode(end))) + end


def _shorten(text: str, size: int) -> str:
    """Return the beginning of ``text``, at most ``size`` bytes."""
    while len(os.fsencode(text)) > size:
        text = text[:-1]
    return text


def key(name: str) -> str:
    """Return one key for names that some file system takes as equal."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def distinct(names: Sequence[str]) -> list[str]:
    """Return FOLDER/NAME or "" in order; the second of two equal names gets ``-2`` before its suffix, and so on.

    Names of one :func:`key` are equal, because a file system would mix them up.
    """
    taken = {key(name) for name in names}
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name_key := key(name)] += 1
        chosen = name
        if name and counts[name_key] > 1:
            folder, slash, last = name.rpartition("/")
            stem, suffix = stem_and_suffix(last)
            while key(chosen := folder + slash + _fitting(stem, f"-{counts[name_key]}{suffix}")) in taken:
                counts[name_key] += 1
            taken.add(key(chosen))
        unique.append(chosen)
    return unique
