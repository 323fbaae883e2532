"""The machine: devices, threads, signals, processes and how they share images, the console."""

from typing import TYPE_CHECKING

from deepcluster import at_first_use

if TYPE_CHECKING:
    from deepcluster.runtime.console import Display, Silent

__all__ = ["Display", "Silent"]
__getattr__ = at_first_use(dict.fromkeys(__all__, "deepcluster.runtime.console"))  # signals are heard before rich
