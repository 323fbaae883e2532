"""One pass over the data."""
