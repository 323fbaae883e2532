"""A model of images that were rows of a table: what it takes beside the model to read such rows."""

import json
import math
from pathlib import Path

from deepcluster.errors import ModelError
from deepcluster.images.arrays import PixelScale
from deepcluster.storage.files import write_whole
from deepcluster.storage.safe_read import read_json

TABLE = "table.json"
MOST_PIXELS = 1 << 28  # of an image


def save(scale: PixelScale | None, folder: Path) -> None:
    """Write the file; without a scale, remove one that is there."""
    if scale is None:
        (folder / TABLE).unlink(missing_ok=True)
        return
    values = {"shape": list(scale.shape), "width": scale.width, "low": scale.low, "high": scale.high}
    write_whole(folder / TABLE, lambda file: file.write(json.dumps(values) + "\n"))


def load(folder: Path) -> PixelScale | None:
    """None where there is none. ModelError where it is damaged."""
    path = folder / TABLE
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        shape, width, low, high = (values[name] for name in ("shape", "width", "low", "high"))
        sides = (
            isinstance(shape, list) and len(shape) in (2, 3) and all(type(side) is int and side > 0 for side in shape)
        )
        if not sides or math.prod(shape) > MOST_PIXELS:
            raise ValueError("shape is not an image shape")
        if type(width) is not int or not 1 <= width <= math.prod(shape):
            raise ValueError("width does not fit shape")
        if not all(type(value) is float and math.isfinite(value) for value in (low, high)) or low > high:
            raise ValueError("low must be <= high")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be used ({error}): fit again, or take a copy of it") from None
    return PixelScale(tuple(shape), width, low, high)
