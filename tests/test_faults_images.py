"""Images that are broken, huge, odd or talkative, through whole runs: fit, predict and report see the same pixels."""

import base64
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_digits

from deepcluster.cli import run_command
from deepcluster.errors import DataError, DeepClusterWarning
from deepcluster.images import find
from deepcluster.images.decode import FORMATS
from deepcluster.images.store import Store, read_once
from deepcluster.runs import fit as run
from deepcluster.runs import page as run_report
from deepcluster.runs import predict as prediction
from deepcluster.runs.plan import Request
from tests.helpers.image_files import SIDE, chunk, files_of_all_modes, png, stored
from tests.helpers.runs import SAME, model_digest, predicted, rows

QUICK = {"rounds": 1, "epochs": 1, "batch_size": 16, "pseudo_labels": 6, "image_size": 8}


def fit(images: object, out: Path, k: int = 4, **options: object) -> Path:
    return run.fit(images, Request(out=out, n_clusters=k, options=QUICK | options)).path  # type: ignore[arg-type]


def same_result(one: Path, other: Path) -> None:
    used = [row for row in rows(one / "clusters.csv") if row["status"] == "ok"]
    assert used == [row for row in rows(other / "clusters.csv") if row["status"] == "ok"]
    for name in {*SAME} - {"clusters.csv"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert model_digest(one) == model_digest(other)


# Broken files


def broken() -> dict[str, bytes]:
    """Files by name, more than 20 kinds, of which none is an image that can be used."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    whole = {kind: stored(noise, kind) for kind in FORMATS}
    files = {f"cut.{kind.lower()}": data[: len(data) // 2] for kind, data in whole.items()}
    files |= {f"start.{kind.lower()}": data[:16] for kind, data in whole.items()}
    damaged = bytearray(whole["PNG"])
    damaged[200:220] = bytes(20)
    scan = whole["JPEG"].index(b"\xff\xda")
    bitmap = bytearray(whole["BMP"])
    bitmap[28:30] = struct.pack("<H", 7)  # bits a pixel
    directory = bytearray(whole["TIFF"])
    directory[4:8] = struct.pack("<I", 1 << 30)  # where the list of tags begins
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
    return files | {
        "empty.png": b"",
        "one byte.jpg": b"\xff",
        "text.png": b"not an image\n",
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "document.png": b"%PDF-1.7\n",
        "archive.png": b"PK\x03\x04" + bytes(60),
        "icon.png": stored(noise, "ICO"),
        "zeros.bmp": bytes(5000),
        "random.webp": np.random.default_rng(1).bytes(5000),
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "crc.png": bytes(damaged),
        "no pixels.png": png(0, 0, zlib.compress(b"")),
        "no data.png": png(9, 9, b""),
        "bomb.png": png(30_000, 30_000, zlib.compress(bytes(1000))),
        "text bomb.png": png(1, 1, zlib.compress(b"\0\0"), before=text),
        "no scan.jpg": whole["JPEG"][:scan],
        "no such depth.bmp": bytes(bitmap),
        "no tags.tiff": bytes(directory),
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        "negative.ppm": b"P6 -3 3 255\n" + bytes(27),
        "huge.ppm": b"P6 99999 99999 255\n",
    }


def digits(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(load_digits().images[:count]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"m{i:02}.png")
    return folder


def test_every_kind_of_broken_file_is_listed_and_changes_nothing(tmp_path: Path) -> None:
    good = fit(digits(tmp_path / "good" / "folder"), tmp_path / "first")
    files = broken()
    assert len(files) >= 30
    mixed = digits(tmp_path / "mixed" / "folder")
    for i, (name, data) in enumerate(sorted(files.items())):
        place = mixed / ("a" if i % 2 else "") / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
    (mixed / "a/folder.png").mkdir()
    second = fit(mixed, tmp_path / "second")
    skipped = rows(second / "skipped.csv")
    assert sorted(row["path"].removeprefix("a/") for row in skipped) == sorted(files)
    assert all(row["reason"] and row["reason"].isprintable() and str(tmp_path) not in row["reason"] for row in skipped)
    assert len(rows(second / "clusters.csv")) == 40 + len(files)
    same_result(good, second)


def test_files_that_break_during_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the folder was searched: listed. After the images were read: not needed any more."""
    good = digits(tmp_path / "good" / "folder")
    breaking = {
        "m03.png": lambda file: file.unlink(),
        "m07.png": lambda file: file.write_bytes(file.read_bytes()[:60]),
        "m11.png": lambda file: (file.unlink(), file.mkdir()),
        "m15.png": lambda file: (file.unlink(), os.mkfifo(file)),
        "m19.png": lambda file: (file.unlink(), file.symlink_to("m19.png")),
        "m23.png": lambda file: file.write_bytes(b""),
    }
    folder = tmp_path / "breaking" / "folder"
    shutil.copytree(good, folder)

    def read(*arguments: object, **options: object) -> Store:
        for name, damage in breaking.items():
            damage(folder / name)
        store = read_once(*arguments, **options)  # type: ignore[arg-type]
        for file in folder.glob("m3*.png"):
            file.unlink()
        return store

    monkeypatch.setattr(run, "read_once", read)
    with pytest.warns(DeepClusterWarning, match="10 pictures of the page are small ones"):
        first = fit(folder, tmp_path / "first")
    monkeypatch.undo()
    assert {row["path"]: row["reason"] for row in rows(first / "skipped.csv")} == {
        "m03.png": "no such file",
        "m07.png": rows(first / "skipped.csv")[1]["reason"],
        "m11.png": "is a folder",
        "m15.png": "a FIFO, not a file",
        "m19.png": "a symbolic link that leads to itself",
        "m23.png": "empty file",
    }
    for name in breaking:
        (good / name).unlink()
    same_result(first, fit(good, tmp_path / "second"))


# Huge and slow files


def test_files_that_could_take_long(tmp_path: Path) -> None:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    start = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(3) + b"\xff\xff\xff"
    (tmp_path / "film.gif").write_bytes(start + 10_000 * frame + b";")
    page = bytearray(stored(Image.new("L", (5, 5), 7), "TIFF"))
    (begin,) = struct.unpack_from("<I", page, 4)
    (tags,) = struct.unpack_from("<H", page, begin)
    struct.pack_into("<I", page, begin + 2 + 12 * tags, begin)  # the next page is this one again
    (tmp_path / "loop.tiff").write_bytes(page)
    Image.new("L", (60_000, 1)).save(tmp_path / "long.png")
    text = chunk(b"tEXt", b"a\0" + bytes(100))
    (tmp_path / "talk.png").write_bytes(png(2, 1, zlib.compress(b"\0\1\2"), before=100_000 * text))
    for file in sorted(tmp_path.iterdir()):  # the loop has no end
        try:
            read_once(find(file), 8)
        except DataError as error:
            assert "talk" in str(error) or "film" in str(error)


# The same pixels everywhere


def test_fit_predict_and_report_see_the_right_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of_all_modes()
    assert len(files) >= 70
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (data, _, _) in files.items():
        (folder / name).write_bytes(data)
    seen: list[Store] = []
    pictures: list[Callable[[str], Image.Image | None]] = []
    draw = run_report.render
    for module in (run, prediction):
        monkeypatch.setattr(module, "read_once", lambda *a, **o: (seen.append(read_once(*a, **o)), seen[-1])[1])
    monkeypatch.setattr(run_report, "render", lambda data: (pictures.append(data.picture), draw(data))[1])
    out = fit(folder, tmp_path / "run", rounds=0, image_size=2 * SIDE, margin=1.0)
    paths = predicted(out, folder).paths
    assert set(paths) == set(files)
    stores = [seen[0].images, torch.cat([store.images for store in seen[1:]])]
    for i, path in enumerate(paths):
        trained, new = (np.asarray(images[i].permute(1, 2, 0)).astype(int) for images in stores)
        shown = pictures[0](path)
        assert shown is not None and shown.mode == "RGB"
        _, right, off = files[path]
        assert np.abs(trained - right).max() <= off, path
        assert (trained == new).all() and (trained == np.asarray(shown)).all(), path


# predict


def test_bad_files_of_predict(finished: Path, tmp_path: Path, ends: Callable[..., str]) -> None:
    for name, data in broken().items():
        (tmp_path / name).write_bytes(data)
    said = ends(["predict", finished, tmp_path], 3)
    assert "no readable image" in said and all(f"skipped {name}: " in said for name in broken())
    assert "no readable image" in ends(["embed", finished, tmp_path, "-o", tmp_path / "f.npy"], 3)
    assert not (tmp_path / "f.npy").exists() and not (tmp_path / "f.csv").exists()
    with pytest.raises(DataError, match="no paths in the list"):
        predicted(finished, [])


# What images tell beside their pixels

CANARY = "canary-7f3a"
HOME = "eve-home-1c9"


def talkative(folder: Path) -> None:
    """Images whose metadata has the canary wherever a format has room for text."""
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = exif[0x010F] = CANARY  # description, artist, maker
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.0), 27: CANARY.encode()})  # the place
    exif.get_ifd(0x8769)[0x9286] = CANARY.encode()  # user comment
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{CANARY}</x:xmpmeta>".encode()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", CANARY)
    text.add_itxt("Comment", CANARY, zip=True)
    for i in range(4):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8))
        more = {"exif": exif, "icc_profile": CANARY.encode()}
        image.save(folder / f"{i}.jpg", comment=CANARY.encode(), xmp=xmp, **more)
        image.save(folder / f"{i}.png", pnginfo=text, **more)
        image.save(folder / f"{i}.webp", xmp=xmp, **more)
        image.save(folder / f"{i}.tiff", tiffinfo={270: CANARY, 315: CANARY}, icc_profile=CANARY.encode())
        image.save(folder / f"{i}.gif", comment=CANARY.encode())
    assert sum(CANARY.encode() in file.read_bytes() for file in folder.iterdir()) == 20
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:-200])


