"""Images of a run in a folder for each cluster: as a person sorts them, or as a data set for Hugging Face.

Originals are only read. Names of copies are accepted by every file system, and none takes two of them for one.
"""

import os
import shutil
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from deepcluster.errors import DataError, DeepClusterWarning, DiskError, UsageError
from deepcluster.export.metadata import SUFFIXES as STRIPPED
from deepcluster.export.metadata import UnknownFormat, stripped
from deepcluster.images import Images, Source, find
from deepcluster.images.csv_files import write_csv
from deepcluster.images.decode import SUFFIXES as IMAGE_SUFFIXES
from deepcluster.images.decode import Undecodable, explain, not_a_file, one_line, pillow_limits, short_side
from deepcluster.report.text import Row, count
from deepcluster.runs.rows import images_at_hand
from deepcluster.runtime.console import Display, Silent
from deepcluster.storage import run_folder as files
from deepcluster.storage.files import check_no_folder, check_outside, new_folder, write_whole
from deepcluster.storage.run_folder import RunFolder

LONGEST = 255  # bytes: ext4, APFS, NTFS (there UTF-16 units, which are never more)
LONGEST_LABEL = 100
LONGEST_SUFFIX = 20
_FORBIDDEN = set('<>:"/\\|?*')  # on Windows


def cluster_folder(number: int, name: str = "") -> str:
    """``003``, or ``003-name`` if the cluster has a name; characters that a file system may refuse become ``_``."""
    letters = unicodedata.normalize("NFC", name)
    safe = "".join(letter if letter.isprintable() and letter not in _FORBIDDEN else "_" for letter in letters)
    label = _shortened(safe.strip(), LONGEST_LABEL).strip(" .")
    return f"{number:03}-{label}" if label else f"{number:03}"


def plain(name: str) -> str:
    """The name in letters, digits, spaces and ``-_.()``, not hidden.

    So that loaders do not take it for a pattern, an address or a file to ignore.
    """
    letters = unicodedata.normalize("NFC", name)
    safe = "".join(char if unicodedata.category(char)[0] in "LMN" or char in " -_.()" else "_" for char in letters)
    stem, suffix = split(safe)
    return fitting(stem.lstrip(" ._") or "image", suffix)


def split(name: str) -> tuple[str, str]:
    """Stem and suffix (``.jpg``); what is too long for a suffix belongs to the stem."""
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix), suffix) if len(suffix) <= LONGEST_SUFFIX else (name, "")


def fitting(stem: str, end: str) -> str:
    """``stem + end``, the stem shortened if the name would be too long."""
    return _shortened(stem, LONGEST - len(os.fsencode(end))) + end


def distinct(names: Sequence[str]) -> list[str]:
    """The names in order; the second of equal ones gets ``-2`` before its suffix, and so on.

    Names that differ only in case or Unicode normalisation are equal: on some file systems they are one file.
    """
    taken = {_key(name) for name in names}
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        key = _key(name)
        number = counts.get(key, 0) + 1
        chosen = name
        if number > 1:
            stem, suffix = split(name)
            while _key(chosen := fitting(stem, f"-{number}{suffix}")) in taken:
                number += 1
            taken.add(_key(chosen))
        counts[key] = number
        unique.append(chosen)
    return unique


