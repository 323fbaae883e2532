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
from PIL import Image
from sklearn.datasets import load_digits

from deepcluster.cli import run_command
from deepcluster.errors import DeepClusterWarning
from deepcluster.images import find
from deepcluster.images.decode import FORMATS
from deepcluster.images.store import Store, read_once
from deepcluster.runs import fit as run
from deepcluster.runs import page as run_report
from deepcluster.runs import predict as prediction
from deepcluster.runs.plan import Request
from tests.helpers.image_files import CANARY, SIDE, chunk, files_of_all_modes, png, stored, talkative
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
    """Files by name, of which none is an image that can be used."""
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
        "text.png": b"not an image\n",
        "random.webp": np.random.default_rng(1).bytes(5000),
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


def test_every_kind_of_broken_file_is_listed_and_changes_nothing(tmp_path: Path, ends: Callable[..., str]) -> None:
    good = fit(digits(tmp_path / "good" / "folder"), tmp_path / "first")
    files = broken()
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
    for image in mixed.glob("m*.png"):
        image.unlink()
    said = ends(["predict", good, mixed], 3)
    assert "no readable image" in said and all(f"{name}: " in said for name in files)
    ends(["embed", good, mixed, "-o", tmp_path / "f.npy"], 3)
    assert not (tmp_path / "f.npy").exists() and not (tmp_path / "f.csv").exists()


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


def test_pages_without_end(tmp_path: Path) -> None:
    page = bytearray(stored(Image.new("L", (5, 5), 7), "TIFF"))
    (begin,) = struct.unpack_from("<I", page, 4)
    (tags,) = struct.unpack_from("<H", page, begin)
    struct.pack_into("<I", page, begin + 2 + 12 * tags, begin)  # the next page is this one again
    (tmp_path / "loop.tiff").write_bytes(page)
    assert read_once(find(tmp_path), 8).kept == (0,)


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


# What images tell beside their pixels

HOME = "eve-home-1c9"


@pytest.mark.parametrize("listed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_tells_nothing_but_pixels(listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / HOME
    (home / "photos").mkdir(parents=True)
    for name, data in talkative().items():
        (home / "photos" / name).write_bytes(data)
    (home / "photos/broken.jpg").write_bytes(talkative()["plain.jpg"][:-200])
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
    assert len(pictures) == len(talkative()) + 1  # those of the clusters, and the sheet of the map
    files = {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for name, data in [*files.items(), *((f"picture {i}", data) for i, data in enumerate(pictures))]:
        assert CANARY not in data and not (name.startswith("model/") and b".jpg" in data), name
    told = {name for name, data in files.items() if HOME.encode() in data}
    # A list of absolute paths is what the tables are about; the folder of images is not.
    tables = {"clusters.csv", "cluster_summary.csv", "skipped.csv", "duplicates.csv", "nouns.csv"}
    assert told == {"run.json", "log.txt"} | (tables | {"checkpoints/images.csv"} if listed else set())
    assert "deepcluster fit .../" in page and "-o .../one" in page
