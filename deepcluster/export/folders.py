"""Images of a run in a folder per name: as a person sorts them, or as a data set for Hugging Face."""

import os
import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from deepcluster.errors import DataError, DiskError, UsageError
from deepcluster.export.plan import (
    CARD,
    DUPLICATE,
    INVENTORY,
    INVENTORY_COLUMNS,
    METADATA,
    OF_FILE_MANAGERS,
    RunImages,
    Target,
    plan,
    read_run_images,
)
from deepcluster.export.read_back import read_back
from deepcluster.export.split import PARTS
from deepcluster.images.decode import Undecodable, explain, pillow_limits
from deepcluster.model import WORDS
from deepcluster.recipes.flags import Sorting
from deepcluster.runs.result import Outcome
from deepcluster.runs.run import Run
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.log import warn
from deepcluster.runtime.tables import write_csv
from deepcluster.storage.content import Row
from deepcluster.storage.files import check_no_folder, check_outside, new_folder, write_whole
from deepcluster.texts import a_few, one_line, plural, quality_text

METADATA_COLUMNS = ("file_name", "cluster", "name", "by", "junk", "distance", "margin", "is_outlier")


def folders(
    run: Path, out: Path, sorting: Sorting = Sorting(), *, display: Display = Silent(), **choices: Any
) -> Sequence[Row]:
    """Sort the images of a run into a folder per name, or per cluster without one, with an inventory.

    Images that are not files are written as PNG at their own size.

    Args:
        sorting: Choices; or ``choices``, its fields, such as ``mode="copy"``.
        display: For progress and the outcome.

    Returns:
        The rows of inventory.csv, none after a dry run. Images that are left out are in it, and a warning names them.

    Raises:
        DataError: No image can be exported.

    Examples:
        >>> rows = folders(Path("runs/photos"), Path("sorted"), mode="copy")
        >>> rows[0]["exported_path"], Path("sorted/000-beach/a.png").is_file()
        ('000-beach/a.png', True)
    """
    sorting = replace(sorting, **choices)
    members = read_run_images(run, sorting.images)
    if members.outcome.record.of_folder:
        check_outside(out, members.base)
    replaces = sorting.overwrite and out.is_dir() and any(out.iterdir())
    check = check_of_links if replaces else check_no_folder
    check(out)
    if replaces:
        check_read(out, run, members.outcome.run)
    targets = plan(members, sorting)
    default = ("copy",) if sorting.is_dataset else tuple(WAYS)
    transfer = Transfer(members, (sorting.mode,) if sorting.mode else default)
    if sorting.dry_run:
        _show(targets, out, transfer, display)
        return ()
    with new_folder(out, check) as folder, pillow_limits():
        inventory = _carry_out(targets, folder, transfer, display)
        metadata = _write_metadata(folder, targets, inventory, members) if sorting.is_dataset else []
        rows = [*inventory, *metadata]
        write_whole(folder / INVENTORY, partial(write_csv, columns=INVENTORY_COLUMNS, rows=rows))
    _say(inventory, out, sorting, transfer, display)
    return rows


imagefolder = partial(folders, is_dataset=True)


def check_of_links(out: Path) -> None:
    """Raise DiskError unless ``out`` has nothing but folders, links, an inventory and the files of file managers.

    A link is no original, so such a tree may be replaced.
    """
    way_out = f"is left as it is: give another folder (-o), or remove {out}"
    if out.is_symlink() or not (out / INVENTORY).is_file():
        raise DiskError(f"{out} is no folder of an export (it has no {INVENTORY}), and {way_out}")
    for parent, _, names in os.walk(out):
        for path in (Path(parent, name) for name in sorted(names)):
            if not (path.is_symlink() or path == out / INVENTORY or path.name in OF_FILE_MANAGERS):
                name = one_line(path.relative_to(out).as_posix())
                raise DiskError(f"{out} has files, such as {name}, and --overwrite replaces links alone; it {way_out}")


def check_read(out: Path, place: Path, run: Run) -> None:
    """Raise DiskError if a person moved links of the tree at ``out``, and the run has not been taught so."""
    with suppress(UsageError):  # all of its images are gone
        back = read_back(out, run)
        if count := len(back.answers) + len(back.names):
            command = shlex.join(["deepcluster", "teach", str(place), str(out)])
            raise DiskError(f"{plural(count, 'image or folder')} of {out} was moved: take that over first by {command}")


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
WAY_NAMES = {"symlink": "symbolic links", "hardlink": "hard links", "copy": "copies", PNG: "PNG files"}


@dataclass
class Transfer:
    """Brings images of a run to new places by the first of ``modes`` that works for a file, and counts.

    An image that is not a file, or whose target is a .png of another format, is decoded and written as PNG.
    """

    images: RunImages
    modes: Sequence[str]
    refused: dict[str, str] = field(default_factory=dict)  # the first refusal of a way, with its reason
    missing: list[str] = field(default_factory=list)  # images that cannot be exported, with the reason
    files: Counter[str] = field(default_factory=Counter)  # by way

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
        for way in self.modes:
            try:
                WAYS[way](file, target)
                return way
            except OSError as error:
                if way == "copy":  # there is no other way
                    raise
                self.refused.setdefault(way, explain(error))
        raise DiskError(
            f"{WAY_NAMES[way]} are refused there ({self.refused[way]}): omit --mode to fall back to whatever works"
        )

    @property
    def text(self) -> str:
        """Number of files by mode, and the modes that were refused."""
        done = ", ".join(f"{self.files[way]:,} {WAY_NAMES[way]}" for way in WAY_NAMES if self.files[way])
        refused = "".join(f"; {WAY_NAMES[way]} are refused there ({why})" for way, why in self.refused.items())
        why = "" if self.images.source.items.of_files else " (these images are not files)"
        return f"{done}{why}{refused}"

    @property
    def plan(self) -> str:
        """Modes that will be tried."""
        return ", else ".join(WAY_NAMES[way] for way in (self.modes if self.images.source.items.of_files else (PNG,)))


