"""Damaged images: `decode` gives an RGB image of bounded size, or says Undecodable."""

from io import BytesIO

import numpy as np

from fuzz.harness import instrumented, main

with instrumented(__name__):
    from PIL import Image

    from deepcluster.images import decode as decoding
    from deepcluster.images.decode import FORMATS, Undecodable, decode, pillow_limits

MAX_PIXELS = 1 << 22


def seeds() -> list[bytes]:
    """A small image in every format, and in some more modes."""
    random = np.random.default_rng(1)
    colour = Image.fromarray(random.integers(0, 256, (12, 20, 3), dtype=np.uint8))
    made = [(colour, name) for name in FORMATS]
    made += [(colour.convert("P"), "PNG"), (colour.convert("RGBA"), "PNG"), (colour.convert("CMYK"), "TIFF")]
    made += [(colour.convert("I;16"), "PNG"), (colour.convert("F"), "TIFF"), (colour.convert("CMYK"), "JPEG")]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for image, name in made:
        file = BytesIO()
        image.save(file, name, **({"exif": exif} if name in ("JPEG", "PNG", "WEBP") else {}))
        files.append(file.getvalue())
    return files


def one(data: bytes) -> bool:
    try:
        image = decode(BytesIO(data), size=8)
    except Undecodable as error:
        assert str(error).isprintable()
        return False
    assert image.mode == "RGB" and 0 < image.width * image.height <= decoding.MAX_PIXELS
    assert image.info.keys() == {"short_side"}
    return True


if __name__ == "__main__":
    decoding.MAX_PIXELS = MAX_PIXELS
    with pillow_limits():
        main("decode", one, seeds())
