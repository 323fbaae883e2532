"""Which device to run on, and in which floating-point precision."""

import ctypes
import os
import platform
from contextlib import suppress
from importlib import metadata

import torch

from deepcluster.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` is cuda, else mps, else cpu. UsageError where the named device is not there.

    Of several processes on a machine (torchrun numbers them) each takes the GPU with its own number.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    kind = name.partition(":")[0]
    if kind not in available:
        raise UsageError(f"--device {name}: choose auto, cpu, cuda or mps")
    if not available[kind]:
        raise UsageError(f"--device {name}: no such device on this machine; try --device auto")
    local = os.environ.get("LOCAL_RANK") if name == "cuda" else None
    if local is not None and int(local) >= torch.cuda.device_count():
        raise UsageError(
            f"--device cuda: process {local} of this machine finds {torch.cuda.device_count()} GPUs: start as many"
            " processes as there are GPUs (--nproc-per-node)"
        )
    return torch.device(name if local is None else f"cuda:{local}")


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are native here, and so faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type in which matrix products are computed: ``auto`` is bfloat16 where that is native, else float32."""
    if name not in PRECISIONS:
        raise UsageError(f"precision {name!r}: choose {', '.join(PRECISIONS)}")
    if name == "auto":
        name = "bf16" if has_bf16(device) else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next tensors instead of handing it back to the system (glibc only).

    The system gives each page back with zeros in it, anew at every step: kept, a training step takes .97 (compact,
    32 px) to .75 (EfficientNet-Lite0, 112 px) of its time (2 cores). It is a setting of the process, for a run's own.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, 2**31 - 1)


def environment(device: torch.device, processes: int = 1) -> dict[str, str | int]:
    """What a result may depend on beside its options: versions, hardware, threads, processes."""
    packages = ("deepcluster", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow")
    versions: dict[str, str | int] = {name: metadata.version(name) for name in packages}
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "bf16": "native" if has_bf16(device) else "no",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
