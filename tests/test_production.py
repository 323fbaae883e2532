"""Five nights of the script of docs/production.md, with the command in processes of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.drawings import save_drawings
from tests.pages import ROOT, blocks

(SCRIPT,) = (block.text for block in blocks(ROOT / "docs/production.md") if block.language == "bash")


class Nights:
    """A run, an inbox and the script."""

    def __init__(self, folder: Path, images: Path, *options: str):
        self.run, self.inbox, self.script = folder / "run", folder / "inbox", folder / "nightly.sh"
        self.inbox.mkdir()
        self.script.write_text(SCRIPT)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        command = ["deepcluster", "fit", images, "-o", self.run, "--rounds", "0", "-q", *options]
        subprocess.run(command, env=self.environment, check=True)

    def __call__(self, *files: Path, kill: bool = False) -> tuple[int, str, list[str]]:
        """Put files into the inbox, and return the exit code, the text for the mail and the new lines of the log."""
        for number, file in enumerate(files):
            shutil.copy(file, self.inbox / f"{len([*self.inbox.iterdir()]):04}-{number}{file.suffix}")
        log = self.run / "log.txt"
        before = len(log.read_text())
        process = subprocess.Popen(
            ["bash", self.script, self.run, self.inbox], env=self.environment, stdout=subprocess.PIPE, text=True
        )
        if kill:
            while "deepcluster update" not in log.read_text()[before:]:
                time.sleep(0.01)
            os.kill(int((self.run / ".deepcluster/lock").read_text().split()[1]), signal.SIGKILL)
        said = process.communicate()[0]
        return process.returncode, said, [line[26:] for line in log.read_text()[before:].splitlines()]

    @property
    def told(self) -> Any:
        return json.loads(Path(f"{self.run}.update.json").read_text())


def five_nights(nights: Nights, new: list[Path], strangers: list[Path], broken: Path) -> None:
    begin = "INFO deepcluster update "
    assert nights()[:2] == (0, "") and nights.told["added"] == 0
    code, said, log = nights(*new[:5])
    assert (code, said, nights.told["added"], nights.told["due"]) == (0, "", 5, False)
    assert log[0].startswith(begin) and log[1] == "INFO Images: 5 added" and log[2].startswith("INFO Placed: ")
    code, said, log = nights(broken, *new[5:7], broken)
    assert (code, said) == (0, "") and "2 added, 5 in the run already, 2 skipped: " in log[1]
    assert [row["reason"] for row in nights.told["skipped"]] == [nights.told["skipped"][0]["reason"]] * 2
    code, said, log = nights(*strangers)
    assert (code, nights.told["due"]) == (0, True), nights.told
    assert said == f"A new fit is due: {nights.told['reason']}\n" and said[:-1].replace("A", "a", 1) in log[-1].lower()
    code, said, log = nights(*new[7:], kill=True)
    assert code == 137 and said.startswith("The update ended with 137") and len(log) == 1 and log[0].startswith(begin)
    assert nights()[0] == 0 and nights.told["added"] == len(new) - 7


@pytest.mark.slow
def test_the_nightly_script_of_the_page(tmp_path):
    """Drawings and a pretrained network; the strangers are parts of photographs."""
    images = save_drawings(tmp_path / "images", 40, 64)
    new = sorted(save_drawings(tmp_path / "new", 5, 64, seed=1).rglob("*.png"))
    (tmp_path / "strangers").mkdir()
    for number, photo in enumerate(load_sample_images().images):
        for i in range(12):
            part = photo[i // 4 * 140 : i // 4 * 140 + 140, i % 4 * 150 : i % 4 * 150 + 150]
            Image.fromarray(part).save(tmp_path / f"strangers/{number}-{i}.png")
    (broken := tmp_path / "broken.jpg").write_bytes(b"no image")
    nights = Nights(tmp_path, images, "-k", "3")
    five_nights(nights, new, sorted((tmp_path / "strangers").iterdir()), broken)
