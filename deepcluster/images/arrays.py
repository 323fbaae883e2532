"""Images by number: arrays, .npy files, ``Dataset`` objects, lists of images, and data sets by name."""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError, DeepClusterError
from deepcluster.images.decode import MAX_PIXELS, Undecodable, as_rgb, explain, upright
from deepcluster.images.source import Items, Numbered, Source, row_names
from deepcluster.runtime.bounded import check_file
from deepcluster.texts import one_line

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs

CHANNELS = (1, 3, 4)
MEMORY = "the array"  # location of one that came from Python
IMAGE_KEY = "image"  # of items that are dicts: the usual name of torch and Hugging Face


def from_dataset(dataset: Any, name: str, location: str, labels: tuple[str, ...] | None = None) -> Source:
    """Return the images of anything with ``len(dataset)`` and ``dataset[i]``.

    An item is a PIL image, an array or tensor (uint8, or floats in [0, 1]), a tuple that begins with one (the rest,
    labels, is ignored), or a dict with one under ``image``. A data set of Hugging Face must have one column of images,
    which are decoded as files are; else DataError. An item that is not an image raises ``Undecodable`` or ``OSError``
    when it is read.
    """
    holder = location if ":" in location else ""  # the name that a library knows
    items = _hugging_face(dataset, holder) if hasattr(dataset, "cast_column") else _Dataset(holder, dataset)
    return Source(name, location, row_names(len(dataset)), items, labels)


@dataclass(frozen=True)
class _Dataset(Numbered):
    dataset: Any
    lock: AbstractContextManager[object] = field(default_factory=Lock)  # a data set need not be thread-safe

    def content(self, i: int) -> Image.Image:
        try:
            with self.lock:
                return picture(self.dataset[i])
        except (MemoryError, OSError, DataError, Undecodable):
            raise
        except Exception as error:  # it is somebody else's code
            raise Undecodable(explain(error)) from error


def picture(item: Any) -> Image.Image:
    """Return the item of a data set as an image in mode RGB. DataError, about all items, if its scale is another."""
    if isinstance(item, Mapping):
        if IMAGE_KEY not in item:
            raise Undecodable(f"a dict with the keys {', '.join(map(repr, item))} and no {IMAGE_KEY!r}")
        item = item[IMAGE_KEY]
    if isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, Image.Image):
        if not all(item.size):
            raise Undecodable(f"an image of {item.width} x {item.height} pixels")
        return upright(item)
    item = without_torch(item)
    if not isinstance(item, np.ndarray):
        raise Undecodable(f"not an image but of type {type(item).__name__}")
    if not is_unit(item):
        reason = f"{not_pixels(item)}, without Normalize"
        if item.dtype.kind == "f" and np.isfinite(item).all():  # a dark image of this scale would count as a bright one
            raise DataError(f"the images have {reason}")
        raise Undecodable(reason)
    if not _is_image(item.shape):
        raise Undecodable(f"shape {item.shape}; it must be H x W, H x W x C or C x H x W with C one of 1, 3, 4")
    array = as_uint8(item)
    if array.ndim == 3 and array.shape[2] not in CHANNELS:  # the last axis counts first
        array = array.transpose(1, 2, 0)
    grey = array.ndim == 3 and array.shape[2] == 1
    return as_rgb(Image.fromarray(np.ascontiguousarray(array[..., 0] if grey else array)))


