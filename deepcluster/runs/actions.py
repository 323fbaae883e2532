"""The actions of the served page: each is a change of the run, or a question about it.

All take a JSON object with the ``version`` of the page. ``apply`` takes ``edits`` (as in edits.json), ``undo`` and
``redo`` take ``changes`` (default 1), ``recut`` takes ``k``, ``teach`` and ``ask`` take ``taught``, ``preview`` takes
``change``, the name of one of the changes. ``export``, ``read`` and ``open`` take ``sorting``, ``list`` takes
``clusters`` and ``order``, ``facts`` and ``alike`` take ``rows``.
"""

import os
import re
import webbrowser  # noqa: TID251 (the button *Open folder*)
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.errors import UsageError
from deepcluster.groups.cut import Placement
from deepcluster.groups.tree import MAX_IN_TREE
from deepcluster.model import WORDS
from deepcluster.recipes.flags import Sorting
from deepcluster.runs import teach
from deepcluster.runs.apply import by_edits
from deepcluster.runs.change import Carried, Change, ChangeOf, by_history, preview
from deepcluster.runs.quality import kinds_of
from deepcluster.runs.recut import by_number
from deepcluster.runs.run import Run
from deepcluster.runtime.bounded import shaped
from deepcluster.runtime.console import Several
from deepcluster.storage import run_folder
from deepcluster.storage.content import Row
from deepcluster.storage.edits_file import checked_name, edits_of
from deepcluster.storage.former import MAX_STATES
from deepcluster.texts import bare, inert

FOLDER_NAME = re.compile(r"\w([\w .()-]{0,98}[\w)])?")
SORTED = "inventory.csv"  # of a folder of sorted images
MAX_ROWS = 200  # a page asks about at a time
MAX_ALIKE = 8
MAX_SHOWN = 48  # images of a move in a preview
MAX_FACES = 4  # images of a cluster in the preview of another number
ORDERS: Mapping[str, Callable[[Placement, Tensor], Tensor]] = {
    "near": lambda placement, rows: placement.distance[rows],
    "far": lambda placement, rows: -placement.distance[rows],
    "doubt": lambda placement, rows: placement.margin[rows],
    "path": lambda placement, rows: rows,
}
NumberOfPage = Annotated[int, range(1, MAX_STATES + 1)]
ClustersOfPage = Annotated[int, range(2, MAX_IN_TREE + 1)]  # more take minutes
Sort = Callable[..., Sequence[Row]]  # ``export.folders``
Read = Callable[[Path], ChangeOf]  # ``export.read_back.by_folder``
PageRequest = Mapping[str, Any]


@dataclass(frozen=True)
class Teaching:
    """Answers of a person at the page, not applied yet."""

    answers: tuple[teach.Answer, ...] = ()  # about rows
    n: Annotated[int, range(1, 1001)] = 10  # questions that the page wants


def teaching_of(request: PageRequest) -> Teaching:
    taught: Teaching = shaped(request.get("taught"), Teaching, "taught")
    if unknown := {answer.by for answer in taught.answers}.difference(WORDS):
        raise UsageError(f"an answer is by one of {', '.join(WORDS)}, and not by {min(unknown)[:80]!a}")
    answers = tuple(replace(answer, name=checked_name(answer.name), may_be_new=True) for answer in taught.answers)
    return replace(taught, answers=answers)


def places_for_folders(folder: run_folder.RunFolder) -> dict[str, Path]:
    """Return the folders that sorted images may go into: beside the run, and beside the folder of its images."""
    places = {"run": folder.path, "images": Path(folder.read_record().base)}
    return {key: Path(os.path.abspath(path)).parent for key, path in places.items() if path.is_dir()}  # noqa: PTH100


def default_name(folder: run_folder.RunFolder) -> str:
    return f"{Path(os.path.abspath(folder.path)).name}-sorted"  # noqa: PTH100


def _by_history(request: PageRequest, *, forward: bool = False) -> ChangeOf:
    return partial(by_history, shaped(request.get("changes", 1), NumberOfPage, "changes"), forward=forward)


def _by_answers(request: PageRequest) -> ChangeOf:
    taught = teaching_of(request)
    return lambda _, run: teach.taught_by(run, taught.answers)


