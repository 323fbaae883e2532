"""Images of a run in a folder per cluster: as a person sorts them, or as a data set for Hugging Face.

Originals are only read. Names of copies are valid, and distinct, on every file system.
"""

import os
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from deepcluster.errors import DataError, DiskError, UsageError
from deepcluster.export.replace import (
    INVENTORY,
    key,
    replace_tree,
    replaceable,
    replacing,
    write_inventory,
)
from deepcluster.export.split import PARTS, balanced
from deepcluster.export.split import split as split_up
from deepcluster.images import Images, Source, find
from deepcluster.images.decode import SUFFIXES as IMAGE_SUFFIXES
from deepcluster.images.decode import Undecodable, explain, pillow_limits, sides
from deepcluster.presets import read_shares
from deepcluster.runs.images import images_at_hand
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.log import warn
from deepcluster.runtime.plain_files import own_sha256, write_csv
from deepcluster.storage import run_folder
from deepcluster.storage.content import Row
from deepcluster.storage.files import check_outside, new_folder, write_whole
from deepcluster.storage.model_files import read_annotations
from deepcluster.texts import one_line, plural, some

MAX_NAME_BYTES = 255  # ext4, APFS, NTFS (there UTF-16 units, which are never more)
MAX_LABEL_BYTES = 100
MAX_SUFFIX = 20  # characters
_FORBIDDEN = set('<>:"/\\|?*')  # on Windows

OUTLIERS = ("keep", "separate", "leave")  # in their cluster, in a folder of their own, or out
JUNK = "_junk"
APART = "_outliers"
METADATA = "metadata.csv"  # in each part of a data set
METADATA_COLUMNS = ("file_name", "cluster", "name", "junk", "distance", "margin", "is_outlier")
# Suffixes that `datasets` takes for an image; other files are written as PNG.
SUFFIXES = IMAGE_SUFFIXES - {".heic", ".heif", ".hif", ".avif"}


def cluster_folder(number: int, name: str = "") -> str:
    """Return ``003``, or ``003-name``; characters that a file system may refuse become ``_``."""
    safe = _replace(name, lambda char: char.isprintable() and char not in _FORBIDDEN)
    label = _shorten(safe.strip(), MAX_LABEL_BYTES).strip(" .")
    return f"{number:03}-{label}" if label else f"{number:03}"


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


def distinct(names: Sequence[str]) -> list[str]:
    """Return FOLDER/NAME in order; the second of two equal names gets ``-2`` before its suffix, and so on.

    Names of one :func:`key` are equal, because a file system would mix them up.
    """
    taken = {key(name) for name in names}
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name_key := key(name)] += 1
        chosen = name
        if counts[name_key] > 1:
            folder, slash, last = name.rpartition("/")
            stem, suffix = stem_and_suffix(last)
            while key(chosen := folder + slash + _fitting(stem, f"-{counts[name_key]}{suffix}")) in taken:
                counts[name_key] += 1
            taken.add(key(chosen))
        unique.append(chosen)
    return unique


@dataclass(frozen=True)
class RunImages:
    """The images of a run."""

    rows: tuple[Row, ...]  # all of clusters.csv, with the names of the model
    source: Source  # the images that are at hand
    index: Mapping[str, int]  # of an image in the source, by path
    junk: Set[str]  # clusters that a person marked

    def is_file(self, row: Row) -> bool:
        """Tell if the image of a row is a file, and so not written as PNG."""
        return self.original(row["path"]) is not None or (row["path"] not in self.index and self.source.items.of_files)

    def original(self, path: str) -> Path | None:
        """Return the path of an image's file, unchecked; None if it has no file or is not at hand."""
        return self.source.file(self.index[path]) if path in self.index else None

    def check_outside_of(self, out: Path) -> None:
        """Raise UsageError if an image lies in ``out``: it would go with the tree that is replaced."""
        top = os.path.realpath(out)
        for path in self.index:
            if (file := self.original(path)) and Path(os.path.realpath(file)).is_relative_to(top):
                raise UsageError(f"{one_line(path)}, an image of the run, lies in -o {out}: give another -o")

    def quality(self, path: str) -> tuple[int, float] | None:
        """Return the pixels of an image and the sum of squared differences of neighbours; None if it is unreadable."""
        try:
            image = self.source.read(self.index[path])
        except (Undecodable, OSError):
            return None
        grey = np.asarray(image.convert("L"), np.float32)
        return image.width * image.height, sum(float(np.square(np.diff(grey, axis=axis)).sum()) for axis in (0, 1))

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
    rows, about = run_folder.read_state(run, lambda state: (state.read_clusters(), read_annotations(state)))
    source = images_at_hand(folder, None if images is None else find(images))
    index = {path: i for i, path in enumerate(source.paths)} if source else {}
    used = [row for row in rows if row["status"] == "ok"]
    if source is None or not any(row["path"] in index for row in used):
        location = source.location if source else folder.read_record().location
        raise DataError(
            f"none of the {len(used):,} images of {run} was found (they were in {one_line(location)}): say where they"
            " are now with --images IMAGES"
        )
    # The model's names count, because people edit tables.
    named = ({**row, "name": about.names[int(row["cluster"])] if row["cluster"] else ""} for row in rows)
    return RunImages(tuple(named), source, index, {*map(str, about.junk)})


