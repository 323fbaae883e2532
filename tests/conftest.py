import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli import run_command
from tests.commands import Commands
from tests.drawings import KINDS, draw
from tests.ranks import Ranks

QUICK = [
    "--rounds", "1", "--epochs", "1", "--pseudo-labels", "6", "--image-size", "16", "--batch-size", "16", "--quiet"
]  # fmt: skip


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sub-folder of 16 PNG files for each kind."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(7)
    for kind in KINDS:
        (root / kind).mkdir()
        for i in range(16):
            Image.fromarray(draw(kind, random)).save(root / kind / f"{i:02}.png")
    return root


@pytest.fixture(scope="session")
def fitted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A quick run on the photographs with more options of the command line, made once for each set of them."""

    @cache
    def run_with(*options: str) -> Path:
        out = tmp_path_factory.mktemp("fitted") / "run"
        assert run_command(["fit", str(photos), "-k", "3", "-o", str(out), *QUICK, *options]) == 0
        return out

    return run_with


@pytest.fixture(scope="session")
def finished(fitted: Callable[..., Path]) -> Path:
    """A quick run on the photographs."""
    return fitted()


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test that writes into it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def ranks() -> Iterator[dict[int, Ranks]]:
    """One, two and three processes, by their number; for all tests the same, for they take five seconds to start."""
    found = {count: Ranks(count) for count in (1, 2, 3)}
    yield found
    for each in found.values():
        each.end()


@pytest.fixture(scope="session")
def command() -> Iterator[Commands]:
    """Runs a command in a process of its own."""
    commands = Commands()
    yield commands
    commands.end()
