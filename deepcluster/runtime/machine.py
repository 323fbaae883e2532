"""The machine as a process sees it before it imports torch: memory, and the processes of torchrun."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from deepcluster.errors import OutOfMemoryError

if sys.platform != "win32":
    import resource

MIN_TAKEN_SHARE = 0.7  # of an estimate: a process takes at least so much of the memory


def versions() -> dict[str, str | int]:
    """Return the versions of the packages that a result may depend on, of Python and of the system."""
    packages = ("deepcluster", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow")
    installed = {name: metadata.version(name) for name in packages}
    return {**installed, "python": platform.python_version(), "platform": platform.platform()}


# ---- memory ---------------------------------------------------------------------------------------------------------


def available(root: Path = Path("/")) -> float:
    """Return the bytes that this process may still take: free memory, or less by limits (Linux; elsewhere infinite).

    The page cache counts as free: the kernel drops it as soon as a process of the container needs the memory.
    """
    limits = [float("inf")]
    with suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        limits.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    for group in control_groups("memory", root):
        for limit, used, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            with suppress(OSError, ValueError):  # "max" if there is no limit
                free = int((group / limit).read_text()) - int((group / used).read_text())
                sizes = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                cache = sum(int(sizes.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                limits.append(float(free + cache))
    if sys.platform != "win32":
        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            address_space = 0
            with suppress(OSError):  # a system that does not tell
                address_space = int((root / "proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limits.append(float(soft - address_space))
    return max(0.0, min(limits))


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from the innermost to the top: each may have a limit."""
    lines = ["::", f":{controller}:"]  # the top, which is all that a container sees
    with suppress(OSError):  # a system without control groups
        lines += (root / "proc/self/cgroup").read_text().splitlines()
    for _, names, path in (line.split(":", 2) for line in lines):
        if controller in (names or controller).split(","):  # version 2 has no names
            top = root / "sys/fs/cgroup" / (names and controller)
            yield from (group for group in (top / path.strip("/") / "file").parents if group.is_relative_to(top))


def peak_mb() -> int | None:
    """Return the most memory that this process has had, in MB; None on Windows."""
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def check_fits(what: str, needed: float, advice: str) -> None:
    """Raise OutOfMemoryError if ``needed`` bytes for ``what`` exceed the free memory."""
    free = available()
    if MIN_TAKEN_SHARE * needed > free:
        raise OutOfMemoryError(f"{what} takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free: {advice}")


# ---- torchrun -------------------------------------------------------------------------------------------------------


def world_size() -> int:
    """Return the number of processes that torchrun has started; 1 without it."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1")))


def local_world_size() -> int:
    """Return the number of these processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def is_main_rank() -> bool:
    """Return whether this is the process that prints."""
    return os.environ.get("RANK", "0") == "0"