@pytest.mark.parametrize("listed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_tells_nothing_but_pixels(listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / HOME
    (home / "photos").mkdir(parents=True)
    talkative(home / "photos")
    monkeypatch.setenv("HOME", str(home))
    images = str(home / "photos")
    if listed:
        images = str(home / "list.txt")
        Path(images).write_text("".join(f"{file}\n" for file in sorted((home / "photos").iterdir())))
    out = home / "runs" / "one"
    arguments = ["fit", images, *f"-k 2 -o {out} --rounds 0 --image-size 16 -q".split()]
    monkeypatch.setattr(sys, "argv", ["deepcluster", *arguments])
    assert run_command(arguments) == 0
    page = (out / "report.html").read_text()
    pictures = [base64.b64decode(data) for data in re.findall(r"base64,([\w+/=]+)", page)]
    assert len(pictures) == 21  # 20 of the clusters, and the sheet of the map
    files = {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for name, data in [*files.items(), *((f"picture {i}", data) for i, data in enumerate(pictures))]:
        assert CANARY.encode() not in data and not (name.startswith("model/") and b".jpg" in data), name
    told = {name for name, data in files.items() if HOME.encode() in data}
    # A list of absolute paths is what the tables are about; the folder of images is not.
    tables = {"clusters.csv", "cluster_summary.csv", "skipped.csv", "duplicates.csv", "checkpoints/images.csv"}
    assert told == {"run.json", "log.txt"} | (tables if listed else set())
    assert "deepcluster fit .../" in page and "-o .../one" in page
