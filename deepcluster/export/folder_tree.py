"""Images sorted into a folder for each cluster, with an inventory of where each image went."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from deepcluster.errors import DataError, DeepClusterWarning
from deepcluster.export.filenames import distinct
from deepcluster.export.run_images import Row, RunImages
from deepcluster.export.transfer import WORDS, Transfer, Unavailable
from deepcluster.images.csv_files import write_csv
from deepcluster.images.decode import one_line, pillow_limits
from deepcluster.report.text import count
from deepcluster.runtime.console import Display
from deepcluster.storage.files import check_no_folder, check_outside, new_folder, write_whole

INVENTORY = "inventory.csv"
INVENTORY_COLUMNS = ("path", "cluster", "name", "exported_path", "how")
NAMED = 5  # missing images that are named on the screen

Target = Callable[[Row], tuple[str, str] | None]  # the folder of an image, and its preferred name there; None: left out


def _targets(rows: Sequence[Row], target: Target) -> tuple[str, ...]:
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


def write_folders(
    out: Path,
    members: RunImages,
    target: Target,
    mode: str | None,
    *,
    strip: bool,
    dry_run: bool,
    display: Display,
    finish: Callable[[Path, Sequence[Row]], None] = lambda folder, inventory: None,
) -> tuple[Row, ...]:
    """Make a folder with every image at its target, and inventory.csv.

    Args:
        out: The folder.
        members: The images of a run.
        target: Where the image of a row goes.
        mode: As in ``Transfer``.
        strip: As in ``Transfer``.
        dry_run: Write nothing, only say what would be done.
        display: Where progress and the outcome go.
        finish: Adds files to the folder before it gets its name, given the folder and the inventory.

    Returns:
        The inventory, empty after a dry run. Images that are left out are in it, and a warning names them.

    Raises:
        DataError: No image can be exported.
    """
    check_outside(out, Path(members.source.location))
    transfer = Transfer(members.source, mode, strip=strip, roots=members.roots)
    targets = _targets(members.rows, target)
    if dry_run:
        _show(out, members, targets, transfer, display)
        return ()
    inventory: list[Row] = []
    missing: list[str] = []
    with new_folder(out) as folder, pillow_limits():
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
        write_whole(folder / INVENTORY, lambda file: write_csv(file, INVENTORY_COLUMNS, inventory))
        finish(folder, inventory)
    if missing:
        text = f"{len(missing):,} images no longer exist or cannot be used, and are left out: {_some(missing)}"
        warnings.warn(text, DeepClusterWarning, stacklevel=2)
    display.say("Exported", f"{count(transfer.files.total(), 'image')} to {out}: {transfer.text}")
    if transfer.files["symlink"]:
        display.say("Links", f"are absolute: {out} may be moved, the images may not")
    return tuple(inventory)


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
