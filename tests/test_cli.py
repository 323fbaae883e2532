"""The command line as a user meets it: exit codes, messages, output."""

import csv
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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deepcluster
from deepcluster import cli
from deepcluster.cli import run_command
from deepcluster.errors import DeepClusterWarning
from deepcluster.flags import Output
from deepcluster.images import find
from deepcluster.images.source import counted
from deepcluster.presets import Facts, resolve
from deepcluster.report.text import in_words
from deepcluster.storage import model_files as models
from deepcluster.storage.run_folder import RunFolder
from tests.helpers.runs import rows, small_fit
from tests.tiny import RECORD, change_groups, change_tensors, tiny_model, tiny_run

QUICK = ["--rounds", "1", "--epochs", "1", "--pseudo-labels", "6", "--image-size", "16", "--batch-size", "16"]
COLUMNS = ["path", "cluster", "name", "distance", "margin", "is_outlier"]


# ---- mistakes -------------------------------------------------------------------------------------------------------

AT_ONCE = {  # answered before anything slow is imported: exit code and words
    "--help": (0, "Usage:"),
    "fit --help": (0, "Usage:"),
    "--version": (0, deepcluster.__version__),
    "fit photos --lr fast": (2, "--lr"),
    "fit photos --lr 101": (2, "lr=101.0 must lie between 0 and 100"),
    "fit photos --set lrr=1": (2, "did you mean lr?"),
    "fit photos --set dims": (2, "OPTION=VALUE"),
    "fit photos --set empty=drop": (2, "split or sample or faiss"),
    "fit photos --recipe atuo": (2, "did you mean auto"),
    "fit photos --backbone alexnte": (2, "photos or photos-ssl or photos-small or timm:NAME"),
    "fit photos --backbone timm:": (2, "photos or photos-ssl or photos-small or timm:NAME"),
    "fit photos -k many": (2, "-k: many is not a whole number"),
    "fit photos --clusters 1": (2, "--clusters: 1 is not a whole number of at least 2"),
    "fit photos --device tpu": (2, "cuda"),
    "fit photos --time-limit soon": (2, "--time-limit: soon is not a time above 0: write it as 90s"),
    "fit photos --time-limit 0m": (2, "--time-limit: 0m is not a time above 0"),
    "fit photos --resume": (2, "give -o RUN"),
    "fit features.npy --features --time-limit 3m": (2, "leave out --time-limit"),
    "fit photos --weights none.pt": (4, "none.pt"),
    "fit photos --labels none.csv": (2, "none.csv"),
    "fit photos -o texts": (5, "another -o"),
    "fit photos -o run": (5, "run"),
    "fit photos -k 49": (3, "give at most 48"),
    "fit fotos": (3, "fotos"),
    "fit list.txt": (3, "list.txt"),
    "fit empty": (3, "empty"),
    "fit features.npy --features": (3, "features.npy"),
    "predict none photos": (5, "none"),
    "predict photos photos": (5, "run.json"),
    "predict run fotos": (3, "fotos"),
    "predict run photos -o run/run.json": (5, "run.json"),
    "embed run photos -o features.txt": (2, "a name ending in .npy"),
    "embed run fotos -o a.npy": (3, "fotos"),
    "embed run empty -o a.npy": (3, "no files in"),
    "update run photos --max-skipped -1": (2, "--max-skipped"),
    "doctor none": (5, "none"),
    "similar none a.jpg": (5, "none"),
    "update none photos": (5, "none"),
    "update run fotos": (3, "fotos"),
    "recut none -k 3": (5, "none"),
    "recut run -k many": (2, "many"),
    "recut run -k 49": (3, "give at most 48"),
    "apply none edits.json": (5, "none"),
    "apply run none.json": (2, "none.json"),
    "apply run": (2, "press Download edits.json"),
    "apply run edits.json --undo": (2, "--undo"),
    "report none": (5, "none"),
    "evaluate none": (5, "none"),
    "evaluate run fotos": (3, "fotos"),
    "evaluate run --labels none.csv": (2, "none.csv"),
    "evaluate run --protocol lineer": (2, 'Did you mean "linear"?'),
    "evaluate run --set shufles=1": (2, "did you mean shuffles?"),
    "evaluate run --protocol linear --set lr=nan": (2, "lr=nan"),
    "export none --to onnx -o a.onnx": (5, "none"),
    "export run --to onxn -o out": (2, 'Did you mean "onnx"?'),
    "export run --to folders -o photos": (5, "photos"),
    "recipes atuo": (2, "did you mean auto"),
    "pridict run photos": (2, 'Did you mean "predict"'),
    "fit photos --clustres 3": (2, "Did you mean --clusters"),
}
IN_ONE_PROCESS = """
import contextlib, io, json, sys
from deepcluster.cli import run_command
reports = []
for line in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        code = run_command(line.split())
    reports.append((code, printed.getvalue(), [*{"numpy", "torch", "sklearn", "scipy"} & {*sys.modules}]))
print(json.dumps(reports))
"""


