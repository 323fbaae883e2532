import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli import run_command
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
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick run on the photographs."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run_command(["fit", str(photos), "-k", "3", "-o", str(out), *QUICK]) == 0
    return out


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
