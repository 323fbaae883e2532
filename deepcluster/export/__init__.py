"""A finished run in other forms: a tree of folders, a data set, tables, an ONNX graph.

Each function takes a run folder and the path to make, where nothing may exist but a tree of links that ``overwrite``
replaces. A failure leaves nothing new.
"""

from deepcluster.export.folders import folders, imagefolder
from deepcluster.export.keywords import keywords
from deepcluster.export.onnx import onnx
from deepcluster.export.parquet import parquet

__all__ = ["folders", "imagefolder", "keywords", "onnx", "parquet"]