def _copy(file: Path, target: Path) -> None:
    shutil.copyfile(file, target)
    with suppress(OSError):  # times and permissions, if the file system has them
        shutil.copystat(file, target)


PNG = "png"
WAYS: dict[str, Callable[[Path, Path], None]] = {
    "symlink": os.symlink,
    "hardlink": lambda file, target: os.link(os.path.realpath(file), target),  # a link to a link would be one
    "copy": _copy,
}
WORDS = {"symlink": "symbolic links", "hardlink": "hard links", "copy": "copies", PNG: "PNG files"}


class Transfer:
    """Brings images of a run to new places by a ``mode`` (None: the first that works for a file), and counts.

    An image that is not a file, or whose target is a .png of another format, is decoded and written as PNG.
    """

    def __init__(self, images: RunImages, mode: str | None):
        if mode is not None and mode not in WAYS:
            raise UsageError(f"--mode {mode}: choose {', '.join(WAYS)}, or leave it out")
        self.images = images
        self.of_files = images.source.items.of_files
        self.ways = tuple(WAYS) if mode is None else (mode,)  # tried in turn
        self.refused: dict[str, str] = {}  # the first refusal of a way, with its reason
        self.files: Counter[str] = Counter()  # by way

    def __call__(self, path: str, target: Path) -> str:
        """Bring an image to ``target``; return the way. Raises Undecodable, or an OSError of the target."""
        file = self.images.file(path)
        if os.path.lexists(target):  # a copy would overwrite the target of a link
            raise Undecodable("another file has its name there")
        way = PNG
        if file is not None and (target.suffix != ".png" or file.suffix.lower() == ".png"):
            way = self.link_or_copy(file, target)
        else:
            try:
                image = self.images.source.read(self.images.index[path])
            except OSError as error:  # of the original
                raise Undecodable(explain(error)) from None
            with target.open("xb") as stream:
                image.save(stream, "PNG")
        self.files[way] += 1
        return way

    def link_or_copy(self, file: Path, target: Path) -> str:
        """Bring a file to ``target`` by the first way that works, and return the way."""
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

    @property
    def text(self) -> str:
        """Number of files by mode, and the modes that were refused."""
        done = ", ".join(f"{self.files[way]:,} {WORDS[way]}" for way in WORDS if self.files[way])
        refused = "".join(f"; {WORDS[way]} are refused there ({why})" for way, why in self.refused.items())
        why = "" if self.of_files else " (these images are not files)"
        return f"{done}{why}{refused}"

    @property
    def plan(self) -> str:
        """Modes that will be tried."""
        return ", else ".join(WORDS[way] for way in (self.ways if self.of_files else (PNG,)))


