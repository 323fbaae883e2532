"""The machine as a process sees it before it imports torch: memory, and the processes of torchrun."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from deepcluster.errors import OutOfMemoryError, UsageError

if sys.platform != "win32":
    import resource

# How far an estimate may be above what is really taken.
CERTAIN = 0.7


# ---- memory ---------------------------------------------------------------------------------------------------------


def available() -> float:
    """Return the bytes that this process may still take: free memory, or less by limits (Linux; elsewhere infinite)."""
    limits = [float("inf")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # "max" if there is no limit
            limits.append(float(int(Path(limit).read_text()) - int(Path(used).read_text())))
    if sys.platform != "win32":
        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            limits.append(float(soft))
    return max(0.0, min(limits))


def peak_mb() -> int | None:
    """Return the most memory that this process has had, in MB; None on Windows."""
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def check_fits(what: str, needed: float, advice: str) -> None:
    """Raise OutOfMemoryError if ``needed`` bytes for ``what`` exceed the free memory."""
    free = available()
    if CERTAIN * needed > free:
        raise OutOfMemoryError(f"{what} takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free: {advice}")


# ---- torchrun -------------------------------------------------------------------------------------------------------


def world_size() -> int:
    """Return the number of processes that torchrun has started; 1 without it."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        raise UsageError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment is no number: unset it") from None


def local_world_size() -> int:
    """Return the number of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def is_main_rank() -> bool:
    """Return whether this is the process that speaks."""
    return os.environ.get("RANK", "0") == "0"
