"""clusters.csv, features.npy, map and nearest neighbours as one typed table, which viewers of embeddings open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.errors import missing_extra
from deepcluster.groups.embedding import layout
from deepcluster.report.pictures import on_sheet
from deepcluster.runtime.console import Display, Silent
from deepcluster.seeding import derive
from deepcluster.storage import model_files as models
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.files import check_no_file, new_file
from deepcluster.storage.run_folder import RunFolder
from deepcluster.storage.table import Table

NEIGHBOURS = 10  # of each image
MOST_WITH_NEIGHBOURS = 200_000  # images: each is compared with each


def parquet(run: Path, out: Path, *, display: Display | None = None) -> None:
    """Write the columns of clusters.csv with their types, and what viewers need, to a file.

    ``map_x`` and ``map_y`` are the places on the map of the report (of more than 20,000 images only some are on it),
    ``neighbors`` the nearest images in the form of embedding-atlas, ``features`` lists of fixed length.

    Empty cells become null; features of skipped files are NaN, as pyarrow 19 and 22 cannot read a null list of fixed
    length. Bytes of a path that are not UTF-8 become ``\\xNN``: Parquet has no other text. Needs the extra ``parquet``.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_extra("parquet", error) from None
    import numpy as np

    check_no_file(out)

    def read(folder: RunFolder) -> tuple[Table, Any, Any]:
        rows = folder.read_clusters()
        dims = models.load_of_run(folder).reduction.projection.shape[1]
        used = np.array([row["status"] == "ok" for row in rows], bool)
        features = np.full((len(rows), dims), np.nan, np.float32)
        features[used] = folder.read_array("features.npy", int(used.sum()), dims)
        places = np.full((len(rows), 2), np.nan, np.float32)
        on_map = on_sheet(int(used.sum()))
        on_map_rows = np.flatnonzero(used)[on_map]
        drawn_then = drawn.read_map(folder, int(used.sum()), on_map)
        seed = derive(folder.read_record().seed, "map")
        places[on_map_rows] = (
            layout(torch.from_numpy(features[on_map_rows]), seed) if drawn_then is None else drawn_then
        )
        return rows, features, places

    rows, features, places = files.read_state(run, read)
    used = ~np.isnan(features[:, 0])
    dims = features.shape[1]
    types: dict[str, tuple[Any, Callable[[str], Any]]] = {
        "cluster": (pa.int32(), int),
        "fine_cluster": (pa.int32(), int),
        "distance": (pa.float64(), float),
        "margin": (pa.float64(), float),
        "is_outlier": (pa.bool_(), lambda cell: bool(int(cell))),
    }

    def column(name: str) -> Any:
        kind, parse = types.get(name, (pa.string(), _as_utf8))
        # A cluster without a name has the empty name; other empty cells mean that there is no value.
        return pa.array(
            [parse(row[name]) if row[name] or (name == "name" and row["cluster"]) else None for row in rows], kind
        )

    with files.open_run(run).as_disk_errors():
        columns = {name: column(name) for name in files.CLUSTERS}
    for name, axis in (("map_x", 0), ("map_y", 1)):
        columns[name] = pa.array(places[:, axis], mask=np.isnan(places[:, axis]))
    kind = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
    columns["neighbors"] = pa.array(_neighbours(torch.from_numpy(features), torch.from_numpy(used)), kind)
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), dims)
    new_file(out, lambda file: pq.write_table(pa.table(columns), file))
    (display or Silent()).say("Exported", f"{len(rows):,} rows with {dims} features to {out}")


def _neighbours(features: Tensor, used: Tensor) -> list[dict[str, list[Any]] | None]:
    """The nearest images of each: their rows, and the Euclidean distances, from the nearest on."""
    found: list[dict[str, list[Any]] | None] = [None] * len(features)
    numbers = used.nonzero().squeeze(1)
    if len(numbers) > MOST_WITH_NEIGHBOURS:
        return found
    products, rows = nearest(features[numbers], NEIGHBOURS)
    distances = (2 - 2 * products).clamp_min(0).sqrt()
    for row, ids, away in zip(numbers.tolist(), numbers[rows].tolist(), distances.tolist(), strict=True):
        found[row] = {"ids": ids, "distances": away}
    return found


def _as_utf8(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
