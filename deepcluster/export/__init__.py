"""What a finished run becomes elsewhere: a tree of folders, a data set, a table, an ONNX graph, a model for the Hub, a
checkpoint of the authors.

Each function takes a run folder and what to make, which must not be there yet; nothing is left of it where it fails.
"""