def is_tensor(value: object) -> "TypeIs[Tensor]":
    """Recognise a tensor without importing torch, which takes a second: no tensor exists before that import."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def without_torch(value: Any) -> Any:
    """Return a tensor as an array, and anything else as it is. DataError if some numbers have no value."""
    if isinstance(value, np.ma.MaskedArray) or getattr(value, "is_meta", False):
        raise DataError("some numbers of the array are masked, or on the device meta: give them values, X.filled(0)")
    if not is_tensor(value):
        return value
    is_small = value.is_floating_point() and value.element_size() < 4  # numpy lacks such types, as bfloat16
    return (value.float() if is_small else value).detach().cpu().numpy()


def is_unit(array: npt.NDArray[Any]) -> bool:
    """Tell if the numbers can only be pixels: uint8, or floats in [0, 1]."""
    if array.dtype.kind != "f" or not array.size:
        return array.dtype == np.uint8
    return bool(array.min() >= 0 and array.max() <= 1)  # False for NaN, too


def as_uint8(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return pixels of [0, 1] as 0..255; uint8 unchanged."""
    return array if array.dtype == np.uint8 else np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def not_pixels(array: npt.NDArray[Any]) -> str:
    """Return a message about numbers of another scale, which only the user knows for certain."""
    kind = array.dtype.kind
    size = array.size
    limits = f" from {array.min():.3g} to {array.max():.3g}" if size and kind in "iuf" else ""
    scales = (1, 255) if array.dtype != np.uint16 else (255, 65535)
    fitting = (scale for scale in scales if size and kind in "biuf" and array.min() >= 0 and array.max() <= scale)
    return f"{array.dtype} numbers{limits}: pass " + next((f"X / {n}" for n in fitting), "uint8 or floats in [0, 1]")


def _is_image(shape: tuple[int, ...]) -> bool:
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and bool({shape[0], shape[2]} & set(CHANNELS))))


def _hugging_face(dataset: Any, holder: str) -> Items:
    columns = [name for name, feature in dataset.features.items() if type(feature).__name__ == "Image"]
    if len(columns) != 1:
        names = ", ".join(map(one_line, columns or dataset.features))
        what = "several columns of images," if columns else "no column of type Image, but"
        raise DataError(f"the data set has {what} {names}: pass one with exactly one (cast_column, select_columns)")
    column = columns[0]
    # Undecoded, so that these images pass the one decoder too; other columns are not read at all.
    encoded = dataset.with_format(None).select_columns(columns)
    return _HuggingFace(holder, encoded.cast_column(column, type(dataset.features[column])(decode=False)), column)


def from_bytes(contents: Sequence[Any]) -> Source:
    """Return images by the bytes of their files, which are decoded as files are."""
    return Source("bytes", "the bytes", row_names(len(contents)), _Encoded("", contents))


@dataclass(frozen=True)
class _Encoded(Numbered):
    contents: Sequence[Any]

    def content(self, i: int) -> BinaryIO:
        return BytesIO(self.contents[i])


@dataclass(frozen=True)
class _HuggingFace(Numbered):
    encoded: Any
    column: str

    def content(self, i: int) -> Path | BinaryIO:
        item = self.encoded[i][self.column]
        if not item or (item["bytes"] is None and not item["path"]):
            raise Undecodable("no image in this row")
        return Path(item["path"]) if item["bytes"] is None else BytesIO(item["bytes"])


def load_array(file: Path, mmap_mode: Literal["r"] | None = None) -> Any:
    """Return ``np.load`` of numbers only. Raises ValueError with a reason that advises nobody to unpickle."""
    with file.open("rb") as stream:
        start = stream.read(6)
    if start.startswith(b"PK"):
        raise ValueError("it is an .npz archive: np.save('images.npy', np.load(FILE)[NAME]) makes an array of it")
    if not start.startswith(b"\x93NUMPY"):
        raise ValueError(f"it is not a numpy file: it begins with {start!r}")
    try:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise ValueError("it holds Python objects and not numbers: save numbers of type uint8") from None
        raise


@contextmanager
def reading(what: str, file: Path) -> Iterator[None]:
    """Turn all errors of reading a file into DataError: numpy raises many kinds if it is damaged."""
    try:
        check_file(file)
        yield
    except (DeepClusterError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"cannot read {what} {one_line(str(file))}: {explain(error)}") from error


def from_numpy_file(file: Path) -> Source:
    """Return the images of an .npy file."""
    with reading("the array", file):
        array = load_array(file, mmap_mode="r")
        if not array.flags.c_contiguous:
            array = load_array(file)
    return from_array(array, file.stem, str(file))


