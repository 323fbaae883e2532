"""Protocols: what features and clusters are worth by labels. Each yields (name, value) pairs, part after part."""