def _key(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _shortened(text: str, most: int) -> str:
    """The beginning of ``text``, at most ``most`` bytes."""
    while len(os.fsencode(text)) > most:
        text = text[:-1]
    return text


PNG = "png"


class Unavailable(Exception):
    """An original that no longer exists or may not be passed on; the message is the reason."""


def _hardlink(file: Path, target: Path) -> None:
    os.link(os.path.realpath(file), target)  # a link to a link would be one


def _copy(file: Path, target: Path) -> None:
    shutil.copyfile(file, target)
    with suppress(OSError):  # times and permissions, if the file system has them
        shutil.copystat(file, target)


WAYS: dict[str, Callable[[Path, Path], None]] = {"symlink": os.symlink, "hardlink": _hardlink, "copy": _copy}
WORDS = {"symlink": "symbolic links", "hardlink": "hard links", "copy": "copies", PNG: "PNG files"}


class Transfer:
    """Brings images of a source to new places, and counts.

    An image that is not a file, or whose target is a .png of another format, is decoded and written as PNG.

    Args:
        mode: symlink, hardlink or copy; None: for each file the first of these that works.
        strip: Copy files without their metadata: JPEG files losslessly, others as PNG.
        roots: Real paths of the files that may be brought, or of folders above them; empty: any image may.

    Attributes:
        ways: Tried in turn for each file.
        files: How many files came by each way.
        bytes: Written.
        refused: By way, why it was refused the first time.

    Raises:
        UsageError: There is no such mode, or it cannot strip.
    """

    def __init__(self, source: Source, mode: str | None, *, strip: bool, roots: Set[str] = frozenset()):
        if mode is not None and mode not in WAYS:
            raise UsageError(f"--mode {mode}: choose {', '.join(WAYS)}, or leave it out")
        if strip and mode not in (None, "copy"):
            raise UsageError(
                f"--strip-metadata is for copies: {WORDS[mode or '']} lead to the originals; leave --mode out, or give"
                " --keep-metadata"
            )
        mode = "copy" if strip else mode
        self.strip = strip
        self.source = source
        self.roots = roots
        self.ways = (PNG,) if source.file is None else tuple(WAYS) if mode is None else (mode,)
        self.files: Counter[str] = Counter()
        self.bytes = 0
        self.refused: dict[str, str] = {}

    def __call__(self, i: int, target: Path) -> str:
        """Bring the i-th image to ``target``; returns the way. Raises Unavailable, or an OSError of the target."""
        file = self.source.file(i) if self.source.file else None
        if file is not None:
            _check_image(file, self.roots)
        if file is None or (target.suffix == ".png" and file.suffix.lower() != ".png"):
            way = self._png(i, target)
        else:
            way = self._file(i, file, target)
        self.files[way] += 1
        if way in ("copy", PNG):
            self.bytes += target.stat().st_size
        return way

    def _file(self, i: int, file: Path, target: Path) -> str:
        if self.strip:
            return self._stripped(i, file, target)
        for way in self.ways:
            try:
                WAYS[way](file, target)
                return way
            except OSError as error:
                if way == "copy":  # there is no other way
                    raise
                self.refused.setdefault(way, explain(error))
        raise DiskError(
            f"{WORDS[way]} are refused there ({self.refused[way]}): omit --mode to fall back to whatever works"
        )

    def _stripped(self, i: int, file: Path, target: Path) -> str:
        try:
            data = stripped(file)
        except UnknownFormat:
            return self._png(i, target)
        except OSError as error:
            raise Unavailable(explain(error)) from None
        with target.open("xb") as stream:
            stream.write(data)
        return "copy"

    def _png(self, i: int, target: Path) -> str:
        try:
            image = self.source.read(i)
        except (Undecodable, OSError) as error:
            raise Unavailable(explain(error)) from None
        with target.open("xb") as stream:
            image.save(stream, "PNG")
        return PNG

    @property
    def text(self) -> str:
        """The counts of each way, and the ways that were refused."""
        done = ", ".join(f"{self.files[way]:,} {WORDS[way]}" for way in WORDS if self.files[way])
        refused = "".join(f"; {WORDS[way]} are refused there ({why})" for way, why in self.refused.items())
        why = "" if self.source.file else " (these images are not files)"
        return f"{done}{why}; {self.bytes:,} bytes written{refused}; {self.metadata}"

    @property
    def metadata(self) -> str:
        """The fate of the metadata, in words."""
        kept = "EXIF (time, place), comments and other metadata stay in them"
        return "without EXIF, comments and other metadata" if self.strip or not self.source.file else kept


def _check_image(file: Path, roots: Set[str]) -> None:
    """Raise Unavailable if the file does not exist, lies outside of ``roots``, or has no header of an image."""
    real = Path(os.path.realpath(file))
    if roots and roots.isdisjoint(map(str, (real, *real.parents))):
        raise Unavailable("outside of the folders of the run's images")
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait forever
            raise Unavailable(not_a_file(mode) if not stat.S_ISDIR(mode) else "is a folder")
        with file.open("rb") as stream:
            short_side(stream)
    except (Undecodable, OSError) as error:
        raise Unavailable(explain(error)) from None


@dataclass(frozen=True)
class RunImages:
    """The images of a run.

    Attributes:
        rows: All rows of clusters.csv.
        index: The number of an image in ``source``, by path.
        junk: Clusters that a person marked as junk.
        roots: Real paths of the files that the run may name, or of folders above them; empty: any image.
    """

    rows: tuple[Row, ...]
    source: Source
    index: Mapping[str, int]
    junk: frozenset[str]
    roots: frozenset[str]

    def is_file(self, row: Row) -> bool:
        """Tell if the image of a row is a file, and so not written as PNG."""
        i = self.index.get(row["path"])
        return self.source.file is not None and (i is None or self.source.file(i) is not None)


def read_run_images(run: Path, images: Images | None) -> RunImages:
    """Locate the images of a run.

    Args:
        images: Their present place, under the same paths; None: the place of the run. Images that an update added from
            elsewhere are still there.

    Raises:
        DiskError: There is no finished run.
        DataError: None of its images exists any more.
    """
    folder = files.open_run(run)
    rows, summary = files.read_state(
        run, lambda state: (state.read_clusters(), state.read_rows("cluster_summary.csv", ("cluster",)))
    )
    source = images_at_hand(folder, None if images is None else find(images))
    index = {path: i for i, path in enumerate(source.paths)} if source else {}
    used = [row for row in rows if row["status"] == "ok"]
    with folder.as_disk_errors():
        for row in used:
            int(row["cluster"])
    if source is None or not any(row["path"] in index for row in used):
        where = source.location if source else folder.read_record().location
        raise DataError(
            f"none of the {len(used):,} images of {run} is at hand (they were in {one_line(where)}): say where they are"
            " now with --images IMAGES"
        )
    junk = frozenset(row["cluster"] for row in summary if row.get("junk") == "1")
    return RunImages(tuple(rows), source, index, junk, _roots(folder, source))


def _roots(folder: RunFolder, source: Source) -> frozenset[str]:
    """Real paths of the folder of the images and of the origins of added ones. Empty without such a folder: a list, a
    pipe or a call from Python may name any file."""
    if not Path(source.location).is_dir():
        return frozenset()
    added = {row["path"] for row in folder.read_added()}
    origins = (source.origin(i).source for i, path in enumerate(source.paths) if path in added)
    return frozenset(map(os.path.realpath, (source.location, *origins)))


INVENTORY = "inventory.csv"
INVENTORY_COLUMNS = ("path", "cluster", "name", "exported_path", "how")
NAMED = 5  # missing images that are named on the screen
OUTLIERS = ("keep", "separate", "leave")  # in their cluster, in a folder of their own, or out
JUNK, APART = "_junk", "_outliers"
SPLIT = "train"
METADATA = "metadata.csv"
METADATA_COLUMNS = ("file_name", "cluster", "name", "junk", "distance", "margin", "is_outlier")
# Suffixes that `datasets` takes for an image; other files are written as PNG.
SUFFIXES = IMAGE_SUFFIXES - {".heic", ".heif", ".hif", ".avif"}


def folders(
    run: Path,
    out: Path,
    *,
    layout: str = "named",
    mode: str | None = None,
    images: Images | None = None,
    strip_metadata: bool | None = None,
    outliers: str = "keep",
    dry_run: bool = False,
    display: Display | None = None,
) -> Sequence[Row]:
    """Sort the images of a run into a folder for each cluster, with an inventory.

    Images that are not files are written as PNG at their own size.

    Args:
        layout: "named": folders NUMBER-NAME, those of junk clusters below ``_junk``. "dataset": train/NUMBER/ and
            train/metadata.csv for Hugging Face's ``datasets``. Names of files are made plain there, and those of
            clusters are in the metadata only: ``datasets`` takes a folder called test, or 003-test, for another split.
        mode: symlink, hardlink or copy; default: for each file the first of these that works, a copy in a data set.
        images: The place of the images, if no longer that of the run.
        strip_metadata: Write copies without EXIF, comments and the like; default: for the copies of a data set.
        outliers: "keep": in their clusters; "separate": below ``_outliers``; "leave": not exported. Outliers in junk
            clusters are junk. A data set cannot have them separate.
        dry_run: Write nothing, only say what would be done.
        display: For progress and the outcome.

    Returns:
        The rows of inventory.csv, none after a dry run. Images that are left out are in it, and a warning names them.

    Raises:
        DataError: No image can be exported.
    """
    display, dataset = display or Silent(), layout == "dataset"
    if outliers not in OUTLIERS:
        raise UsageError(f"outliers={outliers!r}: choose {' or '.join(OUTLIERS)}")
    if dataset and outliers == "separate":
        raise UsageError(
            f"outliers={outliers!r}: choose keep or leave. Every folder of an image folder is a class, and is_outlier"
            " is a column of its metadata.csv"
        )
    mode = mode or ("copy" if dataset else None)
    strip = (dataset and mode == "copy") if strip_metadata is None else strip_metadata
    members = read_run_images(run, images)

    def target(row: Row) -> tuple[str, str] | None:
        """Return the folder of an image and its preferred name there; None if it is left out."""
        junk, outlier = row["cluster"] in members.junk, row["is_outlier"] == "1"
        if outlier and outliers == "leave" and (dataset or not junk):
            return None
        name = PurePosixPath(row["path"]).name
        if dataset:
            name, folder = plain(name), f"{SPLIT}/{cluster_folder(int(row['cluster']))}"
        else:
            above = f"{JUNK}/" if junk else f"{APART}/" if outlier and outliers == "separate" else ""
            folder = above + cluster_folder(int(row["cluster"]), row["name"])
        suffix = split(name)[1].lower()
        refused = (strip and suffix not in STRIPPED) or (dataset and suffix not in SUFFIXES)
        return folder, fitting(name, ".png") if refused or not members.is_file(row) else name

    check_outside(out, Path(members.source.location))
    transfer = Transfer(members.source, mode, strip=strip, roots=members.roots)
    targets = _targets(members.rows, target)
    if dry_run:
        _show(out, members, targets, transfer, display)
        return ()
    with new_folder(out) as folder, pillow_limits():
        inventory, missing = _fill(folder, members, targets, transfer, display)
        write_whole(folder / INVENTORY, lambda file: write_csv(file, INVENTORY_COLUMNS, inventory))
        if dataset:
            _write_metadata(folder / SPLIT / METADATA, members, inventory)
    if missing:
        text = f"{len(missing):,} images no longer exist or cannot be used, and are left out: {_some(missing)}"
        warnings.warn(text, DeepClusterWarning, stacklevel=2)
    display.say("Exported", f"{count(transfer.files.total(), 'image')} to {out}: {transfer.text}")
    if transfer.files["symlink"]:
        display.say("Links", f"are absolute: {out} may be moved, the images may not")
    if dataset:
        display.say("Load", f'datasets.load_dataset("imagefolder", data_dir={str(out)!r})')
    return inventory


imagefolder = partial(folders, layout="dataset")


def _targets(rows: Sequence[Row], target: Callable[[Row], tuple[str, str] | None]) -> tuple[str, ...]:
    """FOLDER/NAME for each row of clusters.csv, all different; "" for files that were skipped or are left out."""
    members: dict[str, list[tuple[int, str]]] = {}
    for i, row in enumerate(rows):
        if row["status"] == "ok" and (place := target(row)):
            folder, name = place
            members.setdefault(folder, []).append((i, name))
    targets = [""] * len(rows)
    for folder, inside in members.items():
        names = distinct([name for _, name in inside])
        for (i, _), name in zip(inside, names, strict=True):
            targets[i] = f"{folder}/{name}"
    return tuple(targets)


def _fill(
    folder: Path, members: RunImages, targets: Sequence[str], transfer: Transfer, display: Display
) -> tuple[list[Row], list[str]]:
    """Bring every image to its target. Return the rows of the inventory, and the missing images with the reason."""
    inventory: list[Row] = []
    missing: list[str] = []
    for inside in {Path(place).parent for place in targets if place}:
        (folder / inside).mkdir(parents=True, exist_ok=True)
    for row, place in zip(members.rows, targets, strict=True):
        exported, how = "", "outlier" if row["status"] == "ok" else "skipped"
        if place:
            try:
                if row["path"] not in members.index:
                    raise Unavailable("no such image")
                exported, how = place, transfer(members.index[row["path"]], folder / place)
            except Unavailable as error:
                exported, how = "", f"missing: {error}"
                missing.append(f"{one_line(row['path'])} ({error})")
        cells = (*(row[column] for column in INVENTORY_COLUMNS[:3]), exported, how)
        inventory.append(dict(zip(INVENTORY_COLUMNS, cells, strict=True)))
        display.progress("exporting", len(inventory), len(targets))
    if not transfer.files and not missing:
        raise DataError("all images are outliers, and these are left out: nothing is left to export")
    if not transfer.files:
        raise DataError(f"none of the {len(missing):,} images can be exported: {_some(missing)}")
    return inventory, missing


def _write_metadata(path: Path, members: RunImages, inventory: Sequence[Row]) -> None:
    """Write metadata.csv of a data set: the results for each exported image."""
    columns = (*METADATA_COLUMNS, "label") if any(row["label"] for row in members.rows) else METADATA_COLUMNS
    rows = []
    for row, entry in zip(members.rows, inventory, strict=True):
        if entry["exported_path"]:
            file_name = entry["exported_path"].removeprefix(f"{SPLIT}/")
            cells = {**row, "file_name": file_name, "junk": int(row["cluster"] in members.junk)}
            rows.append({column: cells[column] for column in columns})
    write_whole(path, lambda file: write_csv(file, columns, rows))


def _show(out: Path, members: RunImages, targets: Sequence[str], transfer: Transfer, display: Display) -> None:
    check_no_folder(out)
    sizes = Counter(str(Path(target).parent) for target in targets if target)
    for folder in sorted(sizes):
        display.say("Folder", f"{out / folder}: {count(sizes[folder], 'image')}")
    present = [row for row, target in zip(members.rows, targets, strict=True) if target]
    away = sum(row["path"] not in members.index for row in present)
    ways = ", else ".join(WORDS[way] for way in transfer.ways)
    missing = f"; {away:,} no longer exist" if away else ""
    display.say(
        "Would do",
        f"{count(len(present) - away, 'image')} as {ways}{missing}, {transfer.metadata}; nothing is written now",
    )


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:NAMED]) + (f" and others ({INVENTORY} has all)" if len(texts) > NAMED else "")
