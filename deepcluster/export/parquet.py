"""clusters.csv, features.npy, map and nearest neighbours as one typed table for viewers of embeddings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.errors import needing
from deepcluster.report.pictures import on_sheet
from deepcluster.runs.page import map_positions
from deepcluster.runs.result import clusters_table
from deepcluster.runs.run import read_run
from deepcluster.runtime.console import Display, Silent
from deepcluster.storage import run_folder
from deepcluster.storage.content import COLUMNS
from deepcluster.storage.files import check_no_file, new_file

EXPORTED_NEIGHBOURS = 10  # of an image
MAX_WITH_NEIGHBOURS = 200_000  # images: all are compared with all


def parquet(run: Path, out: Path, *, display: Display = Silent()) -> None:
    """Write the columns of clusters.csv with their types, and columns for viewers, to a file.

    ``map_x`` and ``map_y`` are the positions on the map of the report (of more than 20,000 images only some are on it),
    ``neighbors`` the nearest images in the form of embedding-atlas, ``features`` lists of fixed length.

    Empty cells become null; features of skipped files are NaN, because pyarrow 19 and 22 cannot read a null list of
    fixed length. Bytes of a path that are not UTF-8 become ``\\xNN``: Parquet has no other text.
    Needs the extra ``parquet``.

    Examples:
        >>> parquet(Path("runs/photos"), Path("photos.parquet"))
    """
    with needing("pyarrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    check_no_file(out)
    folder = run_folder.open_run(run)
    of_run = read_run(folder)
    rows = clusters_table(of_run)
    reduced = of_run.rows.reduced  # of the first rows; the others have NaN
    features, positions = (np.full((len(rows), width), np.nan, np.float32) for width in (reduced.shape[1], 2))
    features[: len(reduced)] = reduced.numpy()
    positions[on_sheet(len(reduced))] = map_positions(folder, of_run)
    types = {str: pa.string(), int: pa.int32(), float: pa.float64(), bool: pa.bool_()}
    columns: dict[str, Any] = {}
    with folder.as_disk_errors():
        for column in (column for column in COLUMNS if column.name in rows.columns):
            value = _as_utf8 if column.type is str else column.value
            # An empty name is a value (the cluster has no name); other empty cells are null.
            cells = zip(rows.column(column.name), rows.column("cluster"), strict=True)
            values = [value(cell) if cell or (column.name == "name" and cluster) else None for cell, cluster in cells]
            columns[column.name] = pa.array(values, types[column.type])
    for name, axis in zip(("map_x", "map_y"), positions.T, strict=True):
        columns[name] = pa.array(axis, mask=np.isnan(axis))
    kind = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
    progress = partial(display.progress, "neighbours")
    columns["neighbors"] = pa.array(_neighbours(torch.from_numpy(features), progress), kind)
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    new_file(out, lambda file: pq.write_table(pa.table(columns), file))
    display.say("Exported", f"{len(rows):,} rows with {features.shape[1]} features to {out}")


def _neighbours(features: Tensor, progress: Callable[[int, int], None]) -> list[dict[str, list[Any]] | None]:
    """Return the rows of the images nearest to an image, and the Euclidean distances, from the nearest on."""
    cells: list[dict[str, list[Any]] | None] = [None] * len(features)
    numbers = (~features[:, 0].isnan()).nonzero().squeeze(1)
    if len(numbers) > MAX_WITH_NEIGHBOURS:
        return cells
    products, rows = nearest(features[numbers], EXPORTED_NEIGHBOURS, progress=progress)
    distances = (2 - 2 * products).clamp_min(0).sqrt()
    for row, ids, away in zip(numbers.tolist(), numbers[rows].tolist(), distances.tolist(), strict=True):
        cells[row] = {"ids": ids, "distances": away}
    return cells


def _as_utf8(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
