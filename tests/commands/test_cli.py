"""The command line as a user meets it: exit codes, messages, output."""

import csv
import errno
import io
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import webbrowser
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import deepcluster
from deepcluster.commands import session
from deepcluster.commands.cli import run_command
from deepcluster.errors import DeepClusterWarning
from deepcluster.fitting.plan import Request, decide
from deepcluster.images import find
from deepcluster.recipes.flags import Output
from deepcluster.recipes.presets import read_request
from deepcluster.runs.predict import placed_rows, predicted
from deepcluster.runtime.console import Silent
from tests.helpers.drawings import save_drawings
from tests.helpers.runs import change_record, contents, record, result, rows, small_fit
from tests.helpers.tiny import RECORD, change_tensors, tiny_model, tiny_run

# ---- mistakes -------------------------------------------------------------------------------------------------------

LONG, TOO_LONG = "x" * 300, os.strerror(errno.ENAMETOOLONG)
AT_ONCE = {  # answered before anything slow is imported: exit code and words
    "--help": (0, "Usage:"),
    "fit --help": (0, "Usage:"),
    "--version": (0, deepcluster.__version__),
    "fit -o new": (2, "IMAGES"),
    "update run": (2, "new images"),
    "export run --to csv -o new": (2, "clusters.csv"),
    "fit photos --lr fast": (2, "--lr"),
    "fit photos --set lrr=1": (2, " lr?"),
    "fit photos --set dims": (2, "OPTION=VALUE"),
    "fit photos --recipe atuo": (2, " auto"),
    "fit photos --backbone alexnte": (2, "timm:NAME"),
    "fit photos -k many": (2, "-k: many"),
    "fit nowhere -k 1": (3, "nowhere"),
    "fit photos --device tpu": (2, "cuda"),
    "fit photos --resume": (2, "-o RUN"),
    "fit photos --weights none.pt": (4, "none.pt"),
    "fit photos --labels none.csv": (2, "none.csv"),
    "fit photos -o texts": (5, "-o"),
    "fit photos -o run": (5, "run"),
    "fit photos -k 49": (3, "48"),
    "fit fotos": (3, "fotos"),
    "fit photos fotos/*.jpg": (3, "fotos/*.jpg"),
    "fit sklearn:digits photos": (3, "sklearn:digits"),
    "fit a.npy b.npy --features": (2, "b.npy"),
    "fit photos -k 3 texts -v empty": (2, "empty"),
    "fit empty": (3, "empty"),
    "fit features.npy --features": (3, "features.npy"),
    "predict photos photos": (5, "run.json"),
    "predict run fotos": (3, "fotos"),
    "embed run photos -o features.txt": (2, ".npy"),
    "update run photos --max-skipped -1": (2, "--max-skipped"),
    "update run fotos": (3, "fotos"),
    "recut run -k 49": (3, "48"),
    "apply run none.json": (2, "none.json"),
    "apply run": (2, "give a FILE of edits, or --undo"),
    "apply run edits.json --undo": (2, "--undo"),
    f"apply run --undo {'9' * 5000}": (2, "--undo"),
    "evaluate run fotos": (3, "fotos"),
    "export run --to onxn -o out": (2, '"onnx"'),
    "export run --to folders -o photos": (5, "photos"),
    "recipes atuo": (2, " auto"),
    "pridict run photos": (2, '"predict"'),
    "photos/": (2, "deepcluster fit photos/"),
    "fit photos --clustres 3": (2, "--clusters"),
    "fit photos --o\x1b[31md": (2, "--o"),  # no control character is printed
    "fit \x1b[31m": (3, "[31m"),
} | {
    f"{verb} {run} {rest}": (5, words)
    for run, words in (("none", "none"), (LONG, TOO_LONG))
    for verb, rest in {
        "predict": "photos", "doctor": "", "similar": "a.jpg", "update": "photos", "recut": "-k 3", "report": "",
        "apply": "edits.json", "evaluate": "", "export": "--to onnx -o a.onnx",
    }.items()
}  # fmt: skip
THEN = {  # answered when the images or the network are known
    "fit photos -k 3 --pseudo-labels 60": (3, "48"),
    "fit texts": (3, "a.txt"),
    "fit torchvision:CIFAR1O": (3, "torchvision:CIFAR10"),
    "fit sklearn:none -k 3": (3, "Loading   sklearn:none\n"),  # before its library is loaded, which takes seconds
    "fit photos/bars -k 3 --labels folders": (3, "folders"),
    "fit photos -k 3 -o texts/a.txt/run": (5, "a.txt"),
    "fit photos --backbone timm:resnet10t --weights none.pt": (4, "none.pt"),
    "predict damaged photos": (4, "damaged"),
    "similar whole none.png": (3, "none.png"),
    "similar whole photos/bars": (2, "16 images"),
    "similar whole texts/a.txt": (3, "a.txt"),
    "similar whole photos/bars/00.png -n 0": (2, "-n"),
    f"fit photos -k 2 -o {LONG}": (5, TOO_LONG),
    f"export whole --to folders -o {LONG}": (5, TOO_LONG),
}
WITH_JSON = ("fit ", "predict ", "update ", "recut ", "apply ", "evaluate ", "doctor ")  # or an error as JSON
IN_ONE_PROCESS = """
import contextlib, io, json, sys
from deepcluster.commands.cli import run_command
reports = []
for line in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        code = run_command(line.split())
    reports.append((code, printed.getvalue(), [*{"numpy", "torch", "sklearn", "scipy"} & {*sys.modules}]))
print(json.dumps(reports))
"""


