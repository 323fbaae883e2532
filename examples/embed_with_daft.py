"""A table of embeddings by Daft (pip install daft), written as Parquet, for `deepcluster fit clip/ --features`.

python examples/embed_with_daft.py photos/ clip/
"""

import sys

import daft
import numpy as np
from PIL import Image

WIDTH = 8 * 8 * 3


def embedding(path: str) -> list[float]:
    """Return a small picture as numbers: put your network here."""
    with Image.open(path.removeprefix("file://")) as image:
        return (np.asarray(image.convert("RGB").resize((8, 8)), np.float32).ravel() / 255).tolist()


if __name__ == "__main__":
    photos, out = sys.argv[1:]
    embed = daft.func(embedding, return_dtype=daft.DataType.embedding(daft.DataType.float32(), WIDTH))
    table = daft.from_glob_path(f"{photos.rstrip('/')}/**/*.png").select("path")
    table.with_column("embedding", embed(daft.col("path"))).write_parquet(out)
