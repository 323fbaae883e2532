"""The design of the life of a run: decided once, written few times, nothing read back, and no function too long."""

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest

import deepcluster
from deepcluster.runs import fit as run
from deepcluster.runs import plan
from deepcluster.runs.plan import Request
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from tests.helpers.runs import OPTIONS

RUNS = Path(deepcluster.__file__).parent / "runs"
LONGEST, MOST = 60, 8  # lines of a function; attributes of a class
SETTINGS = {"Request", "EvaluationRequest"}  # everything that a user may ask for


def attributes(scope: ast.ClassDef) -> set[str]:
    """The names of the fields of a class, and of what its methods keep in ``self``."""
    fields = {ast.unparse(node.target) for node in scope.body if isinstance(node, ast.AnnAssign)}
    stored = [node for node in ast.walk(scope) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return fields | {node.attr for node in stored if ast.unparse(node.value) == "self"}


@pytest.mark.parametrize("file", sorted(RUNS.glob("*.py")), ids=lambda file: file.stem)
def test_no_function_is_long_and_no_class_has_many_attributes(file):
    nodes = [*ast.walk(ast.parse(file.read_text()))]
    lines = {node.name: node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, ast.FunctionDef)}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}
    classes = {node.name: attributes(node) for node in nodes if isinstance(node, ast.ClassDef)}
    assert {name: kept for name, kept in classes.items() if len(kept) > MOST and name not in SETTINGS} == {}


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """The last argument of each call of a function."""
    calls, original = [], getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments[-1])
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_a_fit_decides_once_and_writes_run_json_three_times(photos, tmp_path, monkeypatch):
    resolved, written = counted(monkeypatch, plan, "resolve"), counted(monkeypatch, LockedFolder, "write_record")
    monkeypatch.setattr("deepcluster.runs.writer.SHARE_OF_TIME", 1e-9)  # no preliminary result after the first
    request = Request(out=tmp_path / "run", n_clusters=3, options={**OPTIONS, "rounds": 2})
    run.fit(photos, request)
    assert len(resolved) == 1
    assert [(record.status, record.result) for record in written] == [
        ("running", None), ("running", "preliminary"), ("done", "final")
    ]  # fmt: skip


def test_a_fit_resolves_the_recipe_again_only_if_images_are_unusable(photos, tmp_path, monkeypatch):
    images = Path(shutil.copytree(photos, tmp_path / "images"))
    (images / "broken.png").write_bytes(b"none")
    resolved = counted(monkeypatch, plan, "resolve")
    run.fit(images, Request(out=tmp_path / "run", n_clusters=3, options={**OPTIONS, "rounds": 0}))
    assert [facts.count for facts in resolved] == [49, 48]


def test_a_fit_reads_nothing_back_of_its_result(photos, tmp_path, monkeypatch):
    """The page and the last line get the values."""

    for name in ("read_clusters", "read_array", "read_json"):
        monkeypatch.setattr(RunFolder, name, lambda *_: pytest.fail("a file of the result was read back"))
    monkeypatch.setattr("deepcluster.runs.fit.files.open_run", lambda path: RunFolder(path))
    options = {**OPTIONS, "rounds": 1}
    run.fit(photos, Request(out=tmp_path / "run", n_clusters=3, options=options, labels="folders"))
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000
