"""Five nights of the script of docs/production.md, with the command in processes of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.drawings import save_drawings
from tests.pages import ROOT, blocks

(SCRIPT,) = (block.text for block in blocks(ROOT / "docs/production.md") if block.language == "bash")


def test_the_files_of_the_container_build_the_package(tmp_path):
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "runs"} <= {*ignored} and not {*ignored, "."} & {*copied}
    for name in copied:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    pytest.importorskip("setuptools", "77")
    code = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


@pytest.mark.slow
def test_five_nights_of_the_script_of_the_page(tmp_path):
    """Drawings and a pretrained network; the strangers are parts of photographs."""
    images = save_drawings(tmp_path / "images", 40, 64)
    new = sorted(save_drawings(tmp_path / "new", 5, 64, seed=1).rglob("*.png"))
    strangers = [tmp_path / f"{number}.png" for number in range(24)]
    for number, file in enumerate(strangers):
        photo, (row, column) = load_sample_images().images[number // 12], divmod(number % 12, 4)
        Image.fromarray(photo[140 * row : 140 * row + 140, 150 * column : 150 * column + 150]).save(file)
    (broken := tmp_path / "broken.jpg").write_bytes(b"no image")
    run, inbox, script = tmp_path / "run", tmp_path / "inbox", tmp_path / "nightly.sh"
    inbox.mkdir()
    script.write_text(SCRIPT)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    fit = ["deepcluster", "fit", images, "-k", "3", "-o", run, "--rounds", "0", "-q"]
    subprocess.run(fit, env=environment, check=True)

    def night(*files, kill=False):
        """Put files into the inbox; the exit code, the text for the mail, the new lines of the log, and update.json."""
        for number, file in enumerate(files):
            shutil.copy(file, inbox / f"{len([*inbox.iterdir()]):04}-{number}{file.suffix}")
        log = run / "log.txt"
        before = len(log.read_text())
        process = subprocess.Popen(["bash", script, run, inbox], env=environment, stdout=subprocess.PIPE, text=True)
        if kill:
            while "deepcluster update" not in log.read_text()[before:]:
                time.sleep(0.01)
            os.kill(int((run / ".deepcluster/lock").read_text().split()[1]), signal.SIGKILL)
        said = process.communicate()[0]
        lines = [line[26:] for line in log.read_text()[before:].splitlines()]
        told = Path(f"{run}.update.json").read_text()
        return process.returncode, said, lines, json.loads(told) if told else {}

    begin = "INFO deepcluster update "
    shutil.move(inbox, tmp_path / "away")
    failed = subprocess.run(["bash", script, run, inbox], env=environment, capture_output=True, text=True)
    assert failed.returncode == 3 == json.loads(Path(f"{run}.update.json").read_text())["code"]
    shutil.move(tmp_path / "away", inbox)
    code, said, log, told = night()
    assert (code, said, told["added"]) == (0, "", 0)
    code, said, log, told = night(*new[:5])
    assert (code, said, told["added"], told["due"]) == (0, "", 5, False)
    assert log[0].startswith(begin) and log[1].startswith("INFO Images: 5 ") and log[2].startswith("INFO Placed: ")
    code, said, log, told = night(broken, *new[5:7], broken)
    assert (code, said) == (0, "")
    assert re.findall(r"\d+ (?=[a-z])", log[1]) == ["2 ", "5 ", "2 "]  # added, known, skipped
    assert [row["reason"] for row in told["skipped"]] == [told["skipped"][0]["reason"]] * 2
    code, said, log, told = night(*strangers)
    assert (code, told["due"]) == (0, True), told
    first, command, *paths = said.splitlines()
    assert first.endswith(told["reason"]) and first.lower() in log[-1].lower()
    assert command == f"deepcluster fit IMAGES --like {run}" and command in log[-1]
    assert paths == told["strangers"][:20]
    assert {path.partition("-")[2] for path in paths} <= {path.name for path in strangers}
    code, said, log, told = night(*new[7:], kill=True)
    assert code == 137 and said.startswith("The update ended with 137") and len(log) == 1 and log[0].startswith(begin)
    code, said, log, told = night()
    assert code == 0 and told["added"] == len(new) - 7
