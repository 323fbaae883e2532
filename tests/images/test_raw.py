"""RAW files of cameras: by their previews with rawpy, named without it, exported as they are."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from deepcluster.export import folders
from deepcluster.images import decode as decoding
from deepcluster.images import find, raw, source
from deepcluster.images.decode import Undecodable, decode, sides
from deepcluster.images.store import read_once
from tests.helpers.image_files import PREVIEW, dng
from tests.helpers.tiny import hand_run

needs_rawpy = pytest.mark.skipif(not raw.reads_raw(), reason="needs rawpy, of the extra [raw]")


@pytest.fixture
def picture() -> Image.Image:
    """A landscape, dark at the left."""
    return Image.fromarray(np.linspace(0, 255, 120, dtype=np.uint8)[None, :, None].repeat(80, 0).repeat(3, 2))


def test_without_the_extra_a_raw_file_is_named_and_not_taken_for_its_thumbnail(picture, monkeypatch):
    monkeypatch.setattr(raw, "reads_raw", lambda: False)
    monkeypatch.setattr(source, "reads_raw", lambda: False)
    starts = [
        dng(picture, jpeg=False),
        b"II*\0\x10\0\0\0CR\2\0",
        b"\0\0\0\x18ftypcrx \0\0\0\1",
        b"FUJIFILMCCD-RAW 0201",
    ]
    for data in starts:
        with pytest.raises(Undecodable, match=r"RAW.*rawpy"):
            decode(io.BytesIO(data.ljust(100, b"\0")))
    kinds = {"a.NEF": decoding.RAW, "a.xmp": decoding.OTHER, "a.MOV": decoding.OTHER, "b": decoding.DAMAGED, "c": ""}
    skipped = [(path, decoding.Reason("some words: and more", kind)) for path, kind in kinds.items()]
    counts = r"1 RAW \(pip install rawpy,.*\), 1 sidecar, 1 video, 1 damaged, 1 some words"
    assert re.fullmatch(counts, source.skipped_in_words(skipped))


@needs_rawpy
@pytest.mark.parametrize("jpeg", [True, False])
@pytest.mark.parametrize(
    ("orientation", "turn"), [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)]
)
def test_a_raw_file_is_its_preview_upright(picture, jpeg, orientation, turn):
    file = io.BytesIO(dng(picture, jpeg=jpeg, orientation=orientation))
    upright = picture if turn is None else picture.transpose(turn)
    image = decode(file)
    assert image.size == upright.size and image.mode == "RGB" and min(sides(file)) == 80
    assert np.abs(np.asarray(image, float) - np.asarray(upright, float)).mean() < 2


@needs_rawpy
def test_hostile_raw_files_meet_the_limits(picture, monkeypatch):
    data = dng(picture)
    for end in (1100, 2000, PREVIEW):  # without the directory of the sensor, the sensor, or a preview
        with pytest.raises(Undecodable):
            decode(io.BytesIO(data[:end]))
    limits = {"MAX_PIXELS": 120 * 80, "MAX_RAW_BYTES": len(data), "MAX_PREVIEW_BYTES": len(data) - PREVIEW}
    for name, limit in limits.items():
        with monkeypatch.context() as patch, pytest.raises(Undecodable):
            patch.setattr(decoding if name == "MAX_PIXELS" else raw, name, limit - 1)
            decode(io.BytesIO(data))


@needs_rawpy
@pytest.mark.parametrize("size", [0, 1000])
def test_libraw_reads_large_files_one_at_a_time(picture, monkeypatch, size):
    import rawpy

    data = dng(picture)
    locked = []
    monkeypatch.setattr(raw, "MAX_PREVIEW_BYTES", len(data) - size)
    read = rawpy.imread
    monkeypatch.setattr(rawpy, "imread", lambda file: [locked.append(decoding._ALONE.locked()), read(file)][1])
    decode(io.BytesIO(data))
    assert locked == [size > 0] and not decoding._ALONE.locked()


@needs_rawpy
@pytest.mark.parametrize("jpeg", [True, False])
@pytest.mark.parametrize("missing", [1, 100, 9000, 16000])
def test_a_preview_is_used_only_if_all_of_it_is_in_its_file(jpeg, missing):
    """LibRaw completes one that is cut off with memory of the process, here bytes that are in the file, too."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    data = dng(Image.fromarray(noise), jpeg=jpeg)
    assert decode(io.BytesIO(data)).size == (160, 120) and len(data) - PREVIEW > 16000
    for _ in range(2):
        memory = [bytearray(size) for size in (5000, 12000, 30000) for _ in range(30)]
        del memory
        with pytest.raises(Undecodable, match="copy it again"):
            decode(io.BytesIO(data[:-missing]))


def test_bytes_are_found_wherever_they_lie():
    file = io.BytesIO(bytes((1 << 20) - 2) + b"abcd" + bytes(1 << 20))
    assert raw._contains(file, b"abcd")  # in two blocks
    assert raw._contains(file, b"d\0\0")
    assert not raw._contains(file, b"abcde")


@needs_rawpy
def test_an_export_takes_a_raw_file_itself(picture, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/0.dng").write_bytes(dng(picture))
    assert read_once(find(tmp_path / "raw"), 32).usable == (0,)
    folders(hand_run(tmp_path / "run", str(tmp_path / "raw"), {"0.dng": 0}), tmp_path / "sorted", mode="copy")
    assert (tmp_path / "sorted/000/0.dng").read_bytes() == dng(picture)