@pytest.fixture
def place(photos, tmp_path, monkeypatch) -> Path:
    """The current folder: photos, a run of as many images, an empty folder and one of texts."""
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    for name in ("run", "empty", "texts"):
        Path(name).mkdir()
    Path("run/run.json").write_text(json.dumps(RECORD | {"images_count": 48}))
    Path("texts/a.txt").write_text("hello")
    return tmp_path


def test_help_and_mistakes_are_answered_before_anything_slow_is_imported(place):
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS], input=json.dumps([*AT_ONCE]), capture_output=True, text=True
    )
    reports = json.loads(done.stdout)
    for (line, (code, words)), (ended, said, slow) in zip(AT_ONCE.items(), reports, strict=True):
        assert ended == code and words in said and "Traceback" not in said, (line, said)
        assert set(slow) <= ({"numpy"} if code else set()), line  # help takes no numpy either
    help_of_fit = reports[[*AT_ONCE].index("fit --help")][1]
    order = [
        help_of_fit.index(word) for word in ("--out", "--features", "─ Network", "--lr", "─ Machine", "─ Messages")
    ]
    assert order == sorted(order)  # what most people need comes first


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("fit photos --backbone alexnet --image-size 96", 2, "224"),
        ("fit photos -k 3 --pseudo-labels 60", 3, "48 images"),
        ("fit texts", 3, "not an image"),
        ("fit torchvision:CIFAR1O", 3, "did you mean torchvision:CIFAR10"),
        ("fit photos/bars -k 3 --labels folders", 3, "without labels"),
        ("fit photos -k 3 -o texts/a.txt/run", 5, "a.txt"),
        ("fit photos --backbone timm:resnet10t --weights none.pt", 4, "none.pt"),
        ("predict damaged photos", 4, "damaged"),
    ],
)
def test_mistakes_that_the_work_meets(place, ends, line, code, message):
    tiny_run(Path("damaged"))
    Path("damaged/model/config.json").write_text("[]")
    said = ends(line.split(), code)
    assert message in said and "Traceback" not in said
    assert not any(Path().glob("runs/*/clusters.csv"))


# ---- commands -------------------------------------------------------------------------------------------------------


def test_fit_prints_the_lines_that_everybody_understands_and_the_rest_if_asked(photos, tmp_path, prints):
    out = tmp_path / "run"
    printed = prints("fit", photos, "-k", "3", "-o", out, "--labels", "folders", *QUICK)
    lines = printed.strip().splitlines()
    assert lines[0].split() == ["Images", "48", "in", str(photos)]
    headings = [line[:9].strip() for line in lines if line[0] != " "]
    assert headings == [
        "Images", "Network", "Time", "First", "Round", "Done", "Metrics", "At start", "Verdict", "Next"
    ]  # fmt: skip
    assert re.search(r"^Round +1 of 1: NMI 0\.\d+  [\d.]+ s$", printed, re.MULTILINE)
    assert printed.count("(NMI: geometric mean; 48 labels)") == 1
    assert "\x1b" not in printed  # piped output has no control characters
    assert all(len(line) <= 100 or str(out) in line or str(photos) in line for line in lines)


