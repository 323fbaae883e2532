"""Images sorted into folders, one for each cluster, with an inventory of where each of them is."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from deepcluster.errors import DataError, DeepClusterWarning
from deepcluster.export.filenames import distinct
from deepcluster.export.run_images import Members, Row
from deepcluster.export.transfer import WORDS, Bringer, Unavailable
from deepcluster.images.decode import one_line, pillow_limits
from deepcluster.report.text import count
from deepcluster.runtime.display import Display
from deepcluster.storage.atomic import write_whole
from deepcluster.storage.destination import check_apart, check_no_folder, new_folder
from deepcluster.storage.run_folder import write_csv

INVENTORY = "inventory.csv"
COLUMNS = ("path", "cluster", "name", "exported_path", "how")
NAMED = 5  # missing images that are named on the screen

Place = Callable[[Row], tuple[str, str]]  # the folder of an image, and the name that it would like to have there


def places_of(rows: Sequence[Row], place: Place) -> tuple[str, ...]:
    """FOLDER/NAME for each row of clusters.csv, no two alike; "" for files that were skipped."""
    members: dict[str, list[tuple[int, str]]] = {}
    for i, row in enumerate(rows):
        if row["status"] == "ok":
            folder, name = place(row)
            members.setdefault(folder, []).append((i, name))
    places = [""] * len(rows)
    for folder, inside in members.items():
        names = distinct([name for _, name in inside])
        for (i, _), name in zip(inside, names, strict=True):
            places[i] = f"{folder}/{name}"
    return tuple(places)


def write_tree(
    out: Path,
    members: Members,
    places: Sequence[str],
    mode: str | None,
    strip: bool,
    display: Display,
    finish: Callable[[Path, Sequence[Row]], None] = lambda folder, inventory: None,
) -> tuple[Row, ...]:
    """Make the folder ``out`` with every image of ``members`` at its place, inventory.csv, and what ``finish`` adds.

    Returns the inventory. Images that are not there any more are in it, and a warning names them; DataError where that
    is all of them.
    """
    check_apart(out, members.source)
    bring = Bringer(members.source, mode, strip=strip)
    inventory: list[Row] = []
    missing: list[str] = []
    with new_folder(out) as folder, pillow_limits():
        for inside in {Path(place).parent for place in places if place}:
            (folder / inside).mkdir(parents=True, exist_ok=True)
        for row, place in zip(members.rows, places, strict=True):
            exported, how = "", "skipped"
            if place:
                try:
                    exported, how = place, bring(members.number(row), folder / place)
                except Unavailable as error:
                    exported, how = "", f"missing: {error}"
                    missing.append(f"{one_line(row['path'])} ({error})")
            inventory.append({**{key: row[key] for key in COLUMNS[:3]}, "exported_path": exported, "how": how})
            display.progress("exporting", len(inventory), len(places))
        if not bring.files:
            raise DataError(f"none of the {len(missing):,} images is there any more: {_some(missing)}")
        write_whole(folder / INVENTORY, lambda file: write_csv(file, COLUMNS, inventory))
        finish(folder, inventory)
    if missing:
        text = f"{len(missing):,} images are not there any more and left out: {_some(missing)}"
        warnings.warn(text, DeepClusterWarning, stacklevel=2)
    display.say("Exported", f"{count(bring.files.total(), 'image')} to {out}: {bring.text}")
    if bring.files["symlink"]:
        display.say("Links", f"are absolute: {out} may be moved, the images may not")
    return tuple(inventory)


def show_tree(
    out: Path, members: Members, places: Sequence[str], mode: str | None, strip: bool, display: Display
) -> None:
    """Say what :func:`write_tree` would do."""
    check_apart(out, members.source)
    check_no_folder(out)
    sizes = Counter(str(Path(place).parent) for place in places if place)
    for folder in sorted(sizes):
        display.say("Folder", f"{out / folder}: {count(sizes[folder], 'image')}")
    wanted = [row for row, place in zip(members.rows, places, strict=True) if place]
    away = sum(row["path"] not in members.index for row in wanted)
    bring = Bringer(members.source, mode, strip=strip)
    ways = ", else ".join(WORDS[way] for way in bring.ways)
    missing = f"; {away:,} are not there any more" if away else ""
    display.say(
        "Would do", f"{count(len(wanted) - away, 'image')} as {ways}{missing}, {bring.metadata}; nothing is written now"
    )


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:NAMED]) + (f" and others ({INVENTORY} has all)" if len(texts) > NAMED else "")