def _sorting(folder: run_folder.RunFolder, request: PageRequest) -> tuple[Path, dict[str, Any]]:
    """Return the folder of sorted images that a page means, and its other choices."""
    choices: dict[str, Any] = {"name": default_name(folder)}
    if "sorting" in request:
        choices = shaped(request["sorting"], dict[str, str], "sorting")
        if not FOLDER_NAME.fullmatch(choices.get("name", "")):
            raise UsageError("the name of a folder has letters, digits, spaces and -_.(), at most 100: change it")
    name = choices.pop("name")
    place_name = choices.pop("place", "run")
    place = places_for_folders(folder).get(place_name)
    if place is None:
        raise UsageError(f"sorted images go beside the run or beside its images, and not {place_name[:80]!a}")
    if unknown := choices.keys() - {"mode", "outliers", "duplicates"}:
        raise UsageError(f"the page chooses no {min(unknown)[:80]!a}")
    return place / name, choices


def _sorted_folder(folder: run_folder.RunFolder, request: PageRequest) -> Path:
    place, _ = _sorting(folder, request)
    if not (place / SORTED).is_file():  # a folder of other images would answer for each of them
        raise UsageError(f"{place} has no sorted images: sort into it first")
    return place


def read_folder(request: PageRequest, read: Read) -> ChangeOf:
    """Return the change by what a person did in a folder of sorted images."""
    return lambda folder, run: read(_sorted_folder(folder, request))(folder, run)


def sort_images(folder: run_folder.RunFolder, request: PageRequest, sort: Sort) -> dict[str, Any]:
    """Sort the images into folders; return their place and number, and the number of images left out."""
    place, choices = _sorting(folder, request)
    rows = sort(folder.path, place, Sorting(**choices, overwrite=True), display=Several())
    ways = Counter(row["how"].partition(" ")[0].rstrip(":") for row in rows)
    return {"sorted": {"folder": str(place), "images": sum(bool(row["exported_path"]) for row in rows)} | ways}


def _open(folder: run_folder.RunFolder, run: Run, request: PageRequest) -> dict[str, Any]:
    """Open the folder of sorted images in the file manager of this machine."""
    place = _sorted_folder(folder, request)
    if not webbrowser.open(place.as_uri()):
        raise UsageError(f"no file manager can be opened here: the folder is {place}")
    return {}


def _questions(folder: run_folder.RunFolder, run: Run, request: PageRequest) -> dict[str, Any]:
    """Return images to ask about, of which ``known`` ones have an answer, and others drawn at random.

    One of each cluster without a name comes first.
    """
    taught = teaching_of(request)
    row_of = {path: row for row, path in enumerate(run.rows.paths)}
    cluster = run.placement.cluster.tolist()

    def of_page(one: teach.Question) -> dict[str, Any]:
        row = row_of[one.path]
        about = {"row": row, "cluster": cluster[row], "path": inert(bare(one.path)), "known": row in known}
        return {**asdict(one), **about}

    known = run.model.drawn
    chosen, drawn = teach.asked(run, taught.n, taught.answers)
    paths = {one.path for one in chosen}  # of images that are asked about anyway, and then teach
    return {"questions": [[*map(of_page, chosen)], [of_page(one) for one in drawn if one.path not in paths]]}


def _list(folder: run_folder.RunFolder, run: Run, request: PageRequest) -> dict[str, Any]:
    """Return the rows of all images of some clusters, in an order of the page."""
    numbers: tuple[int, ...] = shaped(request.get("clusters"), tuple[int, ...], "clusters")
    order: str = shaped(request.get("order"), str, "order")
    if order not in ORDERS:
        raise UsageError(f"the order of a list is one of {', '.join(ORDERS)}, and not {order[:80]!a}")
    rows = torch.nonzero(torch.isin(run.clusters, torch.tensor(numbers, dtype=torch.int64))).flatten()
    return {"rows": rows[ORDERS[order](run.placement, rows).argsort(stable=True)].tolist()}


def _rows_of(run: Run, request: PageRequest) -> list[int]:
    rows: tuple[int, ...] = shaped(
        request.get("rows"), tuple[Annotated[int, range(len(run.rows.reduced))], ...], "rows"
    )
    if len(rows) > MAX_ROWS:
        raise UsageError(f"a page asks about {MAX_ROWS} rows at a time, and not about {len(rows):,}")
    return [*rows]


