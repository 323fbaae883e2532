"""The commands, by what they do with a run."""
