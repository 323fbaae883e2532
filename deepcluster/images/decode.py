"""Decode the bytes of a file to upright RGB pixels. It is the only decoder, so that every step sees the same pixels."""

import ctypes  # noqa: TID251 (libtiff's printing)
import errno
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging
from PIL import features as pillow
from PIL.JpegImagePlugin import JpegImageFile

from deepcluster.images.raw import RAW_START, TIFF_START, NoPreview, is_raw, preview, reads_raw
from deepcluster.texts import one_line

# Without EPS (it starts Ghostscript) and without rare, seldom tested formats. See also accepted_formats().
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Suffixes of images, if the name has to decide. (Otherwise a file of another name may still be one.)
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif"),
}
#: Formats of your own: functions that open a file as a Pillow image, by the suffix of the file in small letters.
decoders: dict[str, Callable[[Path], Image.Image]] = {}
MAX_PIXELS = 89_478_485  # decoded; Pillow's default
# Smaller files are read at once: the 40 small reads of a JPEG header take a fifth of the time of a small image, and
# may hand the interpreter to another thread. A film among the images is not read into memory.
SMALL_FILE = 1 << 20  # bytes

GREY_OF_32_BITS = "grey values of 32 bits and of unknown range: save it with 8 or 16 bits"
# Decode images that need more bytes one at a time. A pixel takes 4 bytes decoded, 4 in RGB and 4 turned (or with an
# alpha channel before that); the decoders of WebP, AVIF and HEIF have a copy of the first.
BYTES_AT_ONCE = 288_000_000
BYTES_PER_PIXEL = 16
DECODED_BYTES = 4
COEFFICIENT_BYTES = 2  # of a number of a pixel, in the memory of libjpeg
_ALONE = threading.Lock()

T = TypeVar("T")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SYSTEM_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EISDIR: "is a folder",
    errno.EPERM: "permission denied",
    errno.ELOOP: "a symbolic link that leads to itself",
}


# Categories under which unusable files are counted.
OTHER, DAMAGED, EMPTY, RAW, LARGE, NO_FILE = "other file", "damaged", "empty", "RAW", "too large", "no plain file"


class Reason(str):
    """The reason why a file is not used, in one line without the path, and the category under which it is counted."""

    category: str

    def __new__(cls, text: str, category: str = "") -> "Reason":
        """``category``: By default the text up to the first colon."""
        reason = super().__new__(cls, text)
        reason.category = category or text.partition(":")[0]
        return reason


class Undecodable(ValueError):
    """A file that is not a usable image; the message is the reason, in one line, without the path."""

    def __init__(self, reason: str, category: str = ""):
        super().__init__(reason)
        self.reason = Reason(reason, category or getattr(reason, "category", ""))


@cache
def accepted_formats() -> tuple[str, ...]:
    """Return ``FORMATS`` and HEIF (iPhones' HEIC), and AVIF if Pillow was built with it."""
    import pi_heif

    # No thumbnail of the file: it could show another picture. One thread, because several threads read files.
    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return (*FORMATS, "HEIF", *(("AVIF",) if pillow.check("avif") else ()))


def decode(file: Path | BinaryIO, *, size: int | None = None) -> Image.Image:
    """Return the first frame of an image file: mode RGB, turned by its EXIF orientation, without metadata.

    Its ``info`` has nothing but ``short_side``, the shorter side in px before it was reduced to ``size``.

    The bytes decide about the format (one of ``accepted_formats()``, or RAW), not the suffix, unless ``decoders`` has
    the suffix of the file. Of a RAW file the largest preview is the image.

    | mode | becomes |
    |---|---|
    | 1, L, P, RGB, CMYK, YCCK, YCbCr, HSV, LAB | Pillow's ``convert("RGB")`` |
    | alpha: LA, PA, RGBA, or a transparent colour (tRNS) in any mode | composed over white |
    | 16 bits: I;16 in either byte order, I with values in 0..65535 | the upper 8 bits |

    Other grey values of 32 bits are refused, because their range is unknown. ICC profiles are ignored.

    Args:
        file: A path, or a seekable stream, which is read from its start.
        size: The shorter side, in px, that the caller will scale the image to. A JPEG is then decoded at 1/2, 1/4 or
            1/8 of its size, the smallest that leaves a shorter side of 1.5 ``size`` (rounded down) or more. Of other
            formats, only images of more than ``BYTES_AT_ONCE`` (18 million pixels) are reduced as much, to means of
            squares.

    Raises:
        Undecodable: It is not an image, is damaged, or has too many pixels, which the header tells before anything is
            decoded: more than ``MAX_PIXELS``, for a JPEG after the reduction. (If ``PIL.Image.MAX_IMAGE_PIXELS`` is
            lower, call it in ``pillow_limits()``.)
        OSError: The file cannot be read.
    """
    return _examine(file, lambda image: upright(image, size))


