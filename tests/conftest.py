import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from deepcluster.commands.cli import run_command
from tests.helpers.drawings import KINDS, draw
from tests.helpers.hub import Hub, point_to, serving, tiny_file
from tests.helpers.ranks import Ranks
from tests.helpers.runs import FIVE_CLUSTERS, small_fit

# Whatever networks this machine has are not there for the tests, and nothing is fetched.
os.environ["HF_HUB_CACHE"] = str(Path(tempfile.gettempdir()) / "deepcluster-tests-without-weights")
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is slow.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


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
def fit_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the run of ``small_fit`` on the photographs with some options, which is made once."""

    @cache
    def run_with(*options: str) -> Path:
        out = tmp_path_factory.mktemp("fitted") / "run"
        assert run_command(["fit", str(photos), "-o", str(out), *small_fit(*options)]) == 0
        return out

    return run_with


@pytest.fixture(scope="session")
def finished(fit_once: Callable[..., Path]) -> Path:
    """A small run on the photographs, with labels."""
    return fit_once("--labels", "folders")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test that writes into it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def five_clusters(fit_once: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a run with five clusters, whose images are elsewhere."""
    return Path(shutil.copytree(fit_once(*FIVE_CLUSTERS), tmp_path / "run"))


@pytest.fixture(scope="session")
def ranks() -> Iterator[dict[int, Ranks]]:
    """One, two and three processes, by their number; for all tests the same, for they take five seconds to start."""
    by_count = {count: Ranks(count) for count in (1, 2, 3)}
    yield by_count
    for processes in by_count.values():
        processes.end()


@pytest.fixture
def ends(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command here, which must end with one of the codes and no traceback; returns what it says on stderr."""

    def run_to_its_end(arguments: Sequence[object], *codes: int) -> str:
        code = run_command(list(map(str, arguments)))
        said = capsys.readouterr().err
        assert code in codes, (arguments, code, said)
        assert "bug" not in said and "Traceback" not in said, said
        return said

    return run_to_its_end


@pytest.fixture
def prints(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command here, which must succeed; returns what it prints."""

    def run_and_read(*arguments: object) -> str:
        capsys.readouterr()
        assert run_command([*map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run_and_read


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the Hugging Face Hub, empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, which the client takes for the real one."""
    with serving(tiny_file()) as server:
        point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        yield server
