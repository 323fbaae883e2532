"""RAW files of cameras: the preview that the camera has put into a file. The data of the sensor are never decoded."""

import os
import re
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image

# First bytes of CR2, CR3, CRW, RAF, ORF, RW2 and X3F. The others (DNG, NEF, ARW, ...) are TIFF files whose tags tell,
# or which Pillow cannot read.
RAW_START = re.compile(
    rb"II\*\0....CR|....ftypcrx |II\x1a\0....HEAPCCDR|FUJIFILMCCD-RAW|II(RO|RS|U\0)|MMOR|FOVb", re.DOTALL
)
TIFF_START = (b"II*\0", b"MM\0*")
DNG_VERSION = 50706
SUBFILE_TYPE = 254  # 1: a small version of another image in the file
SUB_IFDS = 330
# A preview may claim the whole file, and is in memory three times while LibRaw reads it.
MAX_RAW_BYTES = 350_000_000  # more than a shot of 150 megapixels without compression
MAX_PREVIEW_BYTES = 64_000_000  # more than a JPEG of MAX_PIXELS in high quality; larger files are read one at a time
PREVIEW_END = 1 << 20  # last bytes of a preview, which must be in its file: LibRaw reads at most 16 kB beyond the end
RAW_ORIENTATION = {3: 3, 5: 8, 6: 6}  # LibRaw's flip as EXIF has it


class NoPreview(ValueError):
    """A RAW file without a usable preview; the message is the reason, and what to do."""


@cache
def reads_raw() -> bool:
    """Tell if the previews of RAW files can be read: the extra [raw] is installed."""
    return find_spec("rawpy") is not None


def is_raw(image: Image.Image) -> bool:
    """Tell if an open TIFF is a RAW file; Pillow might show only its thumbnail."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return DNG_VERSION in tags or (tags.get(SUBFILE_TYPE) == 1 and SUB_IFDS in tags)


def preview(file: BinaryIO, alone: AbstractContextManager[object]) -> Image.Image:
    """Return the largest preview in a RAW file, open; read a large file inside ``alone``. NoPreview if it has none."""
    if not reads_raw():
        raise NoPreview(", because rawpy is missing: pip install rawpy, or export it as JPEG")
    import rawpy

    size = file.seek(0, os.SEEK_END)
    if size > MAX_RAW_BYTES:
        raise NoPreview(f", because it has more than {MAX_RAW_BYTES:,} bytes: export it as JPEG")
    file.seek(0)
    name = getattr(file, "name", None)
    # By its path a file is read in parts; a stream is read whole. rawpy takes no name that is not UTF-8.
    by_name = isinstance(name, str | Path) and str(name).isprintable()
    with alone if size > MAX_PREVIEW_BYTES else nullcontext():
        try:
            with rawpy.imread(str(name) if by_name else file) as raw:
                thumb = raw.extract_thumb()
                flip = raw.sizes.flip
                data: Any = thumb.data
        except (rawpy.LibRawError, rawpy.NotSupportedError) as error:
            raise NoPreview(f" ({type(error).__name__}): export it as JPEG") from None
        if memoryview(data).nbytes > MAX_PREVIEW_BYTES:
            raise NoPreview(f", because it has more than {MAX_PREVIEW_BYTES:,} bytes: export it as JPEG")
    is_jpeg = thumb.format == rawpy.ThumbFormat.JPEG
    # If the file ends within its preview, LibRaw completes it with memory of this process: pixels of other images.
    # The search begins at the first table of a JPEG, because LibRaw may change the header.
    unchanged = data[data.find(b"\xff\xdb") :] if is_jpeg else data.tobytes()
    if not _contains(file, unchanged[-PREVIEW_END:]):
        raise NoPreview(", because it is not whole in the file: copy it again, or export it as JPEG")
    if is_jpeg:  # with its orientation, which LibRaw adds
        image: Image.Image = Image.open(BytesIO(data), formats=("JPEG",))
    else:
        image = Image.fromarray(data)
        image.getexif()[ExifTags.Base.Orientation] = RAW_ORIENTATION.get(flip, 1)
    return image


def _contains(file: BinaryIO, part: bytes) -> bool:
    """Tell if a file contains these bytes, without reading it whole."""
    file.seek(0)
    before = b""
    while block := file.read(1 << 20):
        if part in before + block:
            return True
        before = block[-len(part) :]
    return False
