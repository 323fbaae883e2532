"""Real processes under torchrun (gloo): the command as users type it, and what is left when something kills them.

DEEPCLUSTER_KILLS=20 pytest tests/test_torchrun.py -m slow    kills so often
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import save_file

from deepcluster import cli
from deepcluster.cli import app, run_command
from deepcluster.fitting.fit import Request, fit
from deepcluster.nets.network import build
from deepcluster.presets import read_request
from deepcluster.runtime.processes import Processes, init_processes
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
    """Wait until a run is in this round; its processes."""
    until = time.monotonic() + 120
    while not list((run / "checkpoints").glob(f"{round:06d}.json")):
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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["/nowhere"], 3, "/nowhere"),
        (["-"], 2, "input"),
        (["sklearn:digits", "-k", "3000"], 3, "1,797"),
        (["images.npy", "--weights", "huge.safetensors", *OPTIONS], 7, "finite"),
    ],
)
@pytest.mark.slow
def test_one_message_for_what_is_wrong(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", pixels())
    weights = build("compact", image_size=12).body.state_dict().items()
    save_file({name: (x * 1e30 if x.ndim > 1 else x).contiguous() for name, x in weights}, "huge.safetensors")
    _, said = finished(torchrun("fit", *arguments, "-o", "run"))
    (error,) = re.findall("^error: .*$", said, re.M)
    assert message in error
    codes = {*re.findall(r"exitcode *: (-?\d+)", said)}
    assert str(code) in codes and codes <= {str(code), str(-signal.SIGTERM)}  # torchrun ends the others
    assert code != 7 or record(tmp_path / "run")["status"] == "failed"


SHARED = {"fit", "predict", "embed", "evaluate"}
ALONE = [[name, "run"] for name in app if name[0] != "-" and name not in SHARED]


@pytest.mark.parametrize("arguments", ALONE, ids=" ".join)
def test_a_command_of_one_process_is_refused_under_torchrun(arguments, monkeypatch, ends):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert re.fullmatch(rf"error: {arguments[0]}.* torchrun\n", ends(arguments, 2))


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


def _patient(rank: int, port: int, folder: str) -> None:
    """One of two processes that keeps the other waiting for longer than torch's timeout."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    # What torch takes where nobody says otherwise.
    dist.distributed_c10d.default_pg_timeout = timedelta(seconds=2)
    with init_processes() as processes:
        time.sleep(4 * rank)
        Path(folder, str(rank)).write_text(str(processes.all_reduce(torch.ones(1)).item()))


@pytest.mark.slow
def test_a_step_longer_than_the_timeout_of_the_group_survives(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_patient, (port, str(tmp_path)), nprocs=2)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "2.0"


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    for process in workers(os.getpid()):
        os.kill(process, signal.SIGKILL)
