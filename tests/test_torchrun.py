"""Real processes under torchrun (gloo): the command as users type it, and what is left when something kills them.

DEEPCLUSTER_KILLS=20 pytest tests/test_torchrun.py -m slow    kills so often
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch.distributed as dist

from deepcluster import cli
from deepcluster.cli import app, run_command
from deepcluster.errors import UsageError
from deepcluster.fitting.fit import Request, fit
from deepcluster.presets import read_request
from deepcluster.runtime import processes
from deepcluster.runtime.processes import Processes
from tests.drawings import save_drawings
from tests.helpers.runs import record
from tests.helpers.shared import files_of, pixels
from tests.ranks import Ranks

KILLS = int(os.environ.get("DEEPCLUSTER_KILLS", "3"))
ROUNDS = 6
SMALL = {"backbone": "compact", "image_size": 12, "batch_size": 16, "pseudo_labels": 8, "epochs": 1, "rounds": ROUNDS}
OPTIONS = ["-q", "-k", "4", *(f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items())]


def torchrun(*arguments: object, count: int = 2) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
         "-m", "deepcluster", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finished(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str]:
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(file, pixels())
    return file


def fitted(processes: Processes, images: Path, folder: Path, resume: bool) -> None:
    """The same command in processes that are there already, which takes a tenth of the time."""
    fit(str(images), Request(out=folder, n_clusters=4, recipe=read_request(SMALL), resume=resume), processes=processes)


@pytest.fixture(scope="module")
def whole(ranks: dict[int, Ranks], images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    ranks[2](fitted, images, folder, False)
    return folder


def workers(launcher: int) -> list[int]:
    """The processes that a launcher has started, in the order of their ranks."""
    by_rank = {}
    for process in Path("/proc").glob("[0-9]*"):
        if status(int(process.name))[1] == str(launcher):
            with suppress(OSError):
                lines = (process / "environ").read_bytes().split(b"\0")
                by_rank |= {int(line[5:]): int(process.name) for line in lines if line.startswith(b"RANK=")}
    return [process for _, process in sorted(by_rank.items())]


def status(process: int) -> list[str]:
    """The state of a process (Z: it has ended) and its parent."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return ["Z", ""]


def wait_until_gone(processes: list[int], seconds: float) -> None:
    """Until none of them is alive: more than ``seconds`` is a hang."""
    until = time.monotonic() + seconds
    while any(status(process)[0] != "Z" for process in processes):
        assert time.monotonic() < until, "some are still alive"
        time.sleep(0.05)


def begun(launcher: subprocess.Popen[str], run: Path, round: int) -> list[int]:
    """Wait until a run is in this round or in a later one; its processes."""
    until = time.monotonic() + 120
    while not any(int(path.stem) >= round for path in (run / "checkpoints").glob("*.json")):
        assert launcher.poll() is None, launcher.stdout and launcher.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    return workers(launcher.pid)


@pytest.mark.parametrize("draw", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(KILLS)])
def test_kill_a_process(ranks, images, whole, tmp_path, draw):
    """At a random moment: all others end too, and the run resumes to the result of the whole one."""
    chance, run = random.Random(draw), tmp_path / "run"
    launcher = torchrun("fit", images, "-o", run, *OPTIONS)
    main, other = begun(launcher, run, chance.randrange(ROUNDS - 4))
    time.sleep(0.3 * chance.random())
    victim = (other, main, launcher.pid)[draw % 3]
    os.kill(victim, signal.SIGKILL)
    wait_until_gone([main, other], 120)
    _, said = finished(launcher)
    ranks[2](fitted, images, run, True)
    assert files_of(run) == files_of(whole)
    errors = re.findall("^.*error: .*$", said, re.M)
    if victim == main:  # torchrun names the signal that ended the main rank, and ends the other one
        assert errors == [] and "SIGKILL" in said
    elif victim == other:
        # The launcher sends SIGTERM to the main rank, which may meet it first: writing a result, it waits for nobody.
        (error,) = errors
        assert re.search("another process|stopped .* --resume$", error)


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all_and_the_run_goes_on(images, whole, tmp_path):
    run = tmp_path / "run"
    launcher = torchrun("fit", images, "-o", run, *OPTIONS)
    begun(launcher, run, 3)
    launcher.send_signal(signal.SIGTERM)
    _, said = finished(launcher)
    assert len(re.findall("^error: ", said, re.M)) == 1, said
    assert re.search(f"error: stopped .*; to go on: run it again with -o {run} --resume$", said, re.M)
    assert record(run)["status"] == "stopped"
    code, said = finished(torchrun("fit", images, "-o", run, *OPTIONS, "--resume"))
    assert code == 0, said
    assert files_of(run) == files_of(whole)


SHARED = {"fit", "predict", "embed", "evaluate"}
ALONE = [["fit", "-"], *([name, "run"] for name in app if name[0] != "-" and name not in SHARED)]


@pytest.mark.parametrize("arguments", ALONE, ids=" ".join)
def test_a_command_of_one_process_is_refused_under_torchrun(arguments, monkeypatch, ends):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert re.fullmatch(r"error: .* (torchrun|to a \.txt file.*)\n", ends(arguments, 2))


def test_another_rank_lets_the_main_rank_speak_first(monkeypatch, capsys, request):
    """torchrun ends it while it waits, if the main rank meets the error too."""
    request.addfinalizer(partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM)))
    waited: list[tuple[float, object]] = []
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: waited.append((seconds, signal.getsignal(signal.SIGTERM))))
    monkeypatch.setenv("RANK", "1")
    assert run_command(["fit", "/nowhere"]) == 3
    assert waited == [(cli.RANK_WAIT_SECONDS, signal.SIG_DFL)]
    assert capsys.readouterr().err.startswith("[rank 1] error: ")


@pytest.mark.slow
def test_predict_and_embed_write_the_same_bytes(whole, images, tmp_path):
    folder = save_drawings(tmp_path / "folder", 27, 12)
    (folder / "broken.png").write_bytes(b"broken")
    for verb, name in (("predict", "p.csv"), ("embed", "e.npy")):
        for count in (1, 3):
            out = tmp_path / f"{count}{name}"
            code, said = finished(torchrun(verb, whole, folder, "-o", out, "-q", count=count))
            assert code == 0 and said.count("skipped broken.png") == 1, said
        assert (tmp_path / f"1{name}").read_bytes() == (tmp_path / f"3{name}").read_bytes()


def test_no_step_is_too_long_for_the_group(monkeypatch):
    """Torch alone would end it after half an hour."""
    group = Mock(side_effect=ValueError("refused"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_end_with_launcher", lambda: None)
    monkeypatch.setattr(dist, "init_process_group", group)
    with pytest.raises(UsageError), processes.init_processes():
        pass
    assert group.call_args.kwargs["timeout"] > timedelta(days=1)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    for process in workers(os.getpid()):
        os.kill(process, signal.SIGKILL)
