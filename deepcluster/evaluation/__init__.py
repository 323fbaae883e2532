"""Protocols that score features and clusters by labels. Each yields pairs of a name and a figure."""
