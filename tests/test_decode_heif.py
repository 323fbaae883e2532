"""AVIF and HEIF: what phones save. HEIF needs an extra; where it is missing, the reason for skipping says so."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL import features as pillow

from deepcluster.images import decode as decoding
from deepcluster.images import find
from deepcluster.images.decode import Undecodable, accepted_formats, decode, pillow_limits, short_side
from deepcluster.images.store import read_once
from tests.helpers.image_files import stored

FTYP = b"\0\0\0\x18ftyp"


def squares() -> Image.Image:
    """Red, green, blue and white quarters: 64 x 96."""
    pixels = np.zeros((96, 64, 3), np.uint8)
    pixels[:48, :32], pixels[:48, 32:], pixels[48:, :32], pixels[48:, 32:] = (
        (220, 20, 20), (20, 220, 20), (20, 20, 220), (240, 240, 240),
    )  # fmt: skip
    return Image.fromarray(pixels)


def kinds() -> list[str]:
    return [kind for kind in ("AVIF", "HEIF") if kind in accepted_formats()]


def saved(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    return io.BytesIO(stored(image, kind, quality=95, **options))


def close(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and np.abs(np.asarray(image, int) - np.asarray(other, int)).mean() < 6


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "accepted_formats", lambda: decoding.FORMATS)


def why_not(data: bytes) -> str:
    with pytest.raises(Undecodable) as error, pillow_limits():
        decode(io.BytesIO(data))
    return str(error.value)


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize("start", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heix", b"heim\0\0\0\0"])
def test_the_reason_names_the_extra_and_the_command(start: bytes) -> None:
    assert why_not(FTYP + start + bytes(99)) == "a HEIC or HEIF image: pip install 'deepcluster[heif]' to use it"


@pytest.mark.usefixtures("without_heif")
def test_the_reason_names_a_newer_pillow_for_avif() -> None:
    for start in (b"avif\0\0\0\0", b"mif1\0\0\0\0mif1avif"):
        assert why_not(FTYP + start + bytes(99)).endswith("pip install --upgrade pillow")


@pytest.mark.parametrize("start", [b"isom\0\0\x02\0isomiso2avc1mp41", b"qt  \0\0\0\0qt  ", b"mp42\0\0\0\0"])
def test_a_film_is_not_taken_for_an_image(start: bytes) -> None:
    assert why_not(FTYP + start + bytes(99)).startswith("not an image in an accepted format (JPEG, PNG")


@pytest.mark.usefixtures("without_heif")
def test_a_skipped_file_in_a_folder_tells_it_too(tmp_path: Path) -> None:
    squares().save(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(FTYP + b"heic\0\0\0\0mif1heic" + bytes(99))
    store = read_once(find(tmp_path), 16)
    assert store.skipped == (("b.HEIC", "a HEIC or HEIF image: pip install 'deepcluster[heif]' to use it"),)


def test_avif_is_accepted_where_pillow_has_it() -> None:
    assert ("AVIF" in accepted_formats()) == pillow.check("avif")


@pytest.mark.parametrize("kind", kinds())
def test_pixels_size_and_name_do_not_matter(kind: str, tmp_path: Path) -> None:
    file = saved(squares(), kind)
    assert close(decode(file), squares()) and decode(file).info == {}
    assert decode(file, size=8).tobytes() == decode(file).tobytes()
    assert short_side(file) == 64
    (tmp_path / "a.jpg").write_bytes(file.getvalue())  # the bytes decide
    assert decode(tmp_path / "a.jpg").tobytes() == decode(file).tobytes()


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_by_the_orientation_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {1: 0, 3: 180, 6: 270, 8: 90}[orientation]
    assert close(decode(saved(squares(), kind, exif=exif.tobytes())), squares().rotate(turn, expand=True))


@pytest.mark.parametrize("kind", kinds())
def test_alpha_over_white_and_grey(kind: str) -> None:
    clear = squares().convert("RGBA")
    clear.putalpha(0)
    assert close(decode(saved(clear, kind)), Image.new("RGB", (64, 96), "white"))
    assert close(decode(saved(squares().convert("L"), kind)), squares().convert("L").convert("RGB"))


@pytest.mark.parametrize("kind", kinds())
def test_damaged_files_and_bombs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(squares(), kind).getvalue()
    for part in range(1, len(whole) - 1, max(1, len(whole) // 40)):
        assert why_not(whole[:part]).isprintable()
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 96 - 1)
    assert why_not(whole) == "too many pixels: 6144, more than the limit of 6143"


@pytest.mark.skipif("HEIF" not in accepted_formats(), reason="needs the extra heif")
def test_a_file_that_declares_fewer_pixels_than_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(squares(), "HEIF").getvalue()
    declared = whole.index(b"ispe") + 8
    lying = whole[:declared] + (8).to_bytes(4) + (8).to_bytes(4) + whole[declared + 8 :]
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    with pytest.raises(Undecodable):
        decode(io.BytesIO(lying))