def folders(  # noqa: PLR0913, PLR0915 a parameter is a flag
    run: Path,
    out: Path,
    *,
    layout: str = "named",
    mode: str | None = None,
    images: Images | None = None,
    outliers: str = "keep",
    duplicates: str = "all",
    split: str | Sequence[float] | None = None,
    n: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    display: Display | None = None,
) -> Sequence[Row]:
    """Sort the images of a run into a folder per cluster, with an inventory.

    Images that are not files are written as PNG at their own size.

    Args:
        layout: "named": folders NUMBER-NAME, junk clusters below ``_junk``. "dataset": train/NUMBER/ and
            train/metadata.csv for Hugging Face's ``datasets``. Names of files are made plain there, and names of
            clusters are in the metadata only: ``datasets`` takes a folder called test, or 003-test, for another split.
        mode: symlink, hardlink or copy; default: the first of these that works for a file, a copy in a data set.
        images: The place of the images, if it is no longer the run's.
        outliers: "keep": in their clusters; "separate": below ``_outliers``; "leave": not exported. Outliers in junk
            clusters are junk. A data set cannot have them separate.
        duplicates: "all", or "first": of nearly identical images only the best, the largest and among these the
            sharpest; the inventory says which one stands for the others.
        split: The shares of train, validation and test (``".8,.1,.1"`` or three numbers), which become the upper
            folders. Images of a set in duplicates.csv stay together. Each part with a share has every cluster with
            enough such sets or single images.
        n: Number of images, drawn uniformly over the clusters; None: all.
        seed: Of ``split`` and ``n``.
        overwrite: Replace the tree that an export made at ``out``, if nobody changed it.
        dry_run: Write nothing, only print the plan.
        display: For progress and the outcome.

    Returns:
        The rows of inventory.csv, none after a dry run. Images that are left out are in it, and a warning names them.

    Raises:
        DataError: No image can be exported.
    """
    display = display or Silent()
    dataset = layout == "dataset"
    if outliers not in OUTLIERS:
        raise UsageError(f"outliers={outliers!r}: choose {' or '.join(OUTLIERS)}")
    if dataset and outliers == "separate":
        raise UsageError(
            f"outliers={outliers!r}: choose keep or leave. Every folder of an image folder is a class, and is_outlier"
            " is a column of its metadata.csv"
        )
    if duplicates not in ("all", "first"):
        raise UsageError(f"duplicates={duplicates!r}: choose all or first")
    if n is not None and n < 1:
        raise UsageError(f"n={n}: give a number of at least 1")
    if split is not None:
        split = read_shares(split if isinstance(split, str) else ",".join(map(str, split)))
    members = read_run_images(run, images)
    check_outside(out, Path(members.source.location))
    if overwrite:
        members.check_outside_of(out)
    replaces = replaceable(out, members.file, overwrite=overwrite)
    transfer = Transfer(members, mode or ("copy" if dataset else None))
    left: dict[str, str] = {}  # the reasons of images that are left out, by path
    if outliers == "leave":
        junk = () if dataset else members.junk
        rows = (row for row in members.rows if row["is_outlier"] == "1" and row["cluster"] not in junk)
        left = {row["path"]: "outlier" for row in rows}

    def wanted() -> dict[str, str]:
        """Return the clusters of the images that are at hand and not left out so far."""
        rows = (row for row in members.rows if row["status"] == "ok" and row["path"] in members.index)
        return {row["path"]: row["cluster"] for row in rows if row["path"] not in left}

    worse: Mapping[str, str] = {}
    if duplicates == "first":
        with pillow_limits():
            worse = _duplicates(run, members, wanted().keys())
        left |= worse
    if n is not None:
        left |= dict.fromkeys(wanted().keys() - balanced(wanted(), n, seed), "not drawn")
    part_of: dict[str, str] = {}
    if split:
        if (set_of := _set_of(run)) is None:
            warn(f"{run} has no duplicates.csv: nearly identical images may come into different parts")
        part_of = split_up(wanted(), split, set_of or {}, seed)
    targets = _targets(members, left.keys(), part_of, dataset=dataset, apart=outliers == "separate")
    if dry_run:
        _show(out, targets, transfer, display)
        return ()
    with replacing(out) if replaces else new_folder(out) as folder, pillow_limits():
        inventory, missing = _fill(folder, targets, left, transfer, display)
        if dataset:
            inventory += _write_metadata(folder, targets, inventory, members)
        write_inventory(folder, inventory)
        if replaces:
            replace_tree(out, folder, inventory, members.file)
    if missing:
        warn(f"{len(missing):,} images are missing or cannot be used, and are left out: {some(missing)}")
    if worse:
        display.say("Left out", f"{plural(len(worse), 'nearly identical image')}: see {INVENTORY}")
    if part_of:
        sizes = Counter(part_of.values())
        display.say("Split", ", ".join(f"{part} {sizes[part]:,}" for part in PARTS))
    display.say("Exported", f"{plural(transfer.files.total(), 'image')} to {out}: {transfer.text}")
    if transfer.files["symlink"]:
        display.say("Links", f"point to the images: keep the images where they are; {out} can be moved")
    if dataset:
        display.say("Metadata", "the files keep theirs, such as time and place: see docs/export.md to remove it")
        display.say("Load", f'datasets.load_dataset("imagefolder", data_dir={str(out)!r})')
    return inventory


imagefolder = partial(folders, layout="dataset")

Targets = Sequence[tuple[Row, str]]  # rows of clusters.csv with FOLDER/NAME; "" for images that stay out


