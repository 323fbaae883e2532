"""The documentation is true: every command and every Python block of its pages runs, page by page, in order.

Each page has a sandbox of its own with what its reader would have: ``photos/`` (48 small drawings), ``new/`` (6 more),
``labels.csv`` and, where it is named, a file of weights. Two rules make a command cheap: ``fit`` gets ``QUICK`` options
that the page does not set, and a Python block ``rounds=1``. A comment ``exit code N`` in a page is part of its promise.
"""

import io
import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.cli import app, run_command
from deepcluster.learning import pseudo_labels
from tests.drawings import KINDS, draw, drawings

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
PAGES = [page for page in PAGES if "_build" not in page.parts]

QUICK = {"--rounds": "1", "--epochs": "1"}
# Parsed, but not run, because ...
NOT_RUN = {
    "--weights timm": "it downloads",
    "imagenet/": "nobody has that at hand",
    "--recipe mine.toml": "AlexNet at 224 px takes minutes",
    "--device cuda": "the machines that run the tests have no GPU",
}
# Commands and names that are written about before they are there. Empty it when they are.
PENDING = {"apply", "export"}
HISTORY = ("decisions.md", "CHANGELOG.md")  # may name options that are gone

FENCE = re.compile(r"^( *)```(\S+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SHELL = ("cat", "cp", "find", "head", "ls", "mkdir", "rm")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, and its lines without what the fence is indented by."""

    language: str
    text: str

    def lines(self) -> list[str]:
        joined = self.text.replace("\\\n", " ")
        return [line for line in map(str.strip, joined.splitlines()) if line and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(each[2], re.sub(rf"^{each[1]}", "", each[3], flags=re.MULTILINE)) for each in found]


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page) if block.language == "console" for line in block.lines()]


def of_deepcluster(line: str) -> list[str] | None:
    """The arguments of the last command of a line, where it is ours."""
    words = words_of(line.rpartition("| ")[2])
    return words[1:] if words[0] == "deepcluster" else None


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def verbs() -> set[str]:
    return {name for name in app if not name.startswith("-")}


def options(verb: str) -> set[str]:
    return {name for each in app[verb].assemble_argument_collection() for name in each.names if name.startswith("-")}


# ---- running a page ----------------------------------------------------------------------------------------------


class Sandbox:
    """A reader's folder. ``run`` runs a line of a page there, ``execute`` a block of Python."""

    def __init__(self, folder: Path, page: Path):
        self.folder, self.page = folder, page
        random = np.random.default_rng(7)
        for where, count in (("photos", 16), ("new", 2)):
            (folder / where).mkdir()
            for i in range(count):
                for j, kind in enumerate(KINDS):
                    name = f"{kind}-{i:02}.png" if where == "photos" else f"{2 * j + i:02}.png"
                    Image.fromarray(draw(kind, random)).save(folder / where / name)
        names = sorted(path.name for path in (folder / "photos").iterdir())
        (folder / "labels.csv").write_text("path,label\n" + "".join(f"{name},{name.split('-')[0]}\n" for name in names))
        for name in set(re.findall(r"\w+\.safetensors", page.read_text(encoding="utf-8"))):
            write_weights(folder / name)
        self.names: dict[str, object] = {
            "images": drawings(67, size=32)[0],
            "features": torch.rand(1200, 32, generator=torch.Generator().manual_seed(0)),
        }

    def run(self, line: str) -> None:
        """Run a line and assert that it ends as the page says. It may read another command, and write to a file."""
        ours = of_deepcluster(line)
        if ours is not None:
            self.run_ours(line, ours)
            return
        words = words_of(line)
        if words[0] == "python" and words[1].startswith("examples/"):
            assert Path(words[1]).name in (ROOT / "tests/test_examples.py").read_text(), "run it there"
        elif words[0] == "python" and words[1].startswith("benchmarks/"):
            check_benchmark(words[1], [word for word in words[2:] if word.startswith("--")])
        elif words[0] == "python":
            pytest.fail(f"{self.page.name}: no rule for {line!r}")
        elif words[0] == "make":
            rules = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in words[1:] if "=" not in word} <= set(rules), line
        elif words[:2] == ["pip", "install"]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            named = {each for word in words for found in re.findall(r"\[(.*)\]", word) for each in found.split(",")}
            assert named <= extras.keys(), line
        else:
            assert words[0] in SHELL, f"{self.page.name}: no rule for {line!r}"
            subprocess.run(["bash", "-c", line], check=True, capture_output=True)

    def run_ours(self, line: str, arguments: list[str]) -> None:
        if any(reason in line for reason in NOT_RUN):
            app.parse_args(arguments, exit_on_error=False, print_error=False)
            return
        if arguments[0] in PENDING - verbs():
            return
        if arguments[0] == "apply":
            self.write_edits(*arguments[1:3])
        if arguments[0] == "fit" and "--dry-run" not in arguments:
            arguments += [word for option in QUICK.items() if option[0] not in arguments for word in option]
        arguments, _, target = " ".join(map(shlex.quote, arguments)).partition(" '>' ")
        words = shlex.split(arguments)
        before, pipe, _ = line.rpartition("| ")
        typed = subprocess.run(["bash", "-c", before], check=True, capture_output=True, text=True).stdout if pipe else ""
        expected = int(found[1]) if (found := re.search(r"#.*exit code (\d+)", line)) else 0

        said, complained = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
            patch.setattr(sys, "argv", ["deepcluster", *words])
            patch.setattr(sys, "stdin", io.StringIO(typed))
            if expected == 75:
                patch.setattr(pseudo_labels, "_loss", with_ctrl_c(pseudo_labels._loss))
            code = run_command(words)
        assert code == expected, f"{self.page.name}: {line}\n{complained.getvalue()}"
        output = said.buffer.getvalue()
        if target:
            Path(target).write_bytes(output)
        if code == 0 and "-o" in words and "-" not in words:
            assert Path(words[words.index("-o") + 1]).exists(), line

    def write_edits(self, run: str, edits: str) -> None:
        """The edits.json that the page shows, for the cut that there is."""
        shown = next(json.loads(each.text) for each in blocks(self.page) if each.language == "json" and "cut" in each.text)
        cut = json.loads(Path(run, "run.json").read_text())["cut"]
        Path(edits).write_text(json.dumps(shown | {"cut": cut}))

    def execute(self, block: Block) -> None:
        source = re.sub(r"\brounds=\d+", "rounds=1", block.text)
        with redirect_stdout(io.StringIO()):
            exec(compile(source, str(self.page), "exec"), self.names)


