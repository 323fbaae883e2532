"""Time several programs side by side: each in a process of its own, one after the other, again and again.

:func:`race` starts a process for each function of a script, and lets them run in turn, so that other load on the
machine meets all alike.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

Task = Callable[..., dict[str, Any]]
CORES = ("", "Haswell", "SkylakeX", "Zen", "Cooperlake", "Sapphirerapids")


def race(
    contenders: Mapping[str, Task], repeats: int, coretypes: Mapping[str, str] | None = None, **arguments: Any
) -> dict[str, list[dict[str, Any]]]:
    """Return ``repeats`` results of each contender, taken in turn after one round of warming up.

    ``coretypes``: The OPENBLAS_CORETYPE of contenders; it is unset for others.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        processes = {}
        for name in contenders:
            executor = ProcessPoolExecutor(1, get_context("spawn"), _set_coretype, ((coretypes or {}).get(name, ""),))
            processes[name] = stack.enter_context(executor)
        for repeat in range(-1, repeats):
            for name, contender in contenders.items():
                time.sleep(0.2)  # threads of the one before that still spin
                result = processes[name].submit(contender, **arguments, warming=repeat < 0).result()
                if repeat >= 0:
                    results[name].append(result)
                    print(f"  {name}: {result}", file=sys.stderr, flush=True)
    return results


def _set_coretype(coretype: str) -> None:
    os.environ.pop("OPENBLAS_CORETYPE", None)
    os.environ |= {"OPENBLAS_CORETYPE": coretype} if coretype else {}


def best_coretype(task: Task, **arguments: Any) -> str:
    """Return the OPENBLAS_CORETYPE ("" is unset) with which a contender takes the fewest ``seconds``.

    The OpenBLAS that faiss brings does not know new processors; on some it falls back to kernels from 2007.
    """
    results = race(dict.fromkeys(CORES, task), 1, {core: core for core in CORES}, **arguments)
    return min(CORES, key=lambda core: results[core][0]["seconds"])


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


def peak_memory(*, anew: bool = False) -> int:
    """Return the most resident memory so far, bytes; ``anew`` starts to count from now on (Linux)."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
