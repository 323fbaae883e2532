"""A neighbour graph as the tensors of a file."""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from deepcluster.groups.neighbour_graph import Graph


def graph_tensors(graph: Graph) -> dict[str, Tensor]:
    """A graph as tensors; the ties in float32."""
    ties = graph.ties
    parts = {"rows": graph.rows, "ties": torch.from_numpy(ties.data.astype(np.float32))}
    return parts | {"columns": torch.from_numpy(ties.indices), "ends": torch.from_numpy(ties.indptr)}


def graph_of(parts: Mapping[str, Tensor], images: int) -> Graph:
    """The graph that :func:`graph_tensors` took apart. ValueError where it is not one of ``images`` images."""
    rows, ties, columns, ends = (parts[name] for name in ("rows", "ties", "columns", "ends"))
    size = len(rows)
    ascending = rows.dtype == torch.int64 and size > 0 and bool((rows.diff() > 0).all())
    if not (ascending and rows[0] >= 0 and rows[-1] < images):
        raise ValueError("its rows are not those of the images")
    if not (ties.dtype == torch.float32 and torch.isfinite(ties).all() and (ties >= 0).all()):
        raise ValueError("its ties are not finite numbers from 0")
    square = csr_array((ties.double().numpy(), columns.numpy(), ends.numpy()), (size, size))
    square.check_format(full_check=True)
    return Graph(rows, square)
