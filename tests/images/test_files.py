"""find(): folders, lists of paths, single files and patterns; names as they come, nothing opened that is no file."""

import codecs
import contextlib
import io
import os
import re
import socket
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcluster.errors import DataError
from deepcluster.images import find
from deepcluster.images.decode import Undecodable
from deepcluster.images.source import joined
from tests.helpers.image_files import BLUE, RED, colour, save


def bound(file: Path) -> None:
    with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as one:  # the address of a socket is short
        one.bind(file.name)


# A FIFO or a device that was opened would never end.
MAKE: dict[str, Callable[[Path], object]] = {
    "link to a file": lambda file: file.symlink_to(save(file.with_name(".target"))),
    "link to a folder": lambda file: file.symlink_to(file.parent),
    "link to nothing": lambda file: file.symlink_to("nowhere"),
    "loop": lambda file: file.symlink_to(file.name),
    "null": lambda file: file.symlink_to("/dev/null"),
    "FIFO": os.mkfifo,
    "socket": bound,
    "device": lambda file: os.mknod(file, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),  # for root alone
}


@pytest.mark.parametrize("through_a_link", [False, True])  # to the folder itself, which is followed
def test_a_folder_has_its_regular_files_in_the_order_of_their_bytes(tmp_path: Path, through_a_link: bool) -> None:
    top = tmp_path / "in"
    used = [save(top / name) for name in ("10/x.png", "2/x.png", "B", "a-b.png", "a/c/x.png", "a/x", "é.png")]
    save(top / ".hidden/x.png")
    (folder := tmp_path / "link").symlink_to("in")
    listed = []
    for kind, make in MAKE.items():
        with contextlib.suppress(PermissionError):
            make(top / f"a/{kind}.png")
            listed.append(f"a/{kind}.png")
    source = find(folder if through_a_link else top)
    names = sorted((str(file.relative_to(top)) for file in used), key=os.fsencode)
    assert source.paths == tuple(names) and [path for path, _ in source.skipped] == sorted(listed)
    assert source.labels == tuple(Path(name).parent.name for name in names)
    assert (source.name, source.location) == (("link", str(folder)) if through_a_link else ("in", str(top)))


def test_a_selection_reads_the_images_of_its_numbers(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"photos/{i}.png", (50 * i, 0, 0))
    array = np.zeros((4, 4, 4, 3), np.uint8)
    array[..., 0] = 50 * np.arange(4)[:, None, None]
    np.save(tmp_path / "a.npy", array)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "photos", ".")
    files = [*(tmp_path / "photos").iterdir()]
    on_disk = [tmp_path / "photos", sorted(files), [tmp_path / "photos"], tmp_path / "a.tar", tmp_path / "a.npy"]
    sources = [find(images) for images in (*on_disk, array, [*map(Image.fromarray, array)])]
    everything = joined(sources, "all", "python:paths")
    for number, source in enumerate(sources):
        of_all = everything.rows(range(4 * number, 4 * number + 4))
        for images in (source.rows([3, 2, 0]).rows([1, 2]), of_all.rows([2, 0])):
            assert [colour(images, i) for i in (0, 1)] == [(100, 0, 0), (0, 0, 0)]
            assert (images.paths[0], images.origin(0)) == (source.paths[2], source.origin(2))
            assert [*images.files()] == [file for file in sorted(files)[2::-2] if source.items.of_files]


def test_a_list_in_its_own_order_without_duplicates(tmp_path: Path) -> None:
    save(tmp_path / "pics/cats/1.png", RED)
    save(tmp_path / "pics/dogs/2.png", BLUE)
    listing = tmp_path / "pics/some.txt"
    absolute = tmp_path / "pics/cats/1.png"
    listing.write_text(f"\ufeff# mine\ndogs/2.png\r\n\n   \ncats/1.png\n./dogs/2.png\n{absolute}\nlost.png\n")
    source = find(listing)
    assert source.paths == ("dogs/2.png", "cats/1.png", "lost.png")
    assert source.labels == ("dogs", "cats", "")
    assert (source.name, source.location) == ("some", str(listing))
    assert [colour(source, 0), colour(source, 1)] == [BLUE, RED]
    with pytest.raises(FileNotFoundError):
        source.read(2)


