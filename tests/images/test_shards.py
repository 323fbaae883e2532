"""Tar shards: the images that tarfile lists, read in place, whatever the headers say."""

import os
import random
import re
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.errors import DataError
from deepcluster.images import find
from deepcluster.images import shards as tars
from deepcluster.images.decode import SMALL_FILE, Undecodable
from deepcluster.images.source import skipped_in_words
from deepcluster.images.store import read_once, survey
from tests.helpers.image_files import Member, colour, coloured_png, save, save_tar, stored
from tests.helpers.tiny import flipped


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos as 3 shards, their folders in the names of the members."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    folder.mkdir()
    files = sorted(photos.rglob("*.png"), key=os.fsencode)
    for n in range(3):
        part = [(str(file.relative_to(photos)), file.read_bytes()) for file in files[16 * n : 16 * n + 16]]
        save_tar(folder / f"train-{n:03}.tar", part)
    return folder


def test_the_pixels_are_those_of_the_folder(photos: Path, shards: Path):
    ours, theirs = find(shards), find(photos)
    assert ours.paths == tuple(f"train-{i // 16:03}.tar/{path}" for i, path in enumerate(theirs.paths))
    assert ours.labels == theirs.labels and ours.skipped == () and [*ours.files()] == []
    assert (ours.name, ours.location) == ("shards", str(shards))
    assert torch.equal(read_once(ours, 24).images, read_once(theirs, 24).images)
    assert survey(ours) == survey(theirs)


def test_one_shard_and_patterns(shards: Path, tmp_path: Path, monkeypatch):
    one = find(shards / "train-001.tar")
    assert (one.name, one.location) == ("train-001", str(shards / "train-001.tar"))
    assert one.paths[0].startswith("train-001.tar/") and len(one.paths) == 16
    monkeypatch.chdir(shards.parent)
    two = find("shards/train-{001..002}.tar")
    assert (two.name, two.location) == ("train", str(shards / "train-{001..002}.tar"))
    assert two.paths == find(shards).paths[16:] == find(two.location).paths
    for place in ("1", "2"):
        (tmp_path / place).mkdir()
        save_tar(tmp_path / place / "a-0.tar", [("x.png", coloured_png(int(place)))])
    over_folders = find(tmp_path / "{1..2}" / "a-{0..0}.tar")
    assert over_folders.paths == ("1/a-0.tar/x.png", "2/a-0.tar/x.png") and over_folders.labels is None
    assert [colour(over_folders, i)[0] for i in range(2)] == [1, 2]
    save_tar(tmp_path / "b-{0..1}.tar", [("x.png", coloured_png())])  # the name of a file comes first
    assert find(tmp_path / "b-{0..1}.tar").paths == ("b-{0..1}.tar/x.png",)


@pytest.mark.parametrize("pattern", ["a-{000..12}", "a-{8..11}", "a-{3..1}", "a-{08..11}", "{1..2}/{0..1}", "{9..010}"])
def test_patterns_are_those_of_bash(pattern: str):
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert list(tars.expand(pattern)) == done.stdout.split()


def test_a_missing_shard_is_named(shards: Path):
    os.mkfifo(shards.parent / "pipe-0.tar")
    for name, missing in {
        "shards/train-{000..146}.tar": "train-003.tar",
        "shards/train-{000..999999999999999999}.tar": "train-",  # at once, and not after as many names
        "pipe-{0..0}.tar": "pipe-0.tar",
    }.items():
        with pytest.raises(DataError, match=missing):
            find(shards.parent / name)


