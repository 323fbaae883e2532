"""The way of images to a run: plan, forecast, train, conclude, write the results."""

# Before torch, which imports numpy from C++: Ctrl-C in there aborts the process instead of ending it with code 75.
import numpy  # noqa: F401
