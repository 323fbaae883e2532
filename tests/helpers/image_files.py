"""Image files by hand: one for every colour mode in every format that keeps it, with the right pixels."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, PngImagePlugin, TiffImagePlugin

from deepcluster.images import Source
from deepcluster.images.source import Numbered

LOSSLESS = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 100, "subsampling": 0}}


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, data: bytes, *, before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
BROWN = (200, 100, 50)


def grey(*values: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((value, value, value) for value in values)


# By mode: the values of four squares, what they are as RGB, how much a lossy conversion may be off, and the formats
# that keep the mode (WebP and GIF keep the colours, not the mode).
MODES: dict[str, tuple[tuple[object, ...], tuple[tuple[int, int, int], ...], int, str]] = {
    "1": ((0, 255, 255, 0), grey(0, 255, 255, 0), 0, "JPEG PNG TIFF WEBP GIF BMP PPM"),
    "L": ((0, 76, 150, 255), grey(0, 76, 150, 255), 0, "JPEG PNG TIFF WEBP GIF BMP PPM"),
    "LA": (((9, 0), (0, 128), (76, 255), (255, 255)), grey(255, 127, 76, 255), 0, "PNG TIFF WEBP"),
    "P": ((0, 1, 2, 3), (RED, GREEN, BLUE, BROWN), 0, "PNG TIFF WEBP GIF BMP"),
    "RGB": ((RED, GREEN, BLUE, BROWN), (RED, GREEN, BLUE, BROWN), 0, "JPEG PNG TIFF WEBP GIF BMP PPM"),
    "RGBA": (
        ((9, 9, 9, 0), (0, 0, 0, 128), (*RED, 255), (*BLUE, 255)),
        (WHITE, (127, 127, 127), RED, BLUE), 0, "PNG TIFF WEBP",
    ),
    "CMYK": (
        ((0, 255, 255, 0), (255, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)),
        (RED, GREEN, BLACK, WHITE), 0, "JPEG TIFF",
    ),
    "YCbCr": (
        ((76, 85, 255), (29, 255, 107), (128, 128, 128), (255, 128, 128)),
        (RED, BLUE, *grey(128, 255)), 2, "JPEG TIFF",
    ),
    "I;16": ((0, 76 * 256, 150 * 257, 65535), grey(0, 76, 150, 255), 0, "PNG TIFF PPM"),
    "I;16B": ((0, 76 * 256, 150 * 257, 65535), grey(0, 76, 150, 255), 0, "PNG TIFF"),
    "I": ((0, 76 * 256, 150 * 257, 65535), grey(0, 76, 150, 255), 0, "TIFF PPM"),
    "LAB": (((0, 128, 128), (255, 128, 128), (138, 209, 198), (138, 166, 174)), (BLACK, WHITE, RED, BROWN), 5, "TIFF"),
}  # fmt: skip
SIDE = 16


def four_squares(mode: str, values: tuple[object, ...]) -> Image.Image:
    if mode.startswith("I"):
        kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
        pixels = np.array(values, kind).reshape(2, 2).repeat(SIDE, 0).repeat(SIDE, 1)
        return Image.frombytes(mode, (2 * SIDE, 2 * SIDE), pixels.tobytes())
    image = Image.new(mode, (2 * SIDE, 2 * SIDE))
    if mode == "P":
        image.putpalette([*RED, *GREEN, *BLUE, 200, 100, 50])
    for i, value in enumerate(values):
        x, y = i % 2 * SIDE, i // 2 * SIDE
        image.paste(value, (x, y, x + SIDE, y + SIDE))  # type: ignore[arg-type]
    return image


def golden(colours: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    return np.array(colours, int).reshape(2, 2, 3).repeat(SIDE, 0).repeat(SIDE, 1)


def files_of_all_modes() -> dict[str, tuple[bytes, np.ndarray, int]]:
    """By name: the bytes, the right pixels, and how much a lossy format may be off."""
    made = {}
    for mode, (values, colours, off, kinds) in MODES.items():
        for kind in kinds.split():
            if (mode, kind) == ("YCbCr", "TIFF") and PIL.__version__ < "13":
                continue  # which it does not read
            data = stored(four_squares(mode, values), kind, **LOSSLESS.get(kind, {}))
            made[f"{mode}.{kind}"] = (data, golden(colours), max(off, 3 if kind == "JPEG" else 0))
    palette = four_squares("P", (0, 1, 2, 3))
    for kind, transparency in (("PNG", b"\xff\0\x80\xff"), ("PNG", 1), ("GIF", 1)):
        colours = (RED, WHITE, (127, 127, 255) if isinstance(transparency, bytes) else BLUE, BROWN)
        data = stored(palette, kind, transparency=transparency)
        made[f"P+{type(transparency).__name__}.{kind}"] = (data, golden(colours), 0)
    colours = (RED, GREEN, BLUE, BROWN)
    upright = golden(colours).astype(np.uint8)
    for orientation, turned in {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }.items():  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
            data = stored(Image.fromarray(np.ascontiguousarray(turned)), kind, exif=exif, **LOSSLESS.get(kind, {}))
            made[f"turned {orientation}.{kind}"] = (data, golden(colours), 3 if kind == "JPEG" else 0)
    return made


# ---- images that tell more than their pixels ------------------------------------------------------------------------

CANARY = b"CANARY"


def talkative() -> dict[str, bytes]:
    """By name: files with CANARY wherever a format has room for text."""
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    text, tags, exif = PngImagePlugin.PngInfo(), TiffImagePlugin.ImageFileDirectory_v2(), Image.Exif()
    text.add_text("CANARY", "CANARY")
    exif[0x010F], exif[0x0112], tags[270] = "CANARY", 6, "CANARY"
    exif.get_ifd(0x8825)[29] = "CANARY"  # of the place
    files = {
        "turned.jpg": stored(image, "JPEG", exif=exif, comment="CANARY"),
        "a.png": stored(image.convert("RGBA"), "PNG", pnginfo=text, exif=exif, icc_profile=CANARY),
        "a.webp": stored(image, "WEBP", lossless=True, exif=exif.tobytes(), xmp=CANARY),
        "a.gif": stored(image.convert("P"), "GIF", comment=CANARY),
        "a.tif": stored(image, "TIFF", tiffinfo=tags),
        "a.ppm": b"P6\n# CANARY\n1 1\n255\nabc",
    }
    assert all(CANARY in data for data in files.values())
    return files


# By kind: the picture of ``waves(64, 96)``, encoded by pillow-heif (our decoder cannot): plain, turned by a phone that
# lay on its side, fully transparent.
HEIC = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "heic").iterdir())}


def save(file: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (4, 3), kind: str = "PNG") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        Image.new("RGB", size, colour).save(stream, kind)
    return file


def colour(source: Source, i: int) -> object:
    image = source.read(i)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


Member = tuple[str | tarfile.TarInfo, bytes]


def coloured_png(level: int = 0, side: int = 4, height: int = 5) -> bytes:
    return stored(Image.new("RGB", (side, height), (level, 0, 255 - level)), "PNG")


def save_tar(file: Path, members: Iterable[Member], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as tar:
        for what, content in members:
            member = tarfile.TarInfo(what) if isinstance(what, str) else what
            if member.type == tarfile.REGTYPE:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


# ---- RAW files and sources by hand ---

SENSOR = 32  # px, each side
PREVIEW = 2000 + 2 * SENSOR**2  # the preview's place in its file, at the end
NUMBERS = {1: "B", 3: "H", 4: "L", 10: "l"}  # of numbers in a TIFF
IDENTITY = [number for row in np.eye(3, dtype=int).tolist() for number in (row[0], 1, row[1], 1, row[2], 1)]


def directory(at: int, tags: dict[int, tuple[int, list[int]]]) -> bytes:
    """A directory of a TIFF that begins at ``at``, and its values behind it."""
    entries, values = b"", b""
    behind = at + 6 + 12 * len(tags)
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"<{len(numbers)}{NUMBERS[kind]}", *numbers)
        count = len(numbers) // (2 if kind == 10 else 1)  # of rationals
        cell = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<L", behind + len(values))
        values += data if len(data) > 4 else b""
        entries += struct.pack("<HHL", tag, kind, count) + cell
    return struct.pack("<H", len(tags)) + entries + bytes(4) + values


def dng(preview: Image.Image, *, jpeg: bool = True, orientation: int = 1) -> bytes:
    """A DNG with a small sensor and a preview, a JPEG or plain colours."""
    data = stored(preview, "JPEG", quality=95) if jpeg else preview.tobytes()
    sensor = bytes(2 * SENSOR * SENSOR)
    about = {
        254: (4, [1]), 256: (4, [preview.width]), 257: (4, [preview.height]), 258: (3, [8, 8, 8]),
        259: (3, [7 if jpeg else 1]), 262: (3, [6 if jpeg else 2]), 271: (1, [*b"Made\0"]), 273: (4, [PREVIEW]),
        274: (3, [orientation]), 277: (3, [3]), 278: (4, [preview.height]), 279: (4, [len(data)]), 330: (4, [1000]),
        50706: (1, [1, 4, 0, 0]), 50721: (10, IDENTITY),
    }  # fmt: skip
    sensor_tags = {
        254: (4, [0]), 256: (4, [SENSOR]), 257: (4, [SENSOR]), 258: (3, [16]), 259: (3, [1]), 262: (3, [32803]),
        273: (4, [2000]), 277: (3, [1]), 278: (4, [SENSOR]), 279: (4, [len(sensor)]), 33421: (3, [2, 2]),
        33422: (1, [0, 1, 1, 2]),
    }  # fmt: skip
    head = (b"II*\0" + struct.pack("<L", 8) + directory(8, about)).ljust(1000, b"\0")
    return (head + directory(1000, sensor_tags)).ljust(2000, b"\0") + sensor + data


@dataclass(frozen=True)
class Made(Numbered):
    image: Callable[[int], Image.Image]

    def content(self, i: int) -> Image.Image:
        return self.image(i)


def source_of(read: Callable[[int], Image.Image], count: int, skipped: tuple[tuple[str, str], ...] = ()) -> Source:
    paths = tuple(f"{i:05}" for i in range(count))
    return Source("test", "/place", paths, Made("/place", read), None, skipped)