@pytest.fixture
def place(photos, finished, tmp_path, monkeypatch) -> Path:
    """The current folder: photos, three runs (one has no result, one is damaged), an empty folder and one of texts."""
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    Path("whole").symlink_to(finished)
    for name in ("run", "empty", "texts"):
        Path(name).mkdir()
    Path("run/run.json").write_text(json.dumps(RECORD | {"images_count": 48}))
    Path("texts/a.txt").write_text("hello")
    tiny_run(Path("damaged"))
    Path("damaged/model/config.json").write_text("[]")
    return tmp_path


def test_help_and_mistakes_are_answered_before_anything_slow_is_imported(place):
    in_json = [line for line in AT_ONCE if line.startswith(WITH_JSON) and "--help" not in line]
    lines = json.dumps([*AT_ONCE, *(f"{line} --json" for line in in_json)])
    done = subprocess.run([sys.executable, "-c", IN_ONE_PROCESS], input=lines, capture_output=True, text=True)
    reports = json.loads(done.stdout)
    for (line, (code, words)), (ended, said, slow) in zip(AT_ONCE.items(), reports, strict=False):
        assert ended == code and words in said, (line, said)
        assert not any(word in said for word in ("Traceback", "bug", "\x1b")), (line, said)
        assert set(slow) <= ({"numpy"} if code else set()), line  # help takes no numpy either
    for line, (ended, said, _) in zip(in_json, reports[len(AT_ONCE) :], strict=False):
        (error,) = (json.loads(text) for text in said.splitlines() if text.startswith("{"))
        assert error.keys() == {"error", "code"} and error["code"] == ended == AT_ONCE[line][0], line


@pytest.mark.parametrize("line", THEN)
def test_other_mistakes_are_answered_before_anything_is_written(line, place, capsys):
    before, (code, words) = contents(place), THEN[line]
    assert run_command(line.split()) == code
    said = "".join(capsys.readouterr())
    assert words in said and not any(word in said for word in ("Traceback", "bug", "\x1b")), said
    assert contents(place) == before


def test_a_command_of_many_images_is_recorded_by_both_its_ends():
    """run.json with all names of a large folder would be too long to be read."""
    command = session.typed(["fit", *(f"{i}.jpg" for i in range(10**5)), "-k", "3"])
    assert command.startswith("deepcluster fit 0.jpg") and command.endswith("99999.jpg -k 3") and len(command) < 1000
    assert session.typed(["fit", "a b"]) == "deepcluster fit 'a b'"


# ---- commands -------------------------------------------------------------------------------------------------------


