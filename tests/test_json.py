"""Every --json output, an object or a line per file, by its schema, and what a nightly job reads of it."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import deepcluster
from deepcluster.cli import run_command
from tests.helpers.runs import change_record, contents, record, small_fit

Object = dict[str, Any]
NONE = type(None)
MODEL = {
    "run": str, "cut": str, "clusters": int, "n_clusters": (int, NONE), "date": str, "version": str, "digest": str
}  # fmt: skip
SKIPPED = [{"path": str, "reason": str}]
SINCE = {"residual_rank": (float, NONE), "shift": float, "due": bool, "reason": (str, NONE)}
RESULT = {
    "run": str, "clusters": int, "images_count": int, "skipped_count": int, "rounds": int, "stability": (float, NONE),
    "verdict": str, "metrics": {str: (int, float, str)},
}  # fmt: skip
PREDICTED = {"path": str, "cluster": int, "name": str, "distance": float, "margin": float, "is_outlier": bool}
NAMES = {"status": str, "run": str, "model": str}
STATE = {
    "run": str, "model": MODEL, "status": str, "result": str, "images_count": int, "added_count": int,
    "skipped_count": int, "outlier_share": (float, NONE), "stability": (float, NONE), "verdict": str,
    "run_bytes": int, "model_bytes": int, "checkpoints_bytes": int,
}  # fmt: skip
# Commands in the folder of a run and of new/: two images and a file that is none. A type stands for any key.
SCHEMAS: dict[str, Object] = {
    "recut run -k 4": RESULT,
    "apply run edits.json": RESULT,
    "predict run new": {"ok": [PREDICTED | NAMES], "skipped": [SKIPPED[0] | NAMES]},  # its lines by their status
    "update run new": {
        "run": str, "added": int, "known": int, "skipped": SKIPPED, "outliers": int, "model": MODEL, **SINCE
    },
    "evaluate run --labels folders": {"run": str, "protocol": str, "values": {str: (int, float)}},
    "doctor run": STATE | SINCE,
    "doctor": {str: (str, int, list)},
}  # fmt: skip


def check(value: Any, schema: Any, place: str) -> None:
    if isinstance(schema, dict):
        assert type(value) is dict and (str in schema or value.keys() == schema.keys()), place
        for name in value:
            check(value[name], schema.get(name, schema.get(str)), f"{place}.{name}")
    elif isinstance(schema, list):
        assert type(value) is list and value, place
        for item in value:
            check(item, schema[0], place)
    else:
        assert type(value) in (schema if isinstance(schema, tuple) else (schema,)), (place, value)


@pytest.fixture
def asked(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Returns the JSON that a command prints in the folder of SCHEMAS, after it ended with a code."""
    monkeypatch.chdir(tmp_path)
    Path("new").mkdir()
    for name in ("00.png", "01.png"):
        shutil.copy(photos / "bars" / name, "new")
    Path("new/broken.png").write_text("broken")
    Path("edits.json").write_text('{"schema_version": 1, "merge": [[0, 1]]}')
    Path("empty").mkdir()

    def ask(line: str, code: int = 0) -> Any:
        assert run_command([*line.split(), "--json"]) == code
        printed = capsys.readouterr().out
        if line.startswith("predict"):
            lines = [json.loads(text) for text in printed.splitlines()]
            return {status: [one for one in lines if one["status"] == status] for status in ("ok", "skipped")}
        return json.loads(printed) if code == 0 else printed

    return ask


@pytest.mark.parametrize("line", SCHEMAS)
def test_json_has_the_types_of_its_schema(line, asked):
    check(asked(line), SCHEMAS[line], "$")


def test_fit_in_json(photos, tmp_path, capfd):
    out = tmp_path / "run"
    assert run_command(["fit", str(photos), "-o", str(out), "--json", *small_fit("--labels", "folders")[:-1]]) == 0
    said = capfd.readouterr()
    told = json.loads(said.out)
    check(told, RESULT, "$")
    assert told["run"] == str(out) and told["clusters"] == 3 and told["images_count"] == 48 and told["rounds"] == 1
    assert told["metrics"] == json.loads((out / "metrics.json").read_text())
    assert re.search(r"^Round +1 of 1: ", said.err, re.MULTILINE)  # what a person reads goes on, elsewhere


