"""The actions of the served page: each is a change of the run, or a question about it."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from deepcluster.errors import UsageError
from deepcluster.flags import Sorting
from deepcluster.groups.tree import MAX_IN_TREE
from deepcluster.runs import lesson as teaching
from deepcluster.runs.change import preview, undo
from deepcluster.runs.edits import apply
from deepcluster.runs.recut import recut
from deepcluster.runs.run import Run
from deepcluster.runtime.console import Several
from deepcluster.runtime.plain_files import shaped
from deepcluster.storage import run_folder
from deepcluster.storage.content import Row
from deepcluster.storage.edits_file import checked_name, edits_of
from deepcluster.storage.model_files import MAX_STEPS
from deepcluster.texts import bare, inert

FOLDER_NAME = re.compile(r"\w([\w .()-]{0,98}[\w)])?")
StepsBack = Annotated[int, range(1, MAX_STEPS + 1)]
GroupsOfPage = Annotated[int, range(2, MAX_IN_TREE + 1)]  # of groups; more take minutes
Sort = Callable[..., Sequence[Row]]  # ``export.folders``


@dataclass(frozen=True)
class Teaching:
    """Answers of a person at the page, not applied yet."""

    answers: tuple[teaching.Answer, ...] = ()  # about rows
    within: int | None = None  # the cluster that they split
    n: Annotated[int, range(1, 1001)] = 10  # questions that the page wants


def teaching_of(request: Mapping[str, Any]) -> Teaching:
    taught: Teaching = shaped(request.get("taught"), Teaching, "taught")
    answers = tuple(replace(answer, name=checked_name(answer.name), may_be_new=True) for answer in taught.answers)
    return replace(taught, answers=answers)


def places_for_folders(folder: run_folder.RunFolder) -> dict[str, Path]:
    """Return the folders that sorted images may go into: beside the run, and beside the folder of its images."""
    places = {"run": folder.path, "images": Path(folder.read_record().location)}
    return {key: Path(os.path.abspath(path)).parent for key, path in places.items() if path.is_dir()}  # noqa: PTH100


def default_name(folder: run_folder.RunFolder) -> str:
    return f"{Path(os.path.abspath(folder.path)).name}-sorted"  # noqa: PTH100


def _teach(run: Path, request: Mapping[str, Any], sort: Sort) -> None:
    taught = teaching_of(request)
    teaching.teach(run, taught.answers, within=taught.within)


def _sort(run: Path, request: Mapping[str, Any], sort: Sort) -> dict[str, Any]:
    """Sort the images into folders; return their place and number, and the number of images left out."""
    folder = run_folder.open_run(run)
    choices: dict[str, Any] = {"name": default_name(folder)}
    if "sorting" in request:
        choices = shaped(request["sorting"], dict[str, str], "sorting")
        if not FOLDER_NAME.fullmatch(choices.get("name", "")):
            raise UsageError("the name of a folder has letters, digits, spaces and -_.(), at most 100: change it")
    name, where = choices.pop("name"), choices.pop("place", "run")
    place = places_for_folders(folder).get(where)
    if place is None:
        raise UsageError(f"sorted images go beside the run or beside its images, and not {where[:80]!a}")
    if unknown := choices.keys() - {"mode", "outliers", "duplicates"}:
        raise UsageError(f"the page chooses no {min(unknown)[:80]!a}")
    rows = sort(run, place / name, Sorting(**choices, overwrite=True), display=Several())
    ways = Counter(row["how"].partition(" ")[0].rstrip(":") for row in rows)
    place_and_number = {"folder": str(place / name), "images": sum(bool(row["exported_path"]) for row in rows)}
    return {"sorted": place_and_number | ways}


def _questions(run: Run, taught: Teaching) -> dict[str, Any]:
    """Return images to ask about, and others drawn at random."""
    row_of = {path: row for row, path in enumerate(run.rows.paths)}
    cluster = run.placement.cluster.tolist()

    def of_page(one: teaching.Question) -> dict[str, Any]:
        row = row_of[one.path]
        return {**asdict(one), "row": row, "cluster": cluster[row], "path": inert(bare(one.path))}

    both = (teaching.asked(run, taught.n, answers=taught.answers, drawn=drawn) for drawn in (False, True))
    return {"questions": [[*map(of_page, images)] for images in both]}


def _preview(run: Run, taught: Teaching) -> dict[str, Any]:
    """Return the images that would follow the answers."""
    change = teaching.lesson(run, taught.answers, taught.within)
    return {
        "moves": [[*pair, count] for pair, count in preview(run, change).items()],
        "after": change.placement.cluster.tolist(),
        "names": change.run.model.names,
        "quality": change.said.get("Quality", ""),
    }


CHANGES: dict[str, Callable[[Path, Mapping[str, Any], Sort], dict[str, Any] | None]] = {
    "apply": lambda run, request, sort: apply(run, edits_of(request.get("edits"))),
    "undo": lambda run, request, sort: undo(run, steps=shaped(request.get("steps", 1), StepsBack, "steps")),
    "recut": lambda run, request, sort: recut(run, shaped(request.get("k"), GroupsOfPage, "k")),
    "teach": _teach,
    "export": _sort,
}
QUESTIONS: dict[str, Callable[[Run, Teaching], dict[str, Any]]] = {"ask": _questions, "preview": _preview}
