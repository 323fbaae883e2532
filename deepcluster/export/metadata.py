"""Image files without metadata: EXIF (time, place, camera), XMP, IPTC, comments, thumbnails.

The pixels are not touched: parts of the file are left out. What the picture needs to look the same stays: ICC profile
and gamma, transparency, animation, and the orientation if it is not upright.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from deepcluster.images.decode import orientation

# Formats whose parts can be left out; files of others (TIFF, BMP, PPM, ...) are written as PNG.
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif"}
MAX_BYTES = 1 << 30  # bytes of a file that is read at once
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD"),
    *(b"pHYs", b"acTL", b"fcTL", b"fdAT"),
}
_WEBP_KEPT = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
_JFIF, _ICC, _ADOBE = b"JFIF\0", b"ICC_PROFILE\0", b"Adobe"
_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


class UnknownFormat(ValueError):
    """A file whose parts cannot be told apart."""


def stripped(file: Path) -> bytes:
    """The bytes of an image file without metadata. Raises UnknownFormat, or OSError if it cannot be read."""
    if file.stat().st_size > MAX_BYTES:
        raise UnknownFormat("too large")
    data = file.read_bytes()
    turned = orientation(data)
    try:
        return b"".join(_parts_of(data)(data, turned))
    except (IndexError, struct.error) as error:
        raise UnknownFormat("it ends too early") from error


def _parts_of(data: bytes) -> Callable[[bytes, int], Iterator[bytes]]:
    if data.startswith(b"\xff\xd8"):
        return _jpeg
    if data.startswith(_PNG):
        return _png
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif
    raise UnknownFormat("a format whose parts are not known")


def _exif(turned: int) -> bytes:
    """EXIF with the orientation and nothing else."""
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", turned, 0) + bytes(4)


def _jpeg(data: bytes, turned: int) -> Iterator[bytes]:
    yield data[:2]
    if turned != 1:
        exif = b"Exif\0\0" + _exif(turned)
        yield b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # a marker may have any number of these in front
            at += 1
        if data[at] != 0xFF:
            raise UnknownFormat("no marker where one must be")
        marker = data[at + 1]
        if marker == 0xD9:  # what follows the end is not part of the picture
            yield data[at : at + 2]
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        if length < 2 or len(segment) < 2 + length:
            raise UnknownFormat("it ends too early")
        at += len(segment)
        yield _kept_segment(marker, segment)
        if marker == 0xDA:
            end = _end_of_scan(data, at)
            yield data[at:end]
            at = end


def _kept_segment(marker: int, segment: bytes) -> bytes:
    content = segment[4:]
    if marker == 0xE0 and content.startswith(_JFIF):  # without its thumbnail
        return segment[:2] + b"\0\x10" + content[:12] + b"\0\0"
    if (marker == 0xE2 and content.startswith(_ICC)) or (marker == 0xEE and content.startswith(_ADOBE)):
        return segment
    return b"" if 0xE0 <= marker <= 0xEF or marker == 0xFE else segment


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the next marker is that does not belong to the compressed pixels."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise UnknownFormat("it has no end")
        if data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 2
        elif data[at + 1] == 0xFF:
            at += 1
        else:
            return at


def _png(data: bytes, turned: int) -> Iterator[bytes]:
    yield _PNG
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            raise UnknownFormat("it ends too early")
        if kind in _PNG_KEPT:
            yield data[at:end]
        if kind == b"IHDR" and turned != 1:
            exif = _exif(turned)
            yield struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        at = end


def _webp(data: bytes, turned: int) -> Iterator[bytes]:
    chunks, at = [], 12
    end = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    while at < end:
        kind, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        content = data[at + 8 : at + 8 + length]
        if len(content) < length:
            raise UnknownFormat("it ends too early")
        at += 8 + length + length % 2
        if kind == b"VP8X":  # which says what else there is: EXIF (8) and XMP (4)
            content = bytes([(content[0] & ~0x0C) | (8 if turned != 1 else 0)]) + content[1:]
        if kind in _WEBP_KEPT:
            chunks.append((kind, content))
    if turned != 1:
        if not chunks or chunks[0][0] != b"VP8X":
            raise UnknownFormat("it has EXIF without a place for it")
        chunks.append((b"EXIF", _exif(turned)))
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in chunks
    )
    yield b"RIFF" + struct.pack("<I", len(body)) + body


def _gif(data: bytes, turned: int) -> Iterator[bytes]:
    at = 13 + _palette_size(data[10])
    yield data[:at]
    while (sign := data[at]) != 0x3B:
        start = at
        if sign == 0x2C:
            at = _end_of_blocks(data, at + 11 + _palette_size(data[at + 9]))
            yield data[start:at]
        elif sign == 0x21:
            at = _end_of_blocks(data, at + 2)
            control = data[start + 1] == 0xF9  # duration and transparency of a frame
            if control or (data[start + 1] == 0xFF and data[start + 3 : start + 14] in _LOOPS):
                yield data[start:at]
        else:
            raise UnknownFormat("no block where one must be")
    yield b";"


def _palette_size(flags: int) -> int:
    """Bytes of the colour table that follows."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_blocks(data: bytes, at: int) -> int:
    while length := data[at]:
        at += 1 + length
    return at + 1
