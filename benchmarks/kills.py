"""Kill any rank in any phase of a run, the result included, and resume: does it end with the same bits?

    python benchmarks/kills.py [COUNT] [--processes 2] [--then 2] [--seed 0]

Ranks are forks of this process, which has imported everything, so that a run takes seconds. A random rank of each
run is killed (SIGKILL) at a random moment of a random phase: reading, rounds, result (all of step 7 and the files).
With --then, another number of ranks goes on; then the run must end well, and nothing is compared. Results go to
results/kills.json.
"""

import argparse
import csv
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # an optimizer imports it
from common import save

import deepcluster.fitting.fit  # noqa: F401
from deepcluster.commands.cli import run_command

ROUNDS, SIZE = 4, 12
OPTIONS = (
    f"-k 4 --backbone compact --image-size {SIZE} --batch-size 16 --pseudo-labels 8 --epochs 2 -q --rounds {ROUNDS}"
).split()
PHASES = ("reading", "rounds", "result")
SAME = (
    "clusters.csv",
    "features.npy",
    "model/model.safetensors",
    "model/clusters.safetensors",
    "cluster_summary.csv",
)
GRACE, HANG = (0, 30, 5), 120  # seconds until the ranks that are left get SIGKILL, SIGTERM; until they must have ended


def images(folder: Path) -> Path:
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 40, (60, SIZE, SIZE, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        image[i % 4 * 3 : i % 4 * 3 + 3] += 150
    np.save(folder / "images.npy", pixels)
    return folder / "images.npy"


def start(arguments: list[str], count: int, log: Path) -> list[int]:
    """Start ``count`` ranks of a command and return their process ids, by rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
                if count > 1:
                    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                    os.environ |= address | {name: str(value) for name, value in names.items()}
                sys.argv = ["deepcluster", *arguments]
                code = run_command(arguments)
            finally:
                sys.stderr.flush()
                os._exit(code)
        ranks.append(pid)
    return ranks


def ended(ranks: list[int]) -> list[int]:
    """Return the exit codes of all ranks. If one fails, end the others as torchrun does, by SIGTERM and later by
    SIGKILL: a rank that waits in torch for the others to begin does not notice that one is gone."""
    codes: dict[int, int] = {}
    begun, sent = time.monotonic(), [signal.SIGKILL, signal.SIGTERM]
    while len(codes) < len(ranks):
        for pid in ranks:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(status[1])
        left = sorted(set(ranks) - set(codes))
        if any(codes.values()) and sent and time.monotonic() - begun > GRACE[len(sent)]:
            what = sent.pop()
            for pid in left:
                os.kill(pid, what)
        if time.monotonic() - begun > HANG:
            sys.exit(f"{left} hang")
        time.sleep(0.005)
    return [codes[pid] for pid in ranks]


def phase_of(run: Path) -> str:
    record = run / "run.json"
    if record.exists() and '"result": "final"' in record.read_text():  # and the checkpoints are gone
        return "result"
    if not (run / "checkpoints" / "images.csv").exists():
        return "reading"
    return "result" if (run / "checkpoints" / f"{ROUNDS:06d}.json").exists() else "rounds"


def is_alive(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def durations(run: Path, ranks: list[int]) -> dict[str, float]:
    """Return the seconds of each phase of an undisturbed run."""
    begun = {"reading": time.monotonic()}
    while any(map(is_alive, ranks)):
        begun.setdefault(phase_of(run), time.monotonic())
        time.sleep(0.002)
    ends = [*list(begun.values())[1:], time.monotonic()]
    return {phase: end - begin for (phase, begin), end in zip(begun.items(), ends, strict=True)}


def result_of(run: Path) -> dict[str, object]:
    with (run / "history.csv").open() as file:
        history = [{key: cell for key, cell in row.items() if "second" not in key} for row in csv.DictReader(file)]
    assert (run / "report.html").stat().st_size > 10_000
    assert [path.name for path in run.glob(".deepcluster*/*")] == ["lock"], "something was left behind"
    return {"history": history, **{name: (run / name).read_bytes() for name in SAME}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--then", type=int, default=0, help="ranks that go on (default: as many)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    then = asked.then or asked.processes
    torch.set_num_threads(1)
    chance, killed = random.Random(asked.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["fit", str(images(folder)), *OPTIONS]
        ranks = start([*command, "-o", str(folder / "whole")], asked.processes, folder / "log")
        seconds = durations(folder / "whole", ranks)
        assert ended(ranks) == [0] * asked.processes, (folder / "log").read_text()
        whole = result_of(folder / "whole")
        print("undisturbed", {phase: round(each, 2) for phase, each in seconds.items()}, flush=True)
        while killed.total() < asked.count:
            number = killed.total()
            phase, rank = chance.choice(PHASES), chance.randrange(asked.processes)
            run = folder / f"run{number}"
            ranks = start([*command, "-o", str(run)], asked.processes, folder / "log")
            while phase_of(run) != phase and is_alive(ranks[rank]):
                time.sleep(0.001)
            time.sleep(chance.random() * seconds[phase])
            if not is_alive(ranks[rank]):  # it was quicker
                ended(ranks)
                continue
            os.kill(ranks[rank], signal.SIGKILL)
            codes = ended(ranks)
            assert codes[rank] == -signal.SIGKILL
            reached = phase_of(run)
            codes = ended(start([*command, "-o", str(run), "--resume"], then, folder / "log"))
            assert codes == [0] * then, (folder / "log").read_text()[-3000:]
            again = result_of(run)
            assert then != asked.processes or again == whole, f"{run} differs after a kill of rank {rank} in {reached}"
            killed[f"rank {rank}, {reached}"] += 1
            print(number + 1, f"rank {rank}", reached, flush=True)
    figures = dict(sorted(killed.items()))
    if then == asked.processes and killed.total():
        save("kills", {"processes": asked.processes, "kills": killed.total(), "resumed to the same bits": figures})
    print(figures)


if __name__ == "__main__":
    main()