def test_fit_prints_the_lines_that_everybody_understands_and_the_rest_if_asked(photos, tmp_path, capfd):
    out, images = tmp_path / "run", shutil.copytree(photos, tmp_path / "images")
    (images / "empty.jpg").touch()
    for name in ("a.CR2", "b.nef", "c.mp4", "d.pdf", "Thumbs.db", "e.txt"):
        (images / name).write_text("no image")
    fit = ["fit", images, "-o", out, *small_fit("--labels", "folders")[:-1]]
    assert run_command([*map(str, fit)]) == 0
    printed = capfd.readouterr().out
    lines = printed.strip().splitlines()
    headings = {line[:9].strip() for line in lines if line[0] != " "}
    assert headings == {"Images", "Network", "Round", "Done", "Metrics", "At start", "Next"}
    assert re.search(r"Images +48 .* 7 [^(]+\([^)]+\)[^(]+\(skipped\.csv\)", printed)
    kinds = ("3 other files", "2 RAW (", "1 empty", "1 video")
    assert all(kind in printed.replace("\n          ", " ") for kind in kinds)
    assert printed.count("(3 clusters; NMI: geometric mean; 48 labels)") == printed.count("(3 clusters)") == 1
    assert "\x1b" not in printed  # piped output has no control characters
    assert all(len(line) <= 100 or str(out) in line or str(images) in line for line in lines)
    assert run_command([*map(str, fit), "--overwrite", "-v", "--json"]) == 0
    said = capfd.readouterr()
    check(outcome := json.loads(said.out), RESULT, "$")
    assert (outcome["run"], outcome["clusters"], outcome["images_count"], outcome["rounds"]) == (str(out), 3, 48, 1)
    assert outcome["metrics"] == json.loads((out / "metrics.json").read_text())
    assert said.err.count("Plan ") > 3 and "\n1/1 " in said.err  # what a person reads goes on, elsewhere


def test_dry_run_writes_nothing_and_takes_the_name_of_a_run_that_exists(finished, photos, tmp_path, prints):
    dry = ["fit", str(photos), "-k", "3", "-o", str(tmp_path / "run"), "--dry-run"]
    printed = prints(*dry)
    assert re.search(r"Features +48 x [\d,]+ on cpu, 1 MB of memory\n$", printed) and printed.count("\n") <= 5
    plan = prints(*dry, "--recipe", "v1", "--backbone", "compact", "--image-size", "16")
    assert re.search(r"pseudo_labels 3: .*10,000", plan) and "backbone = " not in plan
    verbose = prints(*dry, "--verbose")
    assert "backbone = " in verbose and 'precision = "auto"' not in verbose  # as in recipe.toml of the fit
    assert not (tmp_path / "run").exists()
    prints("fit", photos, "-k", "3", "-o", finished, "--dry-run")
    mixed = shutil.copytree(photos, tmp_path / "mixed")
    for name in ("film.mp4", "notes.txt", "image"):
        (mixed / name).write_text("")
    assert "51 in" in (said := " ".join(prints("fit", mixed, "--dry-run").split())) and "49 of them images by" in said


def test_predict_writes_csv_to_a_file_or_standard_output(finished, photos, tmp_path, monkeypatch, prints, ends):
    out = tmp_path / "new.csv"
    command = ["predict", finished, photos, "-o", out]
    assert re.search(r"Done +\S+new\.csv: 48 .*\n$", ends(command, 0))
    assert ends([*command, "--overwrite", "-q"], 0) == ""
    assert rows(out) == [{name: row[name] for name in PREDICTED} for row in rows(finished / "clusters.csv")]
    for by_name in ([], ["-o", "-"], ["--out", "-"]):
        assert prints("predict", finished, photos, *by_name) == out.read_text()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos}/bars/03.png\n{photos}/blob/03.png\n"))
    assert len(prints("predict", finished, "-").splitlines()) == 3


