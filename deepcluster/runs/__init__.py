"""The life of a run folder: fit, resume, recut, predict, evaluate, report."""

# Before torch, which imports numpy from C++: there Ctrl-C aborts the process, where it should end with code 75.
import numpy  # noqa: F401
