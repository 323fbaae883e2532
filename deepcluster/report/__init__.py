"""From the records of a run to one HTML page that a person can read."""
