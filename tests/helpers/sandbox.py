"""A folder with what a reader of the documentation has at hand, in which the commands of a page are run."""

import importlib.util
import io
import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from deepcluster.commands.cli import app, run_command
from deepcluster.learning import training
from tests.helpers.drawings import KINDS, draw, drawings, few_digits
from tests.helpers.pages import ROOT, Block, blocks, commands, of_deepcluster, text_of, words_of

QUICK = {"--rounds": "1", "--epochs": "1"}  # for fit, where the page does not set them
# Parsed, but not run, because ...
NOT_RUN = {
    "--weights timm": "it downloads",
    "--backbone photos-ssl": "it downloads",
    "deepcluster fetch": "it downloads",
    "--open": "it opens a browser",
    "imagenet/": "nobody has that at hand",
    "cifar10/": "it takes hours",
    "--recipe mine.toml": "AlexNet at 224 px takes minutes",
    "--device cuda": "the machines that run the tests have no GPU",
}
# Run if the package is installed, which make test does not do.
NEEDS = {"parquet": "pyarrow", "--to onnx": "onnxscript", "import datasets": "datasets"}
INSTALLING = ("cd", "git", "make", "pip", "python3", "source")  # on the reader's machine
SHELL = ("cat", "cp", "find", "head", "ls", "mkdir", "rm", "tar")


def verbs() -> set[str]:
    return {name for name in app if not name.startswith("-")}


def example_of(verb: str) -> str:
    """The command at the end of the help of a verb."""
    return str(app[verb].help_epilogue).removeprefix("Example: ")


def options(verb: str) -> set[str]:
    return {
        name for option in app[verb].assemble_argument_collection() for name in option.names if name.startswith("-")
    }