def _facts(folder: run_folder.RunFolder, run: Run, request: PageRequest) -> dict[str, Any]:
    """Return path, cluster, distance, outlier and label of images, for a list that shows them."""
    rows = _rows_of(run, request)
    table = run.rows.images.used.at(rows)
    limit = run.model.outliers.limit
    return {
        "path": [inert(bare(path)) for path in table.column("path")],
        "cluster": run.clusters[rows].tolist(),
        "distance": run.placement.distance[rows].tolist(),
        "outlier": (run.rows.residuals[rows] > limit).tolist(),
        "label": [inert(label) for label in table.column("label")],
    }


def _alike(folder: run_folder.RunFolder, run: Run, request: PageRequest) -> dict[str, Any]:
    """Return the images most like some images, the most similar to any of them first."""
    rows = _rows_of(run, request)
    products, others = nearest(run.rows.reduced[rows], MAX_ALIKE + 1, run.rows.reduced)
    ranked = others.flatten()[products.flatten().argsort(descending=True, stable=True)].tolist()
    return {"rows": [row for row in dict.fromkeys(ranked) if row not in rows]}


def preview_of(request: PageRequest, run: Run, change_by: Callable[[str], Change]) -> dict[str, Any]:
    """Return what a change would do: ``change`` is its action, and the rest of the request is as for that action.

    ``moves``: Kind by its cluster, number of images that come to it, and rows of some, the most doubtful first.
    ``faces``: Rows of some images of every cluster after a ``recut``, from the most typical one to the least typical.
    ``names``: Of all clusters, by their numbers. The other keys are those of ``Carried.to_json``.
    """
    action = request.get("change", "teach")
    if not isinstance(action, str) or action not in CHANGES:
        raise UsageError(f"a preview is of one of {', '.join(CHANGES)}, and not of {str(action)[:80]!a}")
    change = change_by(action)
    return Carried(run, change).to_json() | {
        "moves": _moves(run, change) if action != "recut" else [],
        "faces": _faces(change.run) if action == "recut" else [],
        "names": change.run.model.names,
        "quality": change.lines.get("Quality", ""),
    }


def _moves(run: Run, change: Change) -> list[tuple[int, int, list[int]]]:
    """Return the moves of a change to each kind."""
    counts = Counter[int]()
    members: dict[int, list[int]] = {}
    kinds = kinds_of(change.run.model.names)
    for (_, number), count in preview(run, change.run).items():
        kind = int(kinds[number]) if number >= 0 else number
        counts[kind] += count
        members.setdefault(kind, []).append(number)
    after, margin = change.run.clusters, change.run.placement.margin
    moved = run.clusters != after

    def doubtful(numbers: list[int]) -> list[int]:
        rows = torch.nonzero(moved & torch.isin(after, torch.tensor(numbers))).flatten()
        return rows[margin[rows].argsort(stable=True)][:MAX_SHOWN].tolist()

    return [(kind, count, doubtful(members[kind])) for kind, count in counts.most_common()]


def _faces(run: Run) -> list[tuple[int, int, list[int]]]:
    """Return number, size and some images of every cluster, the largest first."""
    order = run.placement.distance.argsort(stable=True)
    cluster = run.clusters[order]
    members = [(number, order[cluster == number]) for number in cluster.unique().tolist() if number >= 0]
    return [
        (number, len(rows), rows[torch.linspace(0, len(rows) - 1, min(MAX_FACES, len(rows))).long()].tolist())
        for number, rows in sorted(members, key=lambda one: -len(one[1]))
    ]


CHANGES: Mapping[str, Callable[[PageRequest], ChangeOf]] = {
    "apply": lambda request: partial(by_edits, edits_of(request.get("edits"))),
    "undo": _by_history,
    "redo": partial(_by_history, forward=True),
    "recut": lambda request: partial(by_number, shaped(request.get("k"), ClustersOfPage, "k"), Several()),
    "teach": _by_answers,
}
QUESTIONS: Mapping[str, Callable[[run_folder.RunFolder, Run, PageRequest], dict[str, Any]]] = {
    "open": _open,
    "ask": _questions,
    "list": _list,
    "facts": _facts,
    "alike": _alike,
}