def _targets(images: RunImages, left: Set[str], part_of: Mapping[str, str], *, dataset: bool, apart: bool) -> Targets:
    """Return the targets of all images but those ``left`` out; with ``apart`` outliers are in folders of their own."""

    def target(row: Row) -> str:
        """Return the folder of an image and its preferred name there."""
        number = int(row["cluster"])
        name = PurePosixPath(row["path"]).name
        part = part_of.get(row["path"], PARTS[0] if dataset or part_of else "")
        kind = JUNK if row["cluster"] in images.junk else APART if apart and row["is_outlier"] == "1" else ""
        folder = cluster_folder(number, row["name"])
        if dataset:
            kind, folder, name = "", cluster_folder(number), plain(name)
        refused = dataset and stem_and_suffix(name)[1].lower() not in SUFFIXES
        name = _fitting(name, ".png") if refused or not images.is_file(row) else name
        return "/".join(filter(None, (part, kind, folder, name)))

    preferred = [target(row) if row["status"] == "ok" and row["path"] not in left else "" for row in images.rows]
    names = iter(distinct([name for name in preferred if name]))
    return [(row, next(names) if name else "") for row, name in zip(images.rows, preferred, strict=True)]


def _duplicates(run: Path, images: RunImages, wanted: Set[str]) -> dict[str, str]:
    """Return why images are left out, by path: a better one of ``wanted`` looks (nearly) the same."""
    if (set_of := _set_of(run)) is None:
        raise DataError(f"{run} has no duplicates.csv, so nothing says which images are the same: omit --duplicates")
    groups: dict[str, list[tuple[int, float, str]]] = {}
    for path, group in set_of.items():
        if path in wanted and (quality := images.quality(path)):
            groups.setdefault(group, []).append((*quality, path))
    worse = {}
    for alike in groups.values():
        best = max(alike, key=lambda image: image[:2])  # the first of equal ones
        for pixels, sharpness, path in alike:
            if path != best[2]:
                why = "larger" if pixels < best[0] else "sharper" if sharpness < best[1] else "the same"
                worse[path] = f"duplicate of {best[2]}, which is {why}"
    return worse


def _set_of(run: Path) -> dict[str, str] | None:
    """Return the sets of near-duplicates by the paths of their images; None if the run does not know them."""
    folder = run_folder.open_run(run)
    known = folder.has("duplicates.csv")
    return {row["path"]: row["group"] for row in folder.read_rows("duplicates.csv")} if known else None


def _fill(
    folder: Path, targets: Targets, left: Mapping[str, str], transfer: Transfer, display: Display
) -> tuple[list[Row], list[str]]:
    """Bring every image to its target. Return the rows of the inventory, and the missing images with the reason."""
    inventory: list[Row] = []
    missing: list[str] = []
    for inside in {Path(target).parent for _, target in targets if target}:
        (folder / inside).mkdir(parents=True, exist_ok=True)
    for row, target in targets:
        exported, how = target, left.get(row["path"], "skipped")
        if target:
            try:
                how = transfer(row["path"], folder / target)
            except Undecodable as error:
                exported, how = "", f"missing: {error}"
                missing.append(f"{one_line(row['path'])} ({error})")
        made = {"exported_path": exported, "how": how, "sha256": own_sha256(folder / exported) if exported else ""}
        inventory.append({name: row[name] for name in ("path", "cluster", "name")} | made)
        display.progress("exporting", len(inventory), len(targets))
    if not transfer.files and not missing:
        raise DataError("all images are outliers, and these are left out: nothing is left to export")
    if not transfer.files:
        raise DataError(f"none of the {len(missing):,} images can be exported: {some(missing)}")
    return inventory, missing


def _write_metadata(out: Path, targets: Targets, inventory: Sequence[Row], images: RunImages) -> list[Row]:
    """Write metadata.csv of every part of a data set, the results for its images; return the rows of the inventory."""
    columns = (*METADATA_COLUMNS, "label") if any(row["label"] for row, _ in targets) else METADATA_COLUMNS
    rows: dict[str, list[dict[str, object]]] = defaultdict(list)
    for (row, target), entry in zip(targets, inventory, strict=True):
        if entry["exported_path"]:
            part, _, name = target.partition("/")
            about = {"file_name": name, "junk": int(row["cluster"] in images.junk)}
            rows[f"{part}/{METADATA}"].append({column: {**row, **about}[column] for column in columns})
    made: list[Row] = []
    for file, content in rows.items():
        write_whole(out / file, partial(write_csv, columns=columns, rows=content))
        entry = {"path": "", "cluster": "", "name": "", "exported_path": file, "how": "metadata"}
        made.append({**entry, "sha256": own_sha256(out / file)})
    return made


def _show(out: Path, targets: Targets, transfer: Transfer, display: Display) -> None:
    sizes = Counter(str(Path(target).parent) for _, target in targets if target)
    for folder in sorted(sizes):
        display.say("Folder", f"{out / folder}: {plural(sizes[folder], 'image')}")
    away = sum(row["path"] not in transfer.images.index for row, target in targets if target)
    missing = f"; {away:,} no longer exist" if away else ""
    images = plural(sizes.total() - away, "image")
    display.say("Would do", f"{images} as {transfer.plan}{missing}; nothing is written now")
