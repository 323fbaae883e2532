"""Time several programs side by side: each in a process of its own, one after the other, again and again.

A script gives functions by name. :func:`race` starts it once for each, with its environment, and lets them run in turn,
so that other load on the machine meets all alike.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

Task = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Contender:
    """A function of the script, by name, and the environment variables of its process."""

    function: str
    environment: Mapping[str, str]


class _Process:
    def __init__(self, script: str, contender: Contender):
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
        self.process = subprocess.Popen(
            [sys.executable, script, "--serve", contender.function],
            env={**environment, **contender.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return dict(json.loads(line.removeprefix("RESULT ")))
        raise RuntimeError(f"a contender stopped with {self.process.wait()}: {self.process.args}")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def race(
    script: str, contenders: Mapping[str, Contender], repeats: int, **arguments: Any
) -> dict[str, list[dict[str, Any]]]:
    """Return ``repeats`` results of each contender, taken in turn after one round of warming up."""
    processes = {name: _Process(script, contender) for name, contender in contenders.items()}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    try:
        for repeat in range(-1, repeats):
            for name, process in processes.items():
                time.sleep(0.2)  # threads of the one before that still spin
                result = process.run(**arguments, warming=repeat < 0)
                if repeat >= 0:
                    results[name].append(result)
                    print(f"  {name}: {result}", file=sys.stderr, flush=True)
    finally:
        for process in processes.values():
            process.end()
    return results


CORES = ("", "Haswell", "SkylakeX", "Zen", "Cooperlake", "Sapphirerapids")


def best_coretype(script: str, function: str, **arguments: Any) -> str:
    """Return the OPENBLAS_CORETYPE ("" is unset) with which a function of the script takes the fewest ``seconds``.

    The OpenBLAS that faiss brings does not know new processors; on some it falls back to kernels from 2007.
    """
    contenders = {core: Contender(function, {"OPENBLAS_CORETYPE": core} if core else {}) for core in CORES}
    results = race(script, contenders, 1, **arguments)
    return min(CORES, key=lambda core: results[core][0]["seconds"])


def serve(functions: Mapping[str, Task]) -> bool:
    """Answer requests in a contender's process (``--serve NAME``); return False in any other process."""
    if len(sys.argv) != 3 or sys.argv[1] != "--serve":
        return False
    function = functions[sys.argv[2]]
    for line in sys.stdin:
        print("RESULT " + json.dumps(function(**json.loads(line))), flush=True)
    return True


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return for each contender its median seconds, their range, its other figures and the ratio of ``ours`` to it.

    It takes the median of figures in seconds, and the largest of other figures.
    """
    table = {}
    ours = [result["seconds"] for result in runs["ours"]]
    for name, results in runs.items():
        seconds = [result["seconds"] for result in results]
        ratios = [a / b for a, b in zip(ours, seconds, strict=True)]
        table[name] = {
            "seconds": round(median(seconds), 4),
            "spread": [round(min(seconds), 4), round(max(seconds), 4)],
            **{
                key: round(median(values), 2) if key.endswith("_seconds") else max(values)
                for key in results[0].keys() - {"seconds"}
                if (values := [result[key] for result in results])
            },
            "ours against it": {
                "ratio": round(median(ours) / median(seconds), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            },
        }
        print(f"{name:18s}", table[name], flush=True)
    return table


def forget_peak_memory() -> int:
    """Return the resident memory now, bytes; :func:`peak_memory` then counts from here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """Return the most resident memory since :func:`forget_peak_memory`, bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
