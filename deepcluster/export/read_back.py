"""A sorted folder read back: an image that a person put into another folder is an answer, a renamed folder is a name.

The inventory of an export says where its images were, so an image that still lies there says nothing, whatever happened
to the run since. Without an inventory, as in the folder of the photographs, every image says the name of its folder.
"""

import csv
import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from deepcluster.errors import DataError, UsageError, first_line
from deepcluster.export.plan import APART, INVENTORY, INVENTORY_COLUMNS, JUNK, OF_EXPORTS, kind_folders
from deepcluster.images.files import from_files
from deepcluster.images.source import is_hidden
from deepcluster.images.store import read_once
from deepcluster.runs.apply import applied
from deepcluster.runs.change import Carried, Change, ChangeOf, carry_out
from deepcluster.runs.images import pixel_digests
from deepcluster.runs.run import Run
from deepcluster.runs.teach import Answer, taught_by
from deepcluster.runtime.bounded import check_file
from deepcluster.runtime.console import Display, Several, Silent
from deepcluster.storage.edits_file import Edits, checked_name
from deepcluster.storage.run_folder import RunFolder, read_table
from deepcluster.texts import a_few, one_line, plural


@dataclass(frozen=True)
class ReadBack:
    """The words of a person in a sorted folder."""

    answers: Sequence[Answer]
    names: Mapping[int, str]  # of clusters whose folders were renamed
    new: Sequence[str]  # images that the run does not have, by their paths in the folder
    others: Sequence[str]  # images that were put into no folder of a cluster, and files that are no images


def teach_folder(run: Path, folder: Path, display: Display | None = None, *, dry_run: bool = False) -> Carried:
    """Take over what a person did in a sorted folder, and let the other images of the run follow, as in ``teach``.

    Raises UsageError if no image of the run is there, DataError if the inventory is damaged.
    """
    display = Several(display)
    return carry_out(run, by_folder(folder, display), display, dry_run=dry_run)


def by_folder(folder: Path, display: Display = Silent()) -> ChangeOf:
    """Return the change of :func:`teach_folder`."""

    def change_of(opened: RunFolder, before: Run) -> Change:
        back = read_back(folder, before, display)
        renamed = applied(before, Edits(names=back.names)) if back.names else Change(before)
        change = taught_by(renamed.run, back.answers) if back.answers else renamed
        lines = {**renamed.lines, **change.lines} or {"Answers": f"nothing in {folder} was moved or renamed"}
        if back.new:
            command = shlex.join(["deepcluster", "update", str(opened.place), str(folder)])
            lines["New"] = f"{plural(len(back.new), 'image')} not in the run: {_some(back.new)}. To add them: {command}"
        if back.others:
            lines["Left out"] = f"{plural(len(back.others), 'file')} of no cluster: {_some(back.others)}"
        text = "; ".join(filter(None, dict.fromkeys((renamed.text, change.text))))
        return replace(change, text=text, lines=lines)

    return change_of


def _some(places: Sequence[str]) -> str:
    return a_few([*map(one_line, places)])


def read_back(folder: Path, run: Run, display: Display = Silent()) -> ReadBack:
    """Return what a person did in a sorted folder."""
    exported_to, meaning_of = _inventory(folder, run.rows.paths)
    places, new, others = _located(folder, run, display)
    if not places:
        raise UsageError(f"{folder} has no image of the run: give a folder with sub-folders for its images")
    # A copy in another folder says more than the one that stayed.
    lies_in = {row: next((one for one in dirs if one != exported_to.get(row)), dirs[0]) for row, dirs in places.items()}
    cluster, names = run.clusters.tolist(), [*run.model.names]
    rows = [{"cluster": str(number), "name": names[number]} for number in {*run.model.cut.cluster_of.tolist()}]
    cluster_of = {place: int(number) for number, place in kind_folders(rows).items()}
    members: defaultdict[str, list[int]] = defaultdict(list)
    for row, place in exported_to.items():
        members[place].append(row)
    # A folder of the export means the kind of its name, or its cluster, or (merged, recut) that of most of its images.
    for place, images in members.items():
        sizes = Counter(cluster[row] for row in images)
        then_number, name = meaning_of[place]
        cluster_of[place] = then_number if then_number in sizes else sizes.most_common(1)[0][0]
        if name and name in names:
            cluster_of[place] = names.index(name)

    def kind(place: str) -> tuple[int | None, str]:
        """Return the cluster that a folder means (None: a new one), and its name."""
        last = PurePosixPath(place).name
        number = cluster_of.get(place, cluster_of.get(last))
        return number, re.sub(r"^\d{3,}-(?=.)", "", checked_name(last)) if number is None else names[number]

    renamed: dict[str, str] = {}
    for old, images in members.items():
        ((place, count),) = Counter(lies_in.get(row, "") for row in images).most_common(1)
        is_new = place not in members and not (folder / old).is_dir() and 2 * count > len(images)
        if is_new and _is_kind(place) and cluster_of[old] >= 0 and (name := kind(place)[1]):
            renamed[old], cluster_of[place] = place, cluster_of[old]
            own_name = names[cluster_of[old]] or None
            names = [name if text == own_name or one == cluster_of[old] else text for one, text in enumerate(names)]
    answers = []
    for row, place in lies_in.items():
        if place in (exported_to.get(row), renamed.get(exported_to.get(row, ""))):
            continue
        if not _is_kind(place):
            others += [run.rows.paths[row]] if row in exported_to else []  # others are loose files among folders
            continue
        number, name = kind(place)
        if cluster[row] < 0 or (names[cluster[row]] != name if name else cluster[row] != number):
            answers.append(Answer(row, number, name, apart=bool(exported_to)))
    changed = {number: name for number, name in enumerate(names) if name != run.model.names[number]}
    return ReadBack(answers, changed, new, others)