def sides(file: Path | BinaryIO) -> tuple[int, int]:
    """Return width and height in px from the header of an image file alone, before a turn by EXIF.

    Raises the errors of ``decode``.
    """
    return _examine(file, lambda image: image.size)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB, by the table of ``decode``; an RGB image stays the same object."""
    if image.mode == "F":
        raise Undecodable(GREY_OF_32_BITS)
    if image.mode.startswith("I"):
        return _upper_bits(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    direct = image.convert("LA") if image.mode == "La" else image  # Pillow has no way from La to RGBA
    colour = direct if direct.mode == "RGBA" else direct.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(colour, mask=colour)
    return white


def _upper_bits(image: Image.Image) -> Image.Image:
    """Return the upper 8 of 16 bits as RGB, and a transparent grey as white."""
    values = np.array(image)
    transparent = image.info.get("transparency")
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise Undecodable(GREY_OF_32_BITS)
    clear = values == transparent if isinstance(transparent, int) else False
    values >>= 8  # in place, so that a large image is not in memory once more
    grey = values.astype(np.uint8)
    grey[clear] = 255
    return Image.fromarray(grey).convert("RGB")


@contextmanager
def pillow_limits() -> Iterator[None]:
    """Keep warnings of Pillow and libtiff's errors off the terminal, and leave the limit of pixels to ``decode``.

    This changes state of the whole process (``warnings.catch_warnings`` is not thread-safe): put it around the loop
    over images, in the thread that starts the others.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    quiet = logging.CRITICAL + 1
    set_level = logger.setLevel if level != quiet else lambda _: None  # it takes .5 ms, so not for every image
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow raises the errors that libtiff prints. (If Pillow's libtiff exports no names, it goes on printing.)
    set_printer: Any = getattr(ctypes.CDLL(_imaging.__file__), "TIFFSetErrorHandler", lambda _: None)
    set_printer.restype = ctypes.c_void_p
    printer = set_printer(None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        set_level(quiet)
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS * BYTES_PER_PIXEL // COEFFICIENT_BYTES  # of a grey JPEG
        try:
            yield
        finally:
            set_level(level)
            set_printer(ctypes.c_void_p(printer))
            Image.MAX_IMAGE_PIXELS = limit


def explain(error: Exception) -> Reason:
    """Return the reason why a file cannot be used: one printable line without its path."""
    if isinstance(error, OSError) and error.errno is not None:
        return Reason(_SYSTEM_REASONS.get(error.errno) or os.strerror(error.errno).lower())
    words = one_line(str(error))
    name = type(error).__name__
    if words and isinstance(error, OSError | ValueError | SyntaxError):
        return Reason(words, error.reason.category if isinstance(error, Undecodable) else "")
    return Reason(f"{name}: {words}" if words else name)


def not_a_file(mode: int) -> Reason:
    """Return the kind of file that ``st_mode`` describes, as the reason not to open it."""
    types = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a symbolic link"}
    return Reason(f"{types.get(stat.S_IFMT(mode), 'a device')}, not a file", NO_FILE)


def _examine(file: Path | BinaryIO, look: Callable[[Image.Image], T]) -> T:
    """Return ``look(image)``, for which only the header is read, with the errors of ``decode``."""
    if isinstance(file, Path):
        status = file.stat()
        kind = status.st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # opening a FIFO would wait forever; a folder fails below
            raise Undecodable(not_a_file(kind))
        if stat.S_ISREG(kind) and not status.st_size:  # not opened, see check_file
            raise Undecodable("empty file", EMPTY)
        if file.suffix.lower() not in decoders:
            with file.open("rb") if status.st_size > SMALL_FILE else BytesIO(file.read_bytes()) as stream:
                return _examine(stream, look)
    try:
        if isinstance(file, Path):
            with decoders[file.suffix.lower()](file) as image:
                _check_size(image.width * image.height)
                return look(image)
        return _by_content(file, look)
    except (MemoryError, Undecodable):
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        _check_size(int(pixels[0]) if pixels else MAX_PIXELS + 1)
        raise Undecodable(explain(error)) from error  # the caller's PIL.Image.MAX_IMAGE_PIXELS is lower than ours
    except Exception as error:  # damaged files raise all kinds: struct.error, SyntaxError, RecursionError, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the image
        raise Undecodable(f"cannot be decoded: {explain(error)}", DAMAGED) from error


def _by_content(file: BinaryIO, look: Callable[[Image.Image], T]) -> T:
    file.seek(0)
    start = file.read(64)
    if not start:
        raise Undecodable("empty file", EMPTY)
    if RAW_START.match(start):
        return _of_preview(file, look)
    try:
        with Image.open(file, formats=accepted_formats()) as image:
            if not is_raw(image):
                if not isinstance(image, JpegImageFile):  # which may be decoded smaller
                    _check_size(image.width * image.height)
                return look(image)
    except UnidentifiedImageError:
        if not (start.startswith(TIFF_START) and reads_raw()):
            formats = ", ".join(accepted_formats())
            raise Undecodable(f"not an image in an accepted format ({formats})", OTHER) from None
    return _of_preview(file, look)


def _of_preview(file: BinaryIO, look: Callable[[Image.Image], T]) -> T:
    try:
        image = preview(file, _ALONE)
    except NoPreview as error:
        raise Undecodable(f"a RAW image whose preview cannot be read{error}", RAW) from None
    with image:
        return look(image)


def upright(image: Image.Image, size: int | None = None) -> Image.Image:
    """Return the pixels of an open image: decoded, in RGB, turned. ``size`` as in :func:`decode`."""
    whole = image.width * image.height
    side = min(image.size)
    least = 0
    if size is not None:
        least = max(1, size * 3 // 2)
        # Why 1.5: on 600 photographs of 224 px, then resized to 45..73 px, pixels differ from a full decode by 0.7 to
        # 1.4 grey levels (mean, beside a shift of up to half a reduced pixel); Lanczos instead of bicubic makes 1.3.
        # With a factor of 1 it is up to 2.7; with 2 most photographs are not reduced.
        image.draft(None, (least, least))
    pixels = image.width * image.height
    taken = pixels * BYTES_PER_PIXEL
    # A JPEG of several scans, such as a progressive one, is whole in memory before it is reduced; and any may be one.
    unreduced = whole * COEFFICIENT_BYTES * getattr(image, "layers", 0) + pixels * DECODED_BYTES
    if max(taken, unreduced) > MAX_PIXELS * BYTES_PER_PIXEL:
        raise _too_large(whole)
    most = max(taken, unreduced) if "progressive" in image.info or whole > MAX_PIXELS else taken
    with _ALONE if most > BYTES_AT_ONCE else nullcontext():
        image.load()
        _check_size(image.width * image.height)  # a HEIF file may declare fewer pixels than it holds
        turn = _UPRIGHT.get(_orientation(image))
        factor = max(1, min(image.size) // least) if size is not None and taken > BYTES_AT_ONCE else 1
        rgb = as_rgb(image)
        if factor > 1:
            rgb = rgb.reduce(factor)
        if turn is not None:
            rgb = rgb.transpose(turn)
        elif rgb is image:
            rgb = rgb.copy()
    rgb.info = {"short_side": side}  # no more, so that a thumbnail cannot carry comments or a location
    return rgb


def _check_size(pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise _too_large(pixels)


def _too_large(pixels: int) -> Undecodable:
    way_out = "save it smaller, or as a JPEG, which may have more than twice as many"
    return Undecodable(f"too many pixels: {pixels}, more than the limit of {MAX_PIXELS}: {way_out}", LARGE)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1..8; 1 also if the metadata is damaged, because the pixels may still be good."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