def test_files_beside_the_shards_and_shards_without_images_are_listed(tmp_path: Path):
    members = [("x.png", coloured_png(5)), ("b.NEF", b"II*"), ("c.mp4", b"film"), ("@eaDir/x.png", coloured_png())]
    save_tar(tmp_path / "0.tar", members)
    beside = ["0_stats.json", "README", "Thumbs.db"]
    for name in beside:
        (tmp_path / name).write_text("{}")
    (tmp_path / "1.tar").write_bytes(bytes(10240))
    (tmp_path / "2.tar").write_bytes(b"text" * 400)
    source = find(tmp_path)
    listed = ["0.tar/b.NEF", "0.tar/c.mp4", beside[0], "1.tar", "2.tar", *beside[1:]]
    assert source.paths == ("0.tar/x.png",) and [*dict(source.skipped)] == listed
    assert re.search(r"3 beside the shards, 1 RAW .*, 1 video, ", skipped_in_words(source.skipped))
    for shard in ("1.tar", "2.tar"):
        with pytest.raises(DataError, match=shard):
            find(tmp_path / shard)
    (tmp_path / "y.png").write_bytes(coloured_png(6))  # now it is a folder of images
    save(tmp_path / "@eaDir/y.png/SYNOPHOTO_THUMB_M.jpg")  # the thumbnails of a NAS
    save(tmp_path / "$Recycle.Bin/y.png")
    assert find(tmp_path).paths == ("0.tar", "0_stats.json", "1.tar", "2.tar", "README", "Thumbs.db", "y.png")


@pytest.mark.parametrize(("kind", "suffix"), [("bz2", ".tar.bz2"), ("xz", ".txz"), ("gz", ".tar")])
def test_a_compressed_shard_is_skipped(tmp_path: Path, kind: str, suffix: str):
    file = tmp_path / f"a{suffix}"
    with tarfile.open(file, f"w:{kind}") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    for place in (file, tmp_path):
        with pytest.raises(DataError, match=r"\w+ -dc") as caught:
            find(place)
    program = str(caught.value).partition(" -dc")[0].rpartition(" ")[2]
    subprocess.run(f"{program} -dc {file.name} > plain.tar", shell=True, cwd=tmp_path, check=True)
    assert find(tmp_path).paths == ("plain.tar/x.png",)


def test_an_archive_has_the_regular_images_that_nobody_would_hide(tmp_path: Path):
    """The others are listed, and nothing is extracted."""
    null = tarfile.TarInfo("x.png")
    null.pax_headers = {"path": "a\0b.png"}
    names = ("a.png", "./d//B.PNG", "../up.png", "caf\u00e9 '\n.jpg", os.fsdecode(b"\xff.png"), "x/" * 90 + "long.png")
    good = [(name, coloured_png(i)) for i, name in enumerate(names)]
    missed: list[Member] = [special(f"{kind}.png", kind, "a.png") for kind in (b"1", b"2", b"3", b"4", b"6", b"S")]
    missed += [("a.png", b"again"), ("inner.tar", b""), (null, coloured_png()), ("y" * 5000 + ".png", coloured_png())]
    ignored: list[Member] = [special("d.png", tarfile.DIRTYPE), (".hidden/x.png", b""), ("a.txt", b""), ("a.json", b"")]
    source = find(save_tar(tmp_path / "s.tar", [*good, *missed, *ignored], tarfile.PAX_FORMAT))
    assert source.paths == tuple(f"s.tar/{name}" for name in (names[0], "d/B.PNG", *names[2:]))
    assert [colour(source, i)[0] for i in range(len(names))] == [*range(len(names))]
    assert len(dict(source.skipped)) == len(source.skipped) == len(missed)
    assert all(len(path) < 1100 and "\0" not in path for path, _ in source.skipped)
    assert [path.name for path in tmp_path.rglob("*")] == ["s.tar"]


@pytest.mark.parametrize("harm", ["cut", "flip", "twice"])
def test_an_archive_is_read_up_to_the_first_damage(harm: str, tmp_path: Path):
    file = save_tar(tmp_path / "s.tar", [(f"{i}.png", coloured_png(i)) for i in range(4)])
    whole, third = file.read_bytes(), file.read_bytes().index(b"2.png")
    file.write_bytes({"cut": whole[: third + 520], "flip": flipped(whole, third + 3, 0), "twice": 2 * whole}[harm])
    source = find(file)
    assert source.paths == tuple(f"s.tar/{i}.png" for i in range(4 if harm == "twice" else 2))
    assert [path for path, _ in source.skipped] == ["s.tar"]