def _above(place: str) -> str:
    return str(PurePosixPath(place).parent)


def _is_kind(place: str) -> bool:
    """Return whether a folder may be that of a cluster."""
    return PurePosixPath(place).name not in ("", JUNK, APART)


def _inventory(folder: Path, paths: Sequence[str]) -> tuple[dict[int, str], dict[str, tuple[int, str]]]:
    """Return the folders of images in an export, by rows, and a cluster and its name for each of these folders.

    Both are empty if the folder has no inventory.
    """
    file = folder / INVENTORY
    row_of = {path: row for row, path in enumerate(paths)}
    if not file.exists():
        return {}, {}
    try:
        check_file(file)
        rows = read_table(file, INVENTORY_COLUMNS)
        images = [(row, _above(row["exported_path"])) for row in rows if row["exported_path"] and row["path"] in row_of]
        meaning_of = {place: (int(row["cluster"]), row["name"]) for row, place in images}
    except (OSError, ValueError, csv.Error) as error:
        way_out = "remove it, and every image counts that lies in the folder of another cluster"
        raise DataError(f"{file} is damaged ({first_line(error)[:200]}): {way_out}") from None
    return {row_of[row["path"]]: place for row, place in images}, meaning_of


def _located(folder: Path, run: Run, display: Display) -> tuple[Mapping[int, list[str]], list[str], list[str]]:
    """Return the folders that hold the images, by rows; the images that the run does not have; and other files.

    The system tells if a link or a file is an image of the run. Of all other files the content tells.
    """
    images = run.rows.images.used

    def file_of(path: Path) -> tuple[int, int] | None:
        with suppress(OSError, ValueError):
            file = path.stat()
            return file.st_dev, file.st_ino
        return None

    originals = [Path(run.record.base, image["source"] or image["path"]) for image in images]
    row_of = {file_of(path): row for row, path in reversed([*enumerate(originals)]) if not images[row]["member"]}
    row_of.pop(None, None)
    places: defaultdict[int, list[str]] = defaultdict(list)
    unknown = list[str]()
    for parent, inside, files in os.walk(folder):
        inside[:] = [name for name in inside if not is_hidden(name)]
        for path in (Path(parent, name) for name in sorted(files) if name not in OF_EXPORTS and not is_hidden(name)):
            place = path.relative_to(folder).as_posix()
            row = row_of.get(file_of(path))
            (unknown if row is None else places[row]).append(place if row is None else _above(place))
    if not unknown or run.model.of_features:
        return places, [], unknown
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(images.column("sha256")):
        rows_of[digest].append(row)
    source = from_files([(place, folder / place) for place in unknown], folder.name, str(folder))
    new = []
    with TemporaryDirectory(prefix="deepcluster-") as scratch:
        progress = partial(display.progress, "reading")
        store = read_once(source, run.model.store_size, folder=Path(scratch), none_is_fine=True, progress=progress)
        for i, digest in zip(store.usable, pixel_digests(store), strict=True):
            # Of equal images the one that is nowhere yet, and has this name.
            name = PurePosixPath(unknown[i]).name
            rows = sorted(rows_of[digest], key=lambda row: (row in places, originals[row].name != name))
            if rows:
                places[rows[0]].append(_above(unknown[i]))
            else:
                new.append(unknown[i])
    return places, new, [path for path, _ in store.skipped]