def test_dry_run_writes_nothing_and_takes_the_name_of_a_run_that_exists(finished, photos, tmp_path, prints):
    dry = ["fit", str(photos), "-k", "3", "-o", str(tmp_path / "run"), "--dry-run"]
    printed = prints(*dry)
    assert [line.split()[0] for line in printed.splitlines() if line[0] != " "] == [
        "Images", "Network", "Plan", "Memory", "Time"
    ]  # fmt: skip
    assert re.search(r"Memory +\d+\.\d GB on cpu\nTime +about [\d.]+ (s|min|h)", printed)
    assert printed.count("\n") <= 6
    plan = prints(*dry, "--recipe", "v1", "--backbone", "compact", "--image-size", "16")
    assert "Plan      pseudo_labels 3: the recipe's 10,000 is more than the 48 images\n" in plan
    assert "backbone = " in prints(*dry, "--verbose")
    assert not (tmp_path / "run").exists()
    assert run_command(["fit", str(photos), "-k", "3", "-o", str(finished), "--dry-run"]) == 0


def test_predict_writes_csv_to_a_file_or_standard_output(finished, photos, tmp_path, prints):
    out = tmp_path / "new.csv"
    assert run_command(["predict", str(finished), str(photos), "-o", str(out), "-q"]) == 0
    assert rows(out) == [{name: row[name] for name in COLUMNS} for row in rows(finished / "clusters.csv")]
    for by_name in ([], ["-o", "-"], ["--out", "-"]):
        assert prints("predict", finished, photos, *by_name) == out.read_text()


def test_predict_reads_paths_from_standard_input(finished, photos, monkeypatch, prints):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos}/bars/03.png\n{photos}/blob/03.png\n"))
    assert len(prints("predict", finished, "-").splitlines()) == 3


@pytest.mark.parametrize("limit", [0.0, torch.inf])
def test_rejected_are_outliers_and_junk(run, photos, prints, limit):
    """A limit below all residuals rejects all images, one above them those of the junk."""
    clusters = [row["cluster"] for row in rows(run / "clusters.csv")]
    change_tensors(run / "model", outliers__limit=torch.tensor(limit))
    change_groups(run / "model", junk=[2], names=["a", "b", "c"])
    table = [*csv.DictReader(io.StringIO(prints("predict", run, photos, "--reject")))]
    assert [row["is_outlier"] for row in table] == ["0" if limit else "1"] * 48
    expected = [(number, "abc"[int(number)]) if limit and number != "2" else ("-1", "") for number in clusters]
    assert [(row["cluster"], row["name"]) for row in table] == expected and ("-1", "") in expected


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_of_names_reach_a_file_and_no_terminal(terminal, tmp_path, photos, monkeypatch, prints):
    run_ = tiny_run(tmp_path / "run")
    name = "\x1b[31mr\u00e9d.png"
    shutil.copy(next(photos.rglob("*.png")), tmp_path / name)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    header, row = prints("predict", run_, tmp_path / name, "-q").splitlines()
    assert header == ",".join(COLUMNS)
    assert row.startswith(name.replace("\x1b", "\\x1b") + "," if terminal else name + ",")


def test_report_again_without_waiting_for_standard_input(photos, tmp_path, monkeypatch, capsys):
    run, page = tmp_path / "run", tmp_path / "run/report.html"
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in sorted(photos.rglob("*.png")))))
    assert run_command(["fit", "-", "-k", "3", "-o", str(run), "-q", *QUICK]) == 0
    before = page.read_bytes()
    page.unlink()
    assert before.count(b"data:image") > 10
    monkeypatch.setattr(sys, "stdin", None)  # to read it is an error now
    assert run_command(["report", str(run)]) == 0
    assert page.read_bytes() == before
    assert capsys.readouterr().out.strip() == str(page)


def test_recipes_and_doctor(prints):
    listed = prints("recipes")
    assert "``" not in listed and "auto" in listed
    for name in ("v1", "v1-official", "v2"):
        assert name in listed
        printed = prints("recipes", name)
        assert "published" in printed
        assert tomllib.loads(printed)["pseudo_labels"] == (10000 if name.startswith("v1") else 3000)
    assert "torch" in prints("doctor")


