"""The life of a run folder: fit, resume, recut, predict, evaluate, report."""