def as_images(images: "Tensor | npt.NDArray[Any]") -> "Tensor":
    """Return pixels as the loop takes them, uint8 N x 3 x S x S; such a tensor is returned unchanged.

    ``images`` is N x 3 x S x S or N x S x S x 3; uint8, or floats in [0, 1]. DataError if it is anything else.
    """
    import torch

    if is_tensor(images) and images.dtype != torch.uint8:
        images = without_torch(images)
    if not is_tensor(images):
        if not all(map(is_unit, images)):
            raise DataError(f"images of {not_pixels(images)}")
        images = torch.from_numpy(np.ascontiguousarray(as_uint8(images)))
    if images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise DataError(f"images of shape {tuple(images.shape)}: pass N x 3 x S x S or N x S x S x 3")
    return images


def from_array(array: npt.NDArray[Any], name: str, location: str, labels: npt.NDArray[Any] | None = None) -> Source:
    """Return the images of an array; DataError if its type or its shape is wrong.

    It is N x H x W, N x H x W x C or N x C x H x W with C in 1, 3, 4 (the last axis counts first); uint8, or in memory
    also floats in [0, 1]. Images of a mapped file are read from the disk.
    """
    in_memory = location == MEMORY
    title = location if in_memory else f"the array {one_line(location)}"
    if not array.ndim or not len(array) or not _is_image(array.shape[1:]):
        raise DataError(
            f"{title} has shape {array.shape}; it must be N x H x W, N x H x W x C or N x C x H x W with C one of 1,"
            f" 3, 4{': X.reshape(-1, H, W) makes images of rows of pixels' if array.ndim == 2 else ''}"
        )
    if math.prod(array.shape[1:]) > max(CHANNELS) * MAX_PIXELS:
        raise DataError(f"{title} has images of more than {MAX_PIXELS:,} pixels: make them smaller")
    if in_memory and array.dtype != np.uint8:
        if not all(map(is_unit, array)):
            raise DataError(f"{title} has {not_pixels(array)}")
    elif array.dtype != np.uint8:
        raise DataError(f"{title} has dtype {array.dtype}, not uint8: scale it to 0..255 and use .astype('uint8')")
    is_file = Path(location).is_absolute()  # else it is the name of a data set, or in memory
    place = "" if in_memory else os.path.realpath(location) if is_file else location
    texts = None if labels is None else tuple(map(str, labels.tolist()))
    return Source(name, location, row_names(len(array)), _Dataset(place, array, nullcontext()), texts)


# ---- data sets of libraries, by name ---------------------------------------------------------------------------------


def from_sklearn(name: str) -> Source:
    """Return the digits of scikit-learn, the only data set that it installs as images."""
    if name != "digits":
        raise DataError(f"unknown data set sklearn:{one_line(name)}: only sklearn:digits is available")
    from sklearn.datasets import load_digits  # takes a second

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return from_array(grey, "digits", "sklearn:digits", digits.target)


def from_torchvision(name: str) -> Source:
    """Return a data set of torchvision as its class gives it by default, downloaded once into the cache folder."""
    from torchvision import datasets  # noqa: TID251 (torchvision:NAME)

    titles = {title.lower(): title for title in datasets.__all__}
    if name.lower() not in titles:
        raise DataError(f"unknown data set torchvision:{one_line(name)}: torchvision:CIFAR10 is one, for example")
    title = titles[name.lower()]
    cache = cache_folder(title)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        dataset = getattr(datasets, title)(str(cache), download=True)
    except Exception as error:  # the classes raise many kinds
        raise DataError(
            f"torchvision:{title} cannot be downloaded into {one_line(str(cache))}: {one_line(str(error))}. Check the"
            " connection and type the same again, or make the data set in Python: DeepCluster().fit(DATASET)"
        ) from error
    return from_dataset(dataset, title, f"torchvision:{title}", _class_names(dataset))


def cache_folder(name: str) -> Path:
    """Return the folder that a torchvision data set is downloaded to."""
    return Path(os.environ.get("DEEPCLUSTER_CACHE_DIR") or "~/.cache/deepcluster").expanduser() / name


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return the classes of the images, by name if there are names; None if an image may have several."""
    values = next((getattr(dataset, name) for name in ("targets", "labels", "_labels") if hasattr(dataset, name)), ())
    if np.ndim(values) != 1 or len(values) != len(dataset):
        return None
    names = getattr(dataset, "classes", None)
    return tuple(str(names[int(value)] if names else value) for value in np.asarray(values).tolist())