def test_the_next_command_can_be_copied(tmp_path, capsys):
    """The shell must see one word, whatever the name of the folder has."""
    folder = tmp_path / "a $(touch PWNED) it's"
    folder.mkdir()
    (folder / "metrics.json").write_text(
        json.dumps({"acc": 1, "nmi": 1, "ami": 1, "ari": 1, "nmi_average": "\x1b[31mred", "labelled": 3})
    )
    recut = ["deepcluster", "recut", str(folder), "-k", "3"]
    export = ["deepcluster", "export", str(folder), "--to", "folders", "-o", "sorted"]
    guess = {"candidates": [{"k": 7}, {"k": 3}]}
    # A recut would lose edits, and is not for a user who asked for a number.
    for record, commands in (({}, [export]), (guess, [recut, export]), (guess | {"edits": "0123"}, [export])):
        (folder / "run.json").write_text(json.dumps(RECORD | {"verdict": "x"} | record))
        cli._print_result(RunFolder(folder), Output(), "fit")
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and "\\x1b[31mred" in shown
        lines = shown.partition("Next ")[2].splitlines()
        assert lines[0].split() == ["open", (folder / "report.html").as_uri()]
        assert [shlex.split(line, comments=True) for line in lines[1:]] == commands


@pytest.mark.parametrize(("asked", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_waiting_threads_leave_the_core_to_others(asked, policy):
    code = (
        "import atexit, os, sys; atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules))"
        "; from deepcluster.__main__ import main; main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | asked
    done = subprocess.run([sys.executable, "-c", code, "--help"], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{policy} False"  # torch reads it when it is imported


# ---- completion, terminals, memory -----------------------------------------------------------------------------------


COMMAND = [sys.executable, "-m", "deepcluster"]


@pytest.mark.parametrize("shell", ["bash", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zsh", "fish"))])
def test_completion_is_installed(shell, tmp_path):
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": f"/bin/{shell}"}
    done = subprocess.run([*COMMAND, "--install-completion"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scripts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("predict" in text and "pseudo-labels" in text for text in scripts)


def on_a_terminal(arguments: list[str], **environment: str) -> str:
    """All that a command writes on a terminal of its own."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CI")}
    inherited |= {"TERM": "xterm-256color", "COLUMNS": "120"}
    leader, follower = pty.openpty()
    with subprocess.Popen(
        arguments, stdin=follower, stdout=follower, stderr=follower, env=inherited | environment
    ) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                part = os.read(leader, 1 << 16)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            written += part
        assert process.wait() == 0, written
    os.close(leader)
    return written.decode()


@pytest.mark.parametrize("environment", [{}, pytest.param({"NO_COLOR": "1"}, marks=pytest.mark.slow)])
def test_a_terminal_sees_a_live_bar_and_no_colours_where_they_are_not_wanted(photos, tmp_path, environment):
    arguments = [*COMMAND, "fit", str(photos), *small_fit()[:-1], "-o"]
    shown = on_a_terminal([*arguments, str(tmp_path / "run")], **environment)
    assert "training" in shown
    assert bool(re.search(r"\x1b\[[\d;]*3[0-8][\d;]*m", shown)) == (not environment)


def peaks_of_predict(run: Path, folders: Sequence[Path]) -> list[float]:
    script = (
        "import resource, sys; from deepcluster.cli import run_command\n"
        "run, out, *folders = sys.argv[1:]\n"
        "for folder in folders:\n"
        "    assert run_command(['predict', run, folder, '-o', out, '--overwrite', '--quiet']) == 0\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)"
    )
    command = [sys.executable, "-c", script, *map(str, (run, run / "found.csv", *folders))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("few", "most", "size"), [(200, 1000, 128), pytest.param(500, 10_000, 64, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_number_of_images(few, most, size, tmp_path):
    """All pixels of 1,000 images of 128 px would take 49 MB in the model's store."""
    run = tiny_run(tmp_path / "run")
    models.save(replace(tiny_model(), store_size=size), run / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "one.png")
    for count in (few, most):
        (tmp_path / str(count)).mkdir()
        for i in range(count):
            os.link(tmp_path / "one.png", tmp_path / str(count) / f"{i:05}.png")
    before, after = peaks_of_predict(run, [tmp_path / str(few), tmp_path / str(most)])
    assert after - before < 15, (before, after)
    assert len((run / "found.csv").read_text().splitlines()) == most + 1


# ---- lines for people ------------------------------------------------------------------------------------------------


def test_reasons_are_counted():
    reasons = [
        *["a HEIC or HEIF image: pip install 'deepcluster[heif]' to use it"] * 6,
        "cannot be decoded: image file is truncated", "cannot be decoded: broken", "empty file",
        "not an image in an accepted format (JPEG)", "too many pixels: 9, more than the limit of 8",
        "permission denied", "a symbolic link, not followed",
    ]  # fmt: skip
    assert counted(reasons) == (
        "6 HEIC (pip install 'deepcluster[heif]' reads them), 2 damaged, 1 empty, 1 of another kind, 1 too large,"
        " 1 permission denied, 1 linked"
    )
    assert counted(["cannot open: a", "cannot open: b"]) == "2 cannot open"
    assert counted([]) == ""


def test_skipped_images_are_counted_and_the_details_are_for_those_who_ask(photos, tmp_path, prints):
    images = shutil.copytree(photos, tmp_path / "images")
    (images / "empty.jpg").touch()
    for name in ("a.pdf", "b.pdf"):
        (images / name).write_text("no image")
    said = prints("fit", images, "-o", tmp_path / "run", *small_fit()[:-1])
    assert re.search(r"Images +48 can be used, 3 skipped: 2 of another kind, 1 empty \(skipped.csv\)", said)
    assert "Plan " not in said and "precision" not in said
    said = prints("fit", images, "-o", tmp_path / "run", "--overwrite", "-v", *small_fit()[:-1])
    assert said.count("Plan ") > 3 and "precision" in said


def test_the_plan_in_a_sentence():
    drawings = Facts(1797, 8, True, 10, "cpu")
    plan = resolve("auto", {}, drawings)
    assert plan.in_short(10) == "network trained in at most 30 rounds at 16 px, then 10 clusters"
    assert plan.network == "compact, trained from nothing on these images"
    photographs = Facts(3000, 224, False, None, "cpu", "photos-small")
    plan = resolve("auto", {"rounds": 1}, photographs)
    assert (
        plan.in_short(None)
        == "network adapted in at most 1 round at 224 px, then as many clusters as the images suggest"
    )
    assert plan.network == ("EfficientNet-Lite0, trained on photographs; deepcluster fetch downloads a larger one")
    given = resolve("auto", {"backbone": "timm:resnet18", "weights": "w.safetensors"}, photographs)
    assert given.network == "timm:resnet18, with given weights"
    assert "used as it is" in resolve("auto", {"rounds": 0}, photographs).in_short(3)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (80, "80 s"), (90, "1.5 min"), (4000, "67 min"), (9000, "2.5 h")]
)
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize("verb", [["report"], ["recut", "-k", "4"]])
def test_a_page_is_opened_where_that_is_asked_for(run, monkeypatch, capsys, verb):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)))
    command = [verb[0], str(run), *verb[1:]]
    assert run_command(command) == 0 and opened == []
    assert run_command([*command, "--open"]) == 0
    assert opened == [(run / "report.html").as_uri()]
    assert f"no browser could be opened: open {opened[0]} yourself" in capsys.readouterr().err


def test_predict_says_what_it_wrote(finished, photos, tmp_path, capsys, ends):
    out = tmp_path / "new.csv"
    assert run_command(["predict", str(finished), str(photos), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and re.search(
        rf"Done +{out}: 48 images, \d+ in cluster 0, \d+ in cluster 1, \d+ in cluster 2\n", said.err
    )
    image = next(photos.rglob("*.png"))
    assert re.search(
        rf"Done +{out}: 1 image, 1 in cluster \d\n", ends(["predict", finished, image, "-o", out, "--overwrite"], 0)
    )
    assert run_command(["predict", str(finished), str(photos), "-o", str(out), "--overwrite", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "warned"), [({}, True), ({"weights": "none"}, False), ({"weights": "timm"}, False)]
)
def test_a_network_of_timm_without_weights_is_warned_of(options, warned, photos, tmp_path, recwarn):
    from deepcluster.runs.plan import Request, begin
    from deepcluster.runtime.console import Silent

    request = Request(out=tmp_path / "run", options={"backbone": "timm:resnet18", **options})
    begin(find(photos), request, Silent())
    said = [str(warning.message) for warning in recwarn if warning.category is DeepClusterWarning]
    assert bool(said) == warned and all("weights timm" in text for text in said)


def test_what_the_package_offers_is_listed():
    import deepcluster

    assert {"DeepCluster", "load", "__version__"} == set(dir(deepcluster))


def test_the_name_of_a_data_set_is_said_before_its_library_is_loaded(capsys):
    assert run_command(["fit", "sklearn:none", "-k", "3"]) == 3
    said = capsys.readouterr()
    assert said.out == "Loading   sklearn:none\n" and "only sklearn:digits is available" in said.err