class Sandbox:
    """``folder``, the current one, for the commands and the Python blocks of a ``page``, which share their names."""

    def __init__(self, folder: Path, page: Path):
        self.page = page
        random = np.random.default_rng(7)
        for place, count in (("photos", 16), ("new", 2)):
            (folder / place).mkdir()
            pictures = [(kind, i) for i in range(count) for kind in KINDS]
            for number, (kind, i) in enumerate(pictures):
                name = f"{kind}-{i:02}.png" if place == "photos" else f"{number:02}.png"
                Image.fromarray(draw(kind, random)).save(folder / place / name)
        names = sorted(path.name for path in (folder / "photos").iterdir())
        (folder / "labels.csv").write_text("path,label\n" + "".join(f"{name},{name.split('-')[0]}\n" for name in names))
        for name in set(re.findall(r"--weights (\S+\.(?:safetensors|pth\.tar))", "\n".join(commands(page)))):
            write_weights(folder / name)
        if self._begins_with_a_run():
            self.run("deepcluster fit photos/ -k 3 -o runs/photos")
        self.names: dict[str, Any] = {
            "images": drawings(67, size=32)[0],
            "features": torch.rand(1200, 32, generator=torch.Generator().manual_seed(0)),
        }

    def _begins_with_a_run(self) -> bool:
        """A page without a ``fit``, or only with one like a run, goes on from that of another page."""
        ours = [
            arguments for line in commands(self.page) if (arguments := of_deepcluster(line)) if "--like" not in line
        ]
        return "fit" not in {verb for verb, *_ in ours} and any("runs/photos" in arguments for arguments in ours)

    def run(self, line: str) -> None:
        """Run a line, or check what cannot be run, and assert that it ends as the page says."""
        words = words_of(line)
        if (ours := of_deepcluster(line)) is not None:
            self._run_ours(line, ours)
        elif words[0] in ("torchrun", "srun"):
            # Parsed alone: tests/whole/test_several_processes.py runs the commands by several processes.
            app.parse_args(words[words.index("deepcluster") + 1 :], exit_on_error=False, print_error=False)
        elif words[0] == "python" and words[1].startswith("examples/"):
            if Path(words[1]).name not in text_of(ROOT / "tests/whole/test_examples.py"):
                with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
                    patch.setattr(sys, "argv", words[1:])
                    runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        elif words[0] == "python" and words[1].startswith("benchmarks/"):
            check_benchmark(words[1], [word for word in words[2:] if word.startswith("--")])
        else:
            assert words[0] in (*SHELL, *INSTALLING), f"{self.page.name}: no rule for {line!r}"
            if words[0] in SHELL:
                from_shell(line)

    def _run_ours(self, line: str, arguments: list[str]) -> None:
        if any(part in line for part in NOT_RUN) or needs_more(line):
            app.parse_args(arguments, exit_on_error=False, print_error=False)
            return
        target = arguments.pop() if ">" in arguments else ""
        arguments = [word for word in arguments if word != ">"]
        if arguments[0] == "fit" and not {"--dry-run", "--features"} & {*arguments}:
            if "--rounds" in arguments and "sklearn:digits" in arguments:
                arguments[arguments.index("--rounds") + 1] = "1"
            arguments += [word for option in QUICK.items() if option[0] not in arguments for word in option]
        if arguments[0] == "apply" and arguments[2] != "--undo":
            self._write_edits(*arguments[1:3])
        if arguments[0] == "teach" and len(arguments) > 2 and arguments[2].endswith(".csv"):
            questions = pd.read_csv(arguments[2], dtype=str, keep_default_na=False)
            questions.loc[:1, "name"] = ["roses", "lilies"]  # answers the first two
            questions.to_csv(arguments[2], index=False)
        before, pipe, _ = line.rpartition("| ")
        expected = int(promised[1]) if (promised := re.search(r"#.*exit code (\d+)", line)) else 0

        said, complained = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
            few_digits(patch)
            patch.setattr(sys, "argv", ["deepcluster", *arguments])
            patch.setattr(sys, "stdin", io.StringIO(from_shell(before) if pipe else ""))
            if expected == 75:
                patch.setattr(training, "Outputs", with_ctrl_c(training.Outputs))
            code = run_command(arguments)
        assert code == expected, f"{self.page.name}: {line} ended with {code}\n{complained.getvalue()}"
        if target:
            Path(target).write_bytes(said.buffer.getvalue())  # type: ignore[attr-defined]
        if code == 0 and "-o" in arguments and (out := arguments[arguments.index("-o") + 1]) != "-":
            assert Path(out).exists(), line

    def _write_edits(self, run: str, edits: str) -> None:
        """Write the edits that the page shows, or made-up ones, for the cut of the run."""
        on_page = (json.loads(block.text) for block in blocks(self.page) if block.language == "json")
        shown = next(on_page, {"schema_version": 1, "names": {"0": "roses"}, "merge": [[1, 3]]})
        Path(edits).write_text(json.dumps(shown | {"cut": json.loads(text_of(Path(run, "result.json")))["cut"]}))

    def execute(self, block: Block) -> None:
        """Run a block of Python, with one round and, in the estimator, one epoch and a seed (another may collapse)."""
        if needs_more(block.text):
            return
        source = re.sub(r"\brounds=\d+", "rounds=1", block.text)
        for name in ("rounds", "epochs", "random_state"):
            source = re.sub(rf"\bDeepCluster\((?!.*(?:\b{name}=|fit\(features\b))", f"DeepCluster({name}=1, ", source)
        with redirect_stdout(io.StringIO()):
            exec(compile(source, str(self.page), "exec"), self.names)


def needs_more(text: str) -> bool:
    return any(part in text and importlib.util.find_spec(package) is None for part, package in NEEDS.items())


def from_shell(line: str) -> str:
    return subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True).stdout


def with_ctrl_c(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: (signal.raise_signal(signal.SIGINT), function(*arguments))[1]


def write_weights(path: Path) -> None:
    """Random weights of the network of timm that the file is called after, or of the ResNet-50 of DeepCluster-v2."""
    if path.suffix == ".safetensors":
        save_file(timm.create_model(path.stem).state_dict(), path)
    else:
        torch.save({"state_dict": timm.create_model("resnet50", num_classes=0).state_dict()}, path)


def check_benchmark(script: str, given: list[str]) -> None:
    """A script of measurements takes minutes to hours: it is there, and it and ``fit`` know the options given."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", [script, "--help"])
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        runpy.run_path(str(ROOT / script), run_name="__main__")
    own = given[: given.index("--")] if "--" in given else given
    assert set(own) <= set(re.findall(r"(?<![\w-])--[a-z-]+", said.getvalue())), f"{script}: {shlex.join(own)}"
    assert set(given[len(own) + 1 :]) <= options("fit"), f"{script} -- {shlex.join(given)}"
