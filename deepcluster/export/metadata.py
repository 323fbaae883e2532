"""JPEG files without metadata: EXIF (time, place, camera), XMP, IPTC, comments, thumbnails.

The pixels are not compressed again: segments of the file are left out. The ICC profile stays, and the orientation of a
picture that is not upright. Files of other formats are decoded and written as PNG.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from deepcluster.images.decode import orientation

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png"}  # of a copy without metadata; others get .png
MAX_BYTES = 1 << 30  # of a file that is read at once
_JFIF = b"JFIF\0"
_ICC = b"ICC_PROFILE\0"
_ADOBE = b"Adobe"


class UnknownFormat(ValueError):
    """A file that is no JPEG, or a damaged one."""


def stripped(file: Path) -> bytes:
    """Return the bytes of a JPEG file without metadata. Raises UnknownFormat, or OSError if it cannot be read."""
    data = file.read_bytes() if file.stat().st_size <= MAX_BYTES else b""
    if not data.startswith(b"\xff\xd8"):
        raise UnknownFormat("no JPEG")
    try:
        return b"".join(_segments(data, orientation(data)))
    except (IndexError, struct.error) as error:
        raise UnknownFormat("it ends too early") from error


def _segments(data: bytes, turned: int) -> Iterator[bytes]:
    yield data[:2]
    if turned != 1:  # a segment of EXIF with the orientation and nothing else
        tags = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", turned, 0) + bytes(4)
        yield b"\xff\xe1" + struct.pack(">H", 8 + len(tags)) + b"Exif\0\0" + tags
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # a marker may have any number of these in front
            at += 1
        if data[at] != 0xFF:
            raise UnknownFormat("no marker at the beginning of a segment")
        marker = data[at + 1]
        if marker == 0xD9:  # bytes behind the end are not part of the picture
            yield data[at : at + 2]
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        if length < 2 or len(segment) < 2 + length:
            raise UnknownFormat("it ends too early")
        at += len(segment)
        yield _without_metadata(marker, segment)
        if marker == 0xDA:
            end = _end_of_scan(data, at)
            yield data[at:end]
            at = end


def _without_metadata(marker: int, segment: bytes) -> bytes:
    content = segment[4:]
    if marker == 0xE0 and content.startswith(_JFIF):  # without its thumbnail
        return segment[:2] + b"\0\x10" + content[:12] + b"\0\0"
    if (marker == 0xE2 and content.startswith(_ICC)) or (marker == 0xEE and content.startswith(_ADOBE)):
        return segment
    return b"" if 0xE0 <= marker <= 0xEF or marker == 0xFE else segment


def _end_of_scan(data: bytes, at: int) -> int:
    """Return the position of the next marker that does not belong to the compressed pixels."""
    while (at := data.find(b"\xff", at)) >= 0:
        if data[at + 1] not in (0, 0xFF, *range(0xD0, 0xD8)):
            return at
        at += 1 if data[at + 1] == 0xFF else 2
    raise UnknownFormat("it has no end")