@pytest.mark.parametrize("limit", [0.0, torch.inf])
def test_rejected_are_outliers_and_junk(run, photos, tmp_path, prints, ends, limit):
    """A limit below all residuals rejects all images, one above them those of the junk."""
    clusters = [row["cluster"] for row in rows(run / "clusters.csv")]
    change_tensors(run / "model", outliers__limit=torch.tensor(limit))
    change_tensors(run / "model", "clusters.safetensors", junk=[2], names=["a", "b", "c"])
    table = [*csv.DictReader(io.StringIO(prints("predict", run, photos, "--reject")))]
    assert [row["is_outlier"] for row in table] == ["0" if limit else "1"] * 48
    expected = [(number, "abc"[int(number)]) if limit and number != "2" else ("-1", "") for number in clusters]
    assert [(row["cluster"], row["name"]) for row in table] == expected and ("-1", "") in expected
    line = ends(["predict", run, photos, "--reject", "-o", tmp_path / "x.csv"], 0)
    assert ("cluster -1" in line) and (" in a, " in line) == bool(limit)


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_of_names_reach_a_file_and_no_terminal(terminal, tmp_path, photos, monkeypatch, prints):
    name = "\x1b[31mr\u00e9d.png"
    shutil.copy(photos / "bars/00.png", tmp_path / name)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    row = prints("predict", tiny_run(tmp_path / "run"), tmp_path / name, "-q").splitlines()[1]
    assert row.startswith(name.replace("\x1b", "\\x1b") + "," if terminal else name + ",")


def test_recipes_and_doctor(prints):
    assert {"auto", "v1", "v1-official", "v2"} <= {*prints("recipes").split()}
    printed = prints("recipes", "v2")
    assert "published" in printed and tomllib.loads(printed)["pseudo_labels"] == 3000
    assert "# pseudo_labels 100: " in prints("recipes", "classic") and "torch" in prints("doctor")