def test_labels_by_cls_and_json(tmp_path: Path):
    deep = b'{"label":' + b"[" * 30_000
    members: list[Member] = [
        ("d/1.cls", b"7\n"), ("d/1.jpg", coloured_png()), ("d/1.seg.png", coloured_png()),  # before and behind
        ("d/2.jpg", coloured_png()), ("d/2.json", b'{"label": "cat", "x": 1}'),
        ("d/3.cls", b"9"), ("d/3.jpg", coloured_png()), ("d/3.json", b'{"label": 8}'),  # .cls comes first
        ("d/4.jpg", coloured_png()), ("d/4.json", b'{"caption": "a"}'),
        ("d/5.jpg", coloured_png()), ("d/5.json", deep), ("d/6.jpg", coloured_png()), ("d/6.json", b'{"label": [1]}'),
        ("d/7.jpg", coloured_png()), ("d/7.json", b'{"label"'), ("d/8.jpg", coloured_png()), ("d/8.json", b'["label"]'),
        ("e/1.jpg", coloured_png()), ("e/2.jpg", coloured_png()), ("e/2.json", b'{"label": 8}'), ("e/2.cls", b"3"),
    ]  # fmt: skip
    source = find(save_tar(tmp_path / "s.tar", members))
    assert source.labels == ("7", "7", "cat", "9", "", "", "", "", "", "", "3")


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S", b"Z"])
@pytest.mark.parametrize("size", [-1, -512, 1 << 40, 1 << 80])  # -512: the same header again
def test_a_size_that_lies_costs_neither_time_nor_memory(tmp_path: Path, kind: bytes, size: int):
    """No endless loop (CVE-2025-8194), and no memory for what a header claims."""
    file = save_tar(tmp_path / "a.tar", [(f"{i}.png", coloured_png()) for i in (1, 2, 3)])
    content = file.read_bytes()
    at = content.index(b"2.png")  # a header begins with the name
    # A size beyond octal digits, or below 0, as GNU tar writes it.
    number = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    header = bytearray(content[at : at + 512])
    header[124:136] = number
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)  # the checksum that belongs to it
    file.write_bytes(content[:at] + header + content[at + 512 :])
    source = find(file)
    assert source.paths == ("a.tar/1.png",) and colour(source, 0)[0] == 0


def test_large_members_are_read_as_files(tmp_path: Path):
    """A decoder takes the bytes that it needs; a film under the name of an image is not read into memory."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 800, 3), dtype=np.uint8))
    members = [(f"a.{kind}", stored(noise, kind)) for kind in ("BMP", "PNG", "TIFF")]
    assert all(len(content) > SMALL_FILE for _, content in members)
    cut = ("cut.bmp", members[0][1][:-9])
    source = find(save_tar(tmp_path / "a.tar", [*members, cut]))
    for i in range(3):
        assert (np.asarray(source.read(i)) == np.asarray(noise)).all()
    with pytest.raises(Undecodable):  # what follows it in the archive is not taken for its end
        source.read(3)


def test_threads_share_no_place(tmp_path: Path):
    for n in range(40):
        save_tar(tmp_path / f"{n:02}.tar", [(f"{i}.png", coloured_png(0, 3 + i, 4 + n)) for i in range(5)])
    source = find(tmp_path)
    order = random.Random(0).choices(range(200), k=1000)
    with ThreadPoolExecutor(8) as pool:
        sizes = [image.size for image in pool.map(source.read, order)]
    assert sizes == [(3 + i % 5, 4 + i // 5) for i in order]