def with_ctrl_c(function):
    def pressed(*arguments):
        signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    return pressed


def write_weights(path: Path) -> None:
    """Random weights of the network of timm that the file is called after."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model(path.stem, pretrained=False).state_dict(), path)


def check_benchmark(script: str, given: list[str]) -> None:
    """A script of measurements takes minutes to hours: it is there, and its help names the options given."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", [script, "--help"])
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        runpy.run_path(str(ROOT / script), run_name="__main__")
    own = given[: given.index("--")] if "--" in given else given
    missing = [option for option in own if option not in said.getvalue()]
    assert not missing, f"{script} has no {missing}"
    beyond = [option for option in given[len(own) + 1 :] if option not in options("fit")]
    assert not beyond, f"deepcluster fit has no {beyond}"


def pages_with(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(block.language in languages for block in blocks(page))]


@pytest.mark.parametrize("page", pages_with("console", "python"), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_true(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    sandbox = Sandbox(tmp_path, page)
    for block in blocks(page):
        if block.language == "console":
            for line in block.lines():
                sandbox.run(line)
        elif block.language == "python":
            sandbox.execute(block)
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    if not any(verb in "\n".join(commands(page)) for verb in PENDING - verbs()):
        for named in re.findall(r"`(runs/[\w./-]+)`", text):
            assert Path(named).exists(), f"{page.name} names {named}, which its commands do not make"


# ---- that nothing is passed over ---------------------------------------------------------------------------------


def test_commands_are_found():
    ours = [arguments for page in PAGES for line in commands(page) if (arguments := of_deepcluster(line))]
    assert len(ours) >= 45
    assert {arguments[0] for arguments in ours} >= verbs()  # each command is shown somewhere
    assert {arguments[0] for arguments in ours} <= verbs() | PENDING
    assert len(pages_with("console")) >= 10


def test_no_command_hides_in_another_block():
    for page in PAGES:
        for block in blocks(page):
            if block.language != "console":
                hidden = [line for line in block.lines() if re.match(rf"(\$ )?deepcluster ({'|'.join(verbs())})\b", line)]
                assert not hidden, f"{page.name}: put it into a console block: {hidden}"
        fences = len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert fences == 2 * len(blocks(page)), f"{page.name}: a block without a language, or without an end"


def test_options_in_the_text_exist():
    everywhere = set.union(*map(options, verbs())) | {"--help", "--version", "--debug"}
    for page in PAGES:
        if page.name in HISTORY or page.parent.name == "benchmarks":
            continue
        text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
        for code in re.findall(r"`([^`\n]+)`", text):
            verb = re.match(r"deepcluster (\w+)", code)
            assert verb is None or verb[1] in verbs() | PENDING | {"VERB"}, f"{page.name}: {code}"
            if code.startswith("-") or verb:
                known = options(verb[1]) if verb and verb[1] in verbs() else everywhere
                named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", code))
                assert named <= known or (verb and verb[1] in PENDING), f"{page.name}: {code}"


def test_links_lead_somewhere():
    for page in PAGES:
        text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