def test_a_torch_that_cannot_be_imported_is_no_bug_and_doctor_shows_it(tmp_path, photos, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libc10.so is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [sys.executable, "-m", "deepcluster"]
    fit = subprocess.run([*command, "fit", photos, "-o", tmp_path / "run"], capture_output=True, text=True)
    assert fit.returncode == 4 and "torch cannot be imported (libc10.so is missing)" in fit.stderr
    (tmp_path / "torch.py").write_text("raise ImportError('libc10.so is missing')")
    facts = json.loads(subprocess.check_output([*command, "doctor", "--json"]))
    assert "libc10.so" in facts["torch"] and {"numpy", "python"} <= facts.keys() and "PNG" in facts["formats"]


def test_the_next_command_can_be_copied(tmp_path, capsys):
    """The shell must see one word, whatever the name of the folder has."""
    folder = tmp_path / "a $(touch PWNED) it's"
    folder.mkdir()
    figures = {"acc": 1, "nmi": 1, "ami": 1, "ari": 1, "nmi_average": "\x1b[31mred", "labelled": 3}
    (folder / "metrics.json").write_text(json.dumps(figures))
    served = ["deepcluster", "report", str(folder), "--serve", "--open"]
    recut = ["deepcluster", "recut", str(folder), "-k", "3"]
    export = ["deepcluster", "export", str(folder), "--to", "folders", "-o", "sorted"]
    (folder / "run.json").write_text(json.dumps(RECORD))
    for candidates, commands in (([], [export]), ([{"k": 7}, {"k": 3}], [recut, export])):
        (folder / "result.json").write_text(json.dumps({"clusters": 3, "candidates": candidates}))
        session.print_result(folder, Output(), "fit")
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and "\\x1b[31mred" in shown
        lines = shown.partition("Next ")[2].splitlines()
        file = ["open", (folder / "report.html").as_uri()]
        assert [shlex.split(line, comments=True) for line in lines] == [served, *commands, file]


@pytest.mark.parametrize(("asked", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_waiting_threads_leave_the_core_to_others(asked, policy):
    code = (
        "import atexit, os, sys; atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules))"
        "; from deepcluster.__main__ import main; main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | asked
    printed = subprocess.check_output([sys.executable, "-c", code, "--help"], env=environment, text=True)
    assert printed.splitlines()[-1] == f"{policy} False"  # torch reads it when it is imported


def test_a_terminal_sees_a_live_bar_in_colours(photos, tmp_path, monkeypatch):
    ours, terminal = pty.openpty()

    def output() -> bytes:
        with suppress(OSError):  # it is closed
            return os.read(ours, 1 << 16) + output()
        return b""

    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    with ThreadPoolExecutor(1) as pool, os.fdopen(terminal, "w") as stream:
        written = pool.submit(output)
        monkeypatch.setattr(sys, "stdout", stream)
        assert run_command(["fit", str(photos), *small_fit()[:-1], "-o", str(tmp_path / "run")]) == 0
    shown = written.result().decode()
    assert "training" in shown and re.search(r"\x1b\[[\d;]*3[0-8][\d;]*m", shown)


def test_a_batch_is_placed_before_the_next_one_is_read(tmp_path):
    """So the memory does not grow with the number of images."""
    images, skipped = save_drawings(tmp_path, 6), []
    predictions = predicted(tiny_model(), find(images), skipped)  # in batches of 8
    placed = placed_rows(tiny_model(), predictions, False, Counter())
    next(placed)
    for image in images.rglob("*.png"):
        image.unlink()
    assert (len([*placed]), len(skipped)) == (7, 10)


def test_a_page_is_opened_where_that_is_asked_for(run, monkeypatch, ends, prints):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)))
    assert prints("report", run) == f"{run / 'report.html'}\n" and opened == []
    for count, command in enumerate((["report", run], ["recut", run, "-k", "4"]), 1):
        said = ends([*command, "--open"], 0)
        assert opened == [(run / "report.html").as_uri()] * count and opened[0] in said


@pytest.mark.parametrize(("options", "warned"), [({}, True), ({"weights": "none"}, False)])
def test_a_network_of_timm_without_weights_is_warned_of(options, warned, photos, tmp_path, recwarn):
    request = Request(out=tmp_path / "run", recipe=read_request({"backbone": "timm:resnet18", **options}))
    decide(find(photos), request, Silent(), dry=True)
    said = [str(warning.message) for warning in recwarn if warning.category is DeepClusterWarning]
    assert bool(said) == warned and all("--weights timm" in text for text in said)


# ---- --json: an object or a line per file, by its schema, and what a nightly job reads of it ------------------------

Object = dict[str, Any]
NONE = type(None)
MODEL = {
    "run": str, "cut": str, "clusters": int, "n_clusters": (int, NONE), "date": str, "version": str, "digest": str
}  # fmt: skip
SKIPPED = [{"path": str, "reason": str}]
SINCE = {"residual_rank": (float, NONE), "shift": float, "due": bool, "reason": (str, NONE)}
RESULT = {
    "run": str, "clusters": int, "images_count": int, "skipped_count": int, "rounds": int,
    "metrics": {str: (int, float, str)},
}  # fmt: skip
PREDICTED = {"path": str, "cluster": int, "name": str, "distance": float, "margin": float, "is_outlier": bool}
NAMES = {"status": str, "run": str, "model": str}
STATE = {
    "run": str, "model": MODEL, "status": str, "images_count": int, "added_count": int,
    "skipped_count": int, "outlier_share": (float, NONE),
    "run_bytes": int, "model_bytes": int, "checkpoints_bytes": int,
}  # fmt: skip
# Commands in the folder of a run and of new/: two images and a file that is none. A type stands for any key.
SCHEMAS: dict[str, Object] = {
    "recut run -k 4": RESULT,
    "apply run edits.json": RESULT,
    "predict run new": {"ok": [PREDICTED | NAMES], "skipped": [SKIPPED[0] | NAMES]},  # its lines by their status
    "update run new": {
        "run": str, "added": int, "known": int, "skipped": SKIPPED, "outliers": int, "strangers": list, "model": MODEL,
        **SINCE,
    },
    "evaluate run --labels folders": {"run": str, "values": {str: (int, float)}},
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
            return {status: [one for one in lines if one.get("status") == status] for status in ("ok", "skipped")}
        return json.loads(printed)

    return ask


@pytest.mark.parametrize("line", SCHEMAS)
def test_json_has_the_types_of_its_schema(line, asked):
    check(asked(line), SCHEMAS[line], "$")


def test_predict_in_json_says_what_the_csv_says(asked, capsys):
    predictions = asked("predict run new")
    assert run_command(["predict", "run", "new"]) == 0
    said = capsys.readouterr()
    for line, row in zip(csv.DictReader(io.StringIO(said.out)), predictions["ok"], strict=True):
        lengths = {name: f"{row[name]:.6f}" for name in ("distance", "margin")}
        values = row | lengths | {"is_outlier": int(row["is_outlier"])}
        assert line == {name: str(values[name]) for name in PREDICTED}
    (row,) = predictions["skipped"]
    assert row["path"] == "broken.png" and row["run"] == record(Path("run"))["run"]
    assert row["run"] in said.err and row["model"][:12] in said.err


def test_a_model_is_told_from_others_and_equal_ones_are_alike(asked):
    first, facts = deepcluster.load("run").identity, result(Path("run"))
    assert (first.run, first.cut, first.version) == (facts["run"], facts["cut"], deepcluster.__version__)
    assert (first.clusters, first.n_clusters) == (3, 3)
    asked("recut run -k auto")
    guessed = deepcluster.load("run").identity
    assert guessed.n_clusters is None and guessed.clusters == result(Path("run"))["clusters"]
    assert (guessed.digest == first.digest) == (guessed.clusters == first.clusters)  # the same cut is the same model
    asked("apply run edits.json")
    edited = deepcluster.load("run").identity
    assert edited.clusters == guessed.clusters - 1 and edited.digest != guessed.digest
    shutil.copytree("run/model", "copy")
    assert deepcluster.load("copy").identity == edited


def test_an_empty_inbox_is_no_error_and_a_missing_one_is(asked, prints):
    Path("empty/.hidden").touch()
    before = contents(Path("run"))
    assert asked("predict run empty")["ok"] == []
    outcome = asked("update run empty")
    assert (outcome["added"], outcome["known"], outcome["skipped"]) == (0, 0, [])
    assert prints("predict", "run", "empty") == ",".join(PREDICTED) + "\n"
    Path("empty/link").symlink_to("new")
    Path("list.txt").write_text("\n")
    for images in ("gone", "empty", "list.txt"):
        for verb in ("predict", "update"):
            asked(f"{verb} run {images}", 3)
    assert contents(Path("run")) == before


@pytest.mark.parametrize("verb", ["predict", "update"])
def test_more_skipped_files_than_allowed_change_nothing(verb, asked, ends, capsys):
    Path("new/second.png").touch()
    before, out = contents(Path("run")), ["-o", "out.json"] if verb == "predict" else []
    said = ends([verb, "run", "new", "--max-skipped", 1, *out], 3)
    assert re.search(r"2 \(\S*broken\.png: .*--max-skipped", said)
    assert contents(Path("run")) == before and not Path("out.json").exists()
    assert run_command([verb, "run", "new", "--max-skipped", "1"]) == 3
    assert capsys.readouterr().out == ""  # nor does a pipe get rows
    assert len(asked(f"{verb} run new --max-skipped 2")["skipped"]) == 2


def test_the_state_of_a_run_is_told_without_torch_or_the_error_that_it_meets(asked, prints):
    unwanted = "{'torch', 'scipy.stats'} & {*sys.modules}"
    code = f"import sys; from deepcluster.commands import cli; cli.main(); assert not {unwanted}"
    state = json.loads(subprocess.check_output([sys.executable, "-c", code, "doctor", "run", "--json"], text=True))
    assert state == asked("doctor run")
    for name, folder in (("run_bytes", "run"), ("model_bytes", "run/model")):
        assert state[name] == sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    assert (state["images_count"], state["added_count"], state["due"], state["outlier_share"]) == (48, 0, False, None)
    assert [line.split()[0] for line in prints("doctor", "run").splitlines()] == [*state]
    change_record(Path("run"), seconds="x")
    asked("doctor run", 5)
    change_record(Path("run"), seconds=1.0)
    change_record(Path("run"), status="running")
    Path("run/model/config.json").write_text("[]")
    asked("doctor run", 4)
