"""The machine: devices, threads, signals, processes and how they share images, the console."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcluster.runtime.console import Display, Silent, TensorBoard

__all__ = ["Display", "Silent", "TensorBoard"]


def __getattr__(name: str) -> Any:
    """Import at first use: signals are heard before rich is imported."""
    if name in __all__:
        from deepcluster.runtime import console

        return getattr(console, name)
    raise AttributeError(f"module 'deepcluster.runtime' has no attribute {name!r}")