def test_predict_in_json_says_what_the_csv_says(asked, capsys):
    told = asked("predict run new")
    assert run_command(["predict", "run", "new"]) == 0
    said = capsys.readouterr()
    lines = [*csv.reader(io.StringIO(said.out))]
    assert lines[0] == [*PREDICTED]
    for line, row in zip(lines[1:], told["ok"], strict=True):
        lengths = (f"{row['distance']:.6f}", f"{row['margin']:.6f}")
        assert line == [row["path"], str(row["cluster"]), row["name"], *lengths, str(int(row["is_outlier"]))]
    assert [row["path"] for row in told["skipped"]] == ["broken.png"]
    row = told["skipped"][0]
    assert row["run"] == record(Path("run"))["run"] and row["run"] in said.err and row["model"][:12] in said.err


def test_a_model_is_told_from_others_and_equal_ones_are_alike(asked):
    first = deepcluster.load("run").identity
    assert (first.run, first.cut) == (record(Path("run"))["run"], record(Path("run"))["cut"])
    assert (first.clusters, first.n_clusters, first.version) == (3, 3, deepcluster.__version__)
    asked("recut run -k auto")
    guessed = deepcluster.load("run").identity
    assert guessed.n_clusters is None and guessed.clusters == record(Path("run"))["clusters"]
    asked("apply run edits.json")
    edited = asked("doctor run")["model"]
    assert edited["clusters"] == guessed.clusters - 1 and edited["digest"] != guessed.digest
    assert (guessed.digest == first.digest) == (guessed.clusters == first.clusters)  # the same cut is the same model
    assert run_command(["apply", "run", "--undo"]) == 0
    back = deepcluster.load("run").identity
    assert (back.digest, back.cut, back.n_clusters) == (guessed.digest, guessed.cut, None)
    shutil.copytree("run/model", "copy")
    assert deepcluster.load("copy").identity == back


def test_an_empty_inbox_is_no_error_and_a_missing_one_is(asked, capsys):
    Path("empty/.hidden").touch()
    before = contents(Path("run"))
    assert asked("predict run empty")["ok"] == []
    told = asked("update run empty")
    assert (told["added"], told["known"], told["skipped"]) == (0, 0, [])
    assert run_command(["predict", "run", "empty", "-o", "none.csv"]) == 0
    assert Path("none.csv").read_text() == ",".join(PREDICTED) + "\n"
    Path("empty/link").symlink_to("new")
    Path("list.txt").write_text("\n")
    for images in ("gone", "empty", "list.txt"):
        for verb in ("predict", "update"):
            asked(f"{verb} run {images}", 3)
    assert contents(Path("run")) == before


@pytest.mark.parametrize("verb", ["predict", "update"])
def test_more_skipped_files_than_allowed_change_nothing(verb, asked, capsys):
    Path("new/second.png").touch()
    before, out = contents(Path("run")), "-o out.json" if verb == "predict" else ""
    assert run_command([*f"{verb} run new --max-skipped 1 {out}".split()]) == 3
    said = capsys.readouterr().err
    assert re.search(r"error: unusable files: 2 \(\S*broken.png: .* --max-skipped is 1: repair or remove them", said)
    assert contents(Path("run")) == before and not Path("out.json").exists()
    assert len(asked(f"{verb} run new --max-skipped 2")["skipped"]) == 2


def test_the_state_of_a_run_is_told_or_the_error_that_it_meets(asked, capsys):
    told = asked("doctor run")
    assert told["run_bytes"] == sum(path.stat().st_size for path in Path("run").rglob("*") if path.is_file())
    assert told["model_bytes"] == sum(path.stat().st_size for path in Path("run/model").iterdir())
    assert (told["images_count"], told["added_count"], told["due"], told["outlier_share"]) == (48, 0, False, None)
    assert run_command(["doctor", "run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*told]
    for damage in ({"stability": "x"}, {"verdict": [1]}):
        change_record(Path("run"), **damage)
        asked("doctor run", 5)
        change_record(Path("run"), **{name: told[name] for name in damage})
    Path("run/clusters.csv").write_text("path,status\n")
    asked("doctor run", 5)
    change_record(Path("run"), status="running")
    Path("run/model/config.json").write_text("[]")
    asked("doctor run", 4)
