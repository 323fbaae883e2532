"""The machine: devices, threads, signals, processes and how they share images, terminal."""

from deepcluster.runtime.display import Display, Silent

__all__ = ["Display", "Silent"]
