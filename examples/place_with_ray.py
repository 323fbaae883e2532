"""Places of all images by the model of a run, with Ray Data (pip install ray pyarrow), written as Parquet.

python examples/place_with_ray.py runs/photos photos/ placed/
"""

import sys

import ray

import deepcluster


class Placer:
    """A worker: it reads the model once. On GPUs: num_gpus=1 below, and ``load(run, torch.device("cuda"))``."""

    def __init__(self, run):
        self.model = deepcluster.load(run)

    def __call__(self, batch):
        """Return the columns of a batch. A file that cannot be used stops nothing: its row has a reason."""
        placed = self.model.place(batch["bytes"])
        return {"path": batch["path"], **placed, "features": [*placed["features"]]}


if __name__ == "__main__":
    run, photos, out = sys.argv[1:]
    files = ray.data.read_binary_files(photos, include_paths=True)
    placed = files.map_batches(Placer, fn_constructor_args=[run], batch_size=256, concurrency=1)
    placed.write_parquet(out)