def test_several_folders_images_and_patterns_are_one_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they are named: the files of the folder that they share, each once."""
    for name in ("a/1.png", "a/x/2.png", "b/1.png", "c/3.png", "c/.4.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in/a/link.png").symlink_to("1.png")
    (tmp_path / "list.txt").write_text("in/b\nin/a\n")
    monkeypatch.chdir(tmp_path / "in")
    named = (("a", "b/1.png"), ("../in/b/", str(tmp_path / "in/a"), "a/x"), ("[ab]",), ("../list.txt",), (["b", "a"],))
    followed = (("a/*", "b/1.*"), ("a/link.png", "a", "b"), (["a", "a/link.png", "b"],))
    for texts in named + followed:
        source = find(*texts)
        has_link = texts in followed  # which is named
        assert source.paths == ("a/1.png", *["a/link.png"] * has_link, "a/x/2.png", "b/1.png")
        assert source.labels == ("a", *["a"] * has_link, "x", "b")
        assert source.skipped == (() if has_link else (("a/link.png", "a symbolic link, not followed"),))
        assert (source.name, source.location) == ("in", f"{tmp_path}/in")
        assert [*source.files()] == [tmp_path / "in" / path for path in source.paths]
    assert find("c/*.png").paths == find("c/3.png").paths == find("c/3.png", "c").paths == find("c").paths
    assert find("a/x", "/dev/null").paths == ("dev/null", f"{tmp_path}/in/a/x/2.png"[1:])
    (tmp_path / "empty").mkdir()
    assert find("../empty", "../empty", may_be_empty=True).paths == ()
    with tarfile.open(tmp_path / "empty/a.tar", "w") as tar:
        tar.add("a", ".")
    for wrong in ("../empty", "-", "sklearn:digits", "../list.txt", "d/*.png"):
        with pytest.raises(DataError, match=re.escape(wrong.strip("./"))):
            find("a", wrong)


TWO = "a.png\r\nä b.png\r\n"
LISTS: dict[str, tuple[bytes, list[str] | str]] = {  # the paths, or the words of the error
    "powershell.txt": (TWO.encode("utf-8-sig"), ["a.png", "ä b.png"]),
    "powershell 5.txt": (TWO.encode("utf-16"), ["a.png", "ä b.png"]),
    "other order.txt": (codecs.BOM_UTF16_BE + TWO.encode("utf-16-be"), ["a.png", "ä b.png"]),
    "half.txt": (codecs.BOM_UTF16_LE + b"\x00\xd8", "UTF-16"),
    # Quotes as a file manager puts them; a file whose name has quotes is still that file.
    "quoted.txt": ("'ä b.png'\n\"d.png\"\n'c'.png\n\"a.png\"\n".encode(), ["ä b.png", '"d.png"', "'c'.png", "a.png"]),
    "of find -print0.txt": (
        b"new\nline.png\0\xe9.png\0#a.png\0",
        ["new\nline.png", os.fsdecode(b"\xe9.png"), "#a.png"],
    ),
    "other suffix.lst": (b"a.png\n" * 3, ["a.png"]),
    "no suffix": (b"a.png\n", ["a.png"]),
    "list.csv": (TWO.encode(), ["a.png", "ä b.png"]),
    "comma.csv": (b"a,b.png\n", ["a,b.png"]),
    "table.csv": (b"path,label\na.png,x\n", "--labels"),
    "table.txt": (b'"label";"File"\nx;a.png\n', "--labels"),
    "no header.csv": (b"a.png,x\nb.png,y\n", "--labels"),
    "empty.txt": (b"# nothing\n", "empty.txt"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_paths_is_read_in_every_form_or_refused(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    """Its images lie in the current folder, and it lies elsewhere or comes on standard input."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    content, expected = LISTS[name]
    file = tmp_path / name
    file.write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            find(file)
        return
    for image in expected:
        save(Path(image))
    with file.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        for source, location in ((find(file), str(file)), (find("-"), "standard input")):
            assert list(source.paths) == expected and [source.read(i).size for i in range(len(expected))]
            assert source.location == location
        with pytest.raises(DataError):
            find("-")  # it is at its end


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "photo.dat", "logo.svg"])
def test_a_single_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<svg>\n</svg>")
    if name.endswith((".dat", ".svg")):  # text of this name is no list
        assert find(tmp_path / name).paths == (name,)
    source = find(save(tmp_path / name, BLUE, kind="PNG"))
    assert source.paths == (name,) and colour(source, 0) == BLUE
    assert find(source.location).paths == source.paths
    (tmp_path / name).write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(Undecodable):
        find(tmp_path / name).read(0)


def test_a_home_folder_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "few.npy", np.zeros((3, 4, 4), np.uint8))
    assert find("~/few.npy").location == str(tmp_path / "few.npy")
    photo, _ = save(tmp_path / "some/b.jpg", RED), save(tmp_path / "some/a.jpg", BLUE)
    assert list(find(["~/some/b.jpg"]).files()) == [photo]
    for pattern in ("~/some/*.jpg", "~/**/[a-b].jp*"):
        assert [path.name for path in find(pattern).files()] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("name", ["a", "a.txt", "a.npy", "a.npz", "a.tar", "a.png"])
def test_an_empty_file_is_never_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So do the endless files of /proc look, such as /proc/kmsg."""
    (tmp_path / name).touch()
    for place, method in ((Path, "open"), (Path, "read_bytes"), (io, "FileIO"), (np, "load")):
        monkeypatch.setattr(place, method, lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises((DataError, Undecodable)):
        find(tmp_path / name).read(0)
