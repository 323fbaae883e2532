"""clusters.csv and features.npy as one typed table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepcluster.errors import missing_extra
from deepcluster.runtime.display import Display, Silent
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.destination import check_no_file, write_file
from deepcluster.storage.run_folder import RunFolder
from deepcluster.table import Table


def parquet(run: Path, out: Path, *, display: Display | None = None) -> None:
    """Write the columns of clusters.csv with their types, and ``features`` as lists of fixed length, to a file.

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

    def read(folder: RunFolder) -> tuple[Table, Any]:
        rows = folder.read_clusters()
        dims = models.load_of_run(folder).reduction.projection.shape[1]
        used = np.array([row["status"] == "ok" for row in rows], bool)
        features = np.full((len(rows), dims), np.nan, np.float32)
        features[used] = folder.read_array("features.npy", int(used.sum()), dims)
        return rows, features

    rows, features = files.read_state(run, read)
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
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), dims)
    write_file(out, lambda file: pq.write_table(pa.table(columns), file))
    (display or Silent()).say("Exported", f"{len(rows):,} rows with {dims} features to {out}")


def _as_utf8(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
