"""Files: the run folder and the model in it."""
