"""Features of all images by the network of a run, with Daft (pip install daft), written as Parquet.

deepcluster fit sample/ -o runs/sample
python examples/embed_with_daft.py runs/sample photos/ clip/
deepcluster fit clip/ --features -k 100
"""

import sys

import daft

import deepcluster


@daft.cls
class Embedder:
    """A worker: it reads the model once."""

    def __init__(self, run):
        self.model = deepcluster.load(run)

    @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=256)
    def embed(self, contents):
        """Return the features of a batch, null for a file that cannot be used; ``place`` has its reason, too."""
        placed = self.model.place(contents.to_pylist())
        pairs = zip(placed["features"].tolist(), placed["reason"], strict=True)
        return [None if reason else features for features, reason in pairs]


if __name__ == "__main__":
    run, photos, out = sys.argv[1:]
    table = daft.from_glob_path(f"{photos.rstrip('/')}/**").select("path")
    table = table.with_column("embedding", Embedder(run).embed(daft.functions.download(daft.col("path"))))
    table.where(daft.col("embedding").not_null()).write_parquet(out)
