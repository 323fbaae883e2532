"""From images to a run: decide or resume, read, alternate, conclude, write."""

# Before torch, which imports numpy from C++: Ctrl-C in there aborts the process instead of ending it with code 75.
import numpy  # noqa: F401
