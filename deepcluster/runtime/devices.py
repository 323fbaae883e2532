"""Devices, the floating-point precision, and the environment that a result depends on."""

import ctypes  # noqa: TID251 (mallopt)
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from deepcluster.errors import UsageError
from deepcluster.runtime.machine import local_world_size, versions

CPU = torch.device("cpu")
ROWS_SHARE = 0.4  # of a device's memory, for the rows to be clustered: a training step needs some as well


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; ``auto`` is cuda, else mps, else cpu.

    A process of several on a machine takes the GPU of its own number. UsageError if the machine lacks the device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    kind = name.partition(":")[0]
    if not available.get(kind):
        names = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UsageError(f"device {name}: this machine has {names}; auto chooses")
    local = os.environ.get("LOCAL_RANK") if name == "cuda" or (kind == "cuda" and local_world_size() > 1) else None
    if local is not None and int(local) >= torch.cuda.device_count():
        raise UsageError(
            f"device cuda: process {local} of this machine finds {torch.cuda.device_count()} GPUs: start as many"
            " processes as there are GPUs (--nproc-per-node)"
        )
    return torch.device(name if local is None else f"cuda:{local}")


def has_bf16(device: torch.device) -> bool:
    """Return whether matrix products in bfloat16 are native, and so faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


@contextmanager
def working_on(device: torch.device, *, deterministic: bool = False) -> Iterator[None]:
    """Make ``device`` the current GPU of this thread, and restore all settings at the end.

    A fixed workspace makes cuBLAS deterministic. On a CPU everything is, and nothing is set. ``deterministic``: Use
    torch's deterministic kernels; if there is none, torch warns.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            if "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
                stack.callback(os.environ.pop, "CUBLAS_WORKSPACE_CONFIG", None)
        if deterministic and device.type != "cpu":
            # The winner of cuDNN's benchmark depends on the device's other work; filling memory only takes time.
            stack.enter_context(_setting(torch.backends.cudnn, deterministic=True, benchmark=False))
            stack.enter_context(_setting(torch.utils.deterministic, fill_uninitialized_memory=False))
            stack.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
            torch.set_deterministic_debug_mode("warn")
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 with 24 bits on a GPU too, instead of the 11 of TF32, torch's default in convolutions."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with _setting(convolutions, fp32_precision="ieee"), _setting(torch.backends.cuda.matmul, fp32_precision="ieee"):
        yield


@contextmanager
def _setting(owner: object, **values: object) -> Iterator[None]:
    """Set attributes of ``owner``, and restore them at the end."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def holds_rows(device: torch.device, rows: int, width: int) -> bool:
    """Return whether ``device`` has float64, and room to cluster ``rows`` x ``width`` numbers.

    The total memory counts, not the free one, so that two runs decide alike.
    """
    if device.type == "cuda":
        return 4 * rows * width <= ROWS_SHARE * torch.cuda.get_device_properties(device).total_memory
    return device.type != "mps"


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next tensors instead of returning it to the system (glibc only).

    The system would zero a page anew at every optimizer step. A step takes .97 (compact, 32 px) to .75
    (EfficientNet-Lite0, 112 px) of its time on 2 cores. The setting is one of the whole process.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, 2**31 - 1)


def environment(device: torch.device, processes: int = 1, *, deterministic: bool = False) -> dict[str, str | int]:
    """Return all that a result may depend on besides its options: versions, hardware, threads, processes, kernels."""
    return {
        **versions(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "bf16": "native" if has_bf16(device) else "no",
        "kernels": "deterministic" if deterministic or device.type == "cpu" else "fastest",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