def _carry_out(targets: Sequence[Target], folder: Path, transfer: Transfer, display: Display) -> list[Row]:
    """Bring every image to its target, and return the rows of the inventory. DataError if no image can be exported."""
    inventory: list[Row] = []
    for inside in {Path(target.place).parent for target in targets if target.place}:
        (folder / inside).mkdir(parents=True, exist_ok=True)
    for target in targets:
        place = target.place
        how = target.reason
        if place:
            try:
                how = transfer(target.row["path"], folder / place)
            except Undecodable as error:
                place, how = "", f"missing: {error}"
                transfer.missing.append(f"{one_line(target.row['path'])} ({error})")
        about = {name: target.row[name] for name in ("path", "cluster", "name", "by")}
        inventory.append({**about, "exported_path": place, "how": how})
        display.progress("exporting", len(inventory), len(targets))
    if transfer.files:
        return inventory
    if transfer.missing:
        raise DataError(f"none of the {len(transfer.missing):,} images can be exported: {a_few(transfer.missing)}")
    raise DataError("all images are outliers, and these are left out: nothing is left to export")


def _write_metadata(out: Path, targets: Sequence[Target], inventory: Sequence[Row], images: RunImages) -> list[Row]:
    """Write metadata.csv of every part of a data set, the results for its images; return the rows of the inventory."""
    with_labels = any(target.row["label"] for target in targets)
    columns = (*METADATA_COLUMNS, "label") if with_labels else METADATA_COLUMNS
    rows: dict[str, list[dict[str, object]]] = defaultdict(list)
    for target, entry in zip(targets, inventory, strict=True):
        if entry["exported_path"]:
            part, _, name = target.place.partition("/")
            about = {**target.row, "file_name": name, "junk": int(target.row["cluster"] in images.junk)}
            rows[f"{part}/{METADATA}"].append({column: about[column] for column in columns})
    for file, content in rows.items():
        write_whole(out / file, partial(write_csv, columns=columns, rows=content))
    card = _card(rows, images.outcome)
    write_whole(out / CARD, lambda file: file.write(card))
    entry = {"path": "", "cluster": "", "name": "", "by": "", "how": "metadata"}
    return [{**entry, "exported_path": file} for file in (*rows, CARD)]


def _card(metadata: Mapping[str, Sequence[Mapping[str, Any]]], outcome: Outcome) -> str:
    """Return the text about a data set: images per class, how the labels came about, and the estimate of quality."""
    model = outcome.run.model.identity
    counts: Counter[tuple[str, str]] = Counter()
    for file, rows in metadata.items():
        for row in rows:
            name = str(row["file_name"]).rpartition("/")[0]
            counts.update([(name, file.partition("/")[0]), (name, row["by"]), ("", row["by"])])
    classes = sorted({name for name, _ in counts if name})
    columns = [*(part for part in PARTS if f"{part}/{METADATA}" in metadata), *WORDS]
    lines = [["class", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(f"{counts[name, column]:,}" for column in columns)] for name in classes]
    answer, checked, drawn, rest = (counts["", word] for word in (*WORDS, ""))
    quality = quality_text(outcome.quality) if outcome.quality else "The share of right labels was not estimated."
    return "\n".join([
        f"# {plural(sum(map(len, metadata.values())), 'image')} of {len(classes):,} classes\n",
        *(f"| {' | '.join(line)} |" for line in lines),
        f"\nThe classes are clusters of DeepCluster {model.version}. {answer + drawn:,} labels are answers of a person"
        f" ({drawn:,} about images drawn at random), {checked:,} were checked by one, the other {rest:,} are the"
        f" program's (column `by` of `{METADATA}`).\n",
        f"{quality} ({model.date})\n",
        f"Model: {model.digest}\n",
    ])  # fmt: skip


def _say(inventory: Sequence[Row], out: Path, sorting: Sorting, transfer: Transfer, display: Display) -> None:
    """Print the outcome."""
    if missing := transfer.missing:
        warn(f"{len(missing):,} images are missing or cannot be used, and are left out: {a_few(missing)}")
    if worse := sum(row["how"].startswith(DUPLICATE) for row in inventory):
        display.say("Left out", f"{plural(worse, 'nearly identical image')}: see {INVENTORY}")
    if sorting.split is not None:
        sizes = Counter(row["exported_path"].partition("/")[0] for row in inventory)
        display.say("Split", ", ".join(f"{part} {sizes[part]:,}" for part in PARTS))
    display.say("Exported", f"{plural(transfer.files.total(), 'image')} to {out}: {transfer.text}")
    if transfer.files["symlink"]:
        display.say("Links", f"point to the images: keep the images where they are; {out} can be moved")
    if sorting.is_dataset:
        display.say("Metadata", "the files keep theirs, such as time and place: see docs/export.md to remove it")
        display.say("Load", f'datasets.load_dataset("imagefolder", data_dir={str(out)!r})')


def _show(targets: Sequence[Target], out: Path, transfer: Transfer, display: Display) -> None:
    """Print the plan."""
    sizes = Counter(str(Path(target.place).parent) for target in targets if target.place)
    for folder in sorted(sizes):
        display.say("Folder", f"{out / folder}: {plural(sizes[folder], 'image')}")
    away = sum(target.row["path"] not in transfer.images.index for target in targets if target.place)
    missing = f"; {away:,} no longer exist" if away else ""
    images = plural(sizes.total() - away, "image")
    display.say("Would do", f"{images} as {transfer.plan}{missing}; nothing is written now")
