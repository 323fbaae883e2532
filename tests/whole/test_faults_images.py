"""Images that are broken, odd or talkative, and numbers at their ends, through whole runs."""

import base64
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.commands.cli import run_command
from deepcluster.errors import DeepClusterWarning
from deepcluster.fitting import fit as run
from deepcluster.fitting import read as reading
from deepcluster.fitting.plan import Request
from deepcluster.images.decode import FORMATS
from deepcluster.images.store import Store, read_once
from deepcluster.images.views import Augmentation
from deepcluster.learning.heads import CentroidHead, WithInstances
from deepcluster.nets.network import build
from deepcluster.recipes.presets import read_request
from tests.helpers.drawings import save_drawings
from tests.helpers.image_files import CANARY, chunk, png, stored, talkative
from tests.helpers.loop import loop
from tests.helpers.runs import SAME, model_digest, result, rows

QUICK = {"rounds": 1, "epochs": 1, "batch_size": 16, "pseudo_labels": 6, "image_size": 8}


def fit(images: object, out: Path, k: int = 4, **options: object) -> Path:
    return run.fit(images, Request(out=out, n_clusters=k, recipe=read_request(QUICK | options))).path  # type: ignore[arg-type]


def broken() -> dict[str, bytes]:
    """Files by name, of which none is an image that can be used."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    whole = {kind: stored(noise, kind) for kind in FORMATS}
    files = {f"cut.{kind.lower()}": data[: len(data) // 2] for kind, data in whole.items()}
    files |= {f"start.{kind.lower()}": data[:16] for kind, data in whole.items()}
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
    files |= {f"a.{kind.lower()}": stored(noise, kind) for kind in ("ICO", "TGA")}  # not accepted
    films = (b"isom\0\0\x02\0isomiso2avc1mp41", b"qt  \0\0\0\0qt  ")
    files |= {f"film {i}.heic": b"\0\0\0\x18ftyp" + film + bytes(99) for i, film in enumerate(films)}
    return files | {
        "empty.png": b"",
        "page.jpg": b"<html></html>",
        "a.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "crc.png": whole["PNG"].replace(whole["PNG"][200:220], bytes(20)),
        "no pixels.png": png(0, 0, zlib.compress(b"")),
        "bomb.png": png(30_000, 30_000, zlib.compress(bytes(1000))),
        "text bomb.png": png(1, 1, zlib.compress(b"\0\0"), before=text),
        "no scan.jpg": whole["JPEG"].partition(b"\xff\xda")[0],
    }


# Whole when the folder is searched, and gone or something else when the images are read.
BREAKING: dict[str, Callable[[Path], object]] = {
    "gone.png": Path.unlink,
    "folder.png": lambda file: (file.unlink(), file.mkdir()),
    "fifo.png": lambda file: (file.unlink(), os.mkfifo(file)),
    "loop.png": lambda file: (file.unlink(), file.symlink_to(file)),
}


def test_every_kind_of_broken_file_is_listed_and_changes_nothing(
    tmp_path: Path, ends: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does an image that is gone once all are read: only its picture is missing."""
    good = fit(save_drawings(tmp_path / "good" / "folder", 14), tmp_path / "first")
    mixed, files = save_drawings(tmp_path / "mixed" / "folder", 14), broken()
    (mixed / "a/folder of images.png").mkdir(parents=True)
    for name, data in (files | dict.fromkeys(BREAKING, (mixed / "0/00.png").read_bytes())).items():
        (mixed / "a" / name).write_bytes(data)

    def read(*arguments: object, **options: object) -> Store:
        for name, damage in BREAKING.items():
            damage(mixed / "a" / name)
        store = read_once(*arguments, **options)  # type: ignore[arg-type]
        for file in mixed.glob("2/3?.png"):
            file.unlink()
        return store

    with monkeypatch.context() as patch, pytest.warns(DeepClusterWarning, match="pictures of the page are small ones"):
        patch.setattr(reading, "read_once", read)
        second = fit(mixed, tmp_path / "second")
    skipped = rows(second / "skipped.csv")
    assert sorted(row["path"] for row in skipped) == sorted(f"a/{name}" for name in [*files, *BREAKING])
    assert all(row["reason"] and row["reason"].isprintable() and str(tmp_path) not in row["reason"] for row in skipped)
    assert len(rows(second / "clusters.csv")) == 42 + len(skipped)
    tables = {"clusters.csv", "images.csv"}
    for name in tables:
        first, other = ([row for row in rows(run / name) if row["status"] == "ok"] for run in (good, second))
        assert first == other
    for name in {*SAME} - tables:
        assert (good / name).read_bytes() == (second / name).read_bytes(), name
    assert model_digest(good) == model_digest(second)
    said = ends(["predict", good, mixed / "a"], 3)
    assert all(f"skipped {name}: " in said for name in files)
    ends(["embed", good, mixed / "a", "-o", tmp_path / "f.npy"], 3)
    assert not (tmp_path / "f.npy").exists() and not (tmp_path / "f.csv").exists()


HOME = "eve-home-1c9"


@pytest.mark.parametrize("listed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_tells_nothing_but_pixels(listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / HOME
    (home / "photos").mkdir(parents=True)
    for name, data in talkative().items():
        (home / "photos" / name).write_bytes(data)
    (home / "photos/broken.jpg").write_bytes(talkative()["turned.jpg"][:-200])
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
    names_of_home = {name for name, data in files.items() if HOME.encode() in data}
    # A list of absolute paths is what the tables are about; the folder of images is not.
    tables = {"clusters.csv", "cluster_summary.csv", "skipped.csv", "duplicates.csv", "nouns.csv"}
    assert names_of_home == {"run.json", "log.txt"} | (tables | {"images.csv"} if listed else set())
    assert "deepcluster fit .../" in page and "-o .../one" in page


# ---- numbers at their ends: how many images and clusters, images that are all alike, and runs that are long ----------

TINY = {"epochs": 1, "batch_size": 4, "image_size": 8, "view_size": 8, "margin": 1.0}
TINY |= {"projection_hidden": 4, "projection_dim": 4}


def clusters(images: np.ndarray, k: int | None, out: Path, **options: object) -> list[int]:
    """The clusters of a tiny run, of which all numbers are finite and every label is one of the clusters."""
    request = Request(out=out, n_clusters=k, recipe=read_request({"rounds": 1} | TINY | options), overwrite=True)
    folder = run.fit(images, request).path
    table, features = rows(folder / "clusters.csv"), np.load(folder / "features.npy")
    labels = [int(row["cluster"]) for row in table]
    count = result(folder)["clusters"]
    assert len(table) == len(features) == len(images)
    assert np.isfinite(features).all()
    assert all(np.isfinite(float(row[name])) for row in table for name in ("distance", "margin"))
    assert set(labels) == set(range(count)) and count <= (k or len(images))
    return labels


def noise(count: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize(
    ("count", "k", "side"),
    [(1, 1, 8), (1, 1, 1), (2, 2, 1), (3, 2, 8), (20, 19, 1), (20, 20, 8)],
)
def test_numbers_of_images_and_clusters(count: int, k: int, side: int, tmp_path: Path) -> None:
    options = {"rounds": (count + k) % 2, "average": 0.4}
    assert len(set(clusters(noise(count, side), k, tmp_path / "run", **options))) == k


def alike(kind: str, count: int = 30) -> tuple[np.ndarray, int]:
    """Images, and how many of them are distinct."""
    plain, touched = noise(1), noise(1)
    touched[..., 3, 3, :] ^= 255
    return {
        "black": (np.zeros((count, 8, 8, 3), np.uint8), 1),
        "one pixel": (np.concatenate([np.repeat(plain, count - 1, 0), touched]), 2),
        "plain": (np.repeat(np.arange(count, dtype=np.uint8), 192).reshape(count, 8, 8, 3), count),
        "a hundred times": (np.repeat(noise(4), 100, 0), 4),
    }[kind]


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("plain", "a hundred times")]


@pytest.mark.parametrize("kind", ["black", "one pixel", *SLOW])
@pytest.mark.filterwarnings("always::deepcluster.errors.DeepClusterWarning")
def test_images_that_are_alike(kind: str, tmp_path: Path) -> None:
    """Black ones have no difference at all, and one pixel is the least there is."""
    images, distinct = alike(kind)
    with pytest.warns(DeepClusterWarning, match=f"{distinct} of 6") if distinct < 6 else nullcontext():
        labels = clusters(images, 6, tmp_path / "run", rounds=2)
    assert len(set(labels)) <= distinct
    if kind != "plain":
        # Equal images are together, and distinct ones apart.
        assert len({(labels[i], images[i].tobytes()) for i in range(len(images))}) == len(set(labels)) == distinct
    if distinct == 1:  # a collapse is there to be seen
        assert rows(tmp_path / "run/history.csv")[0]["largest_share"] == "1.0"
    clusters(images, None, tmp_path / "auto", rounds=1, temperature=0.1, pseudo_labels=4)


def print_growth(leak: bool) -> None:
    """Print how much memory, open files and threads grow in 300 rounds: megabytes in a hundred, and the ranges."""
    images = torch.from_numpy(noise(24)).permute(0, 3, 1, 2)
    network, kept, seen = build("compact", image_size=8, projection=(8, 4)), [], []
    options = {"head": CentroidHead(0.1), "loss": WithInstances(0.2), "views": (Augmentation(),) * 2, "lr": 0.01}
    options |= {"reuse_features": True, "patience": 10**6, "batch_size": 12}
    for _ in loop(network, images, clusters=4, rounds=400, **options):
        if leak:
            kept.append(np.ones(2500))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files, threads = (len([*Path("/proc/self", name).iterdir()]) for name in ("fd", "task"))
        seen.append((pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads))
    megabytes, files, threads = np.array(seen[100:]).T
    print(np.polyfit(np.arange(len(megabytes)), megabytes, 1)[0] * 100, np.ptp(files), np.ptp(threads))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("leak", [False, True])
def test_memory_and_open_files_stay_level(leak: bool) -> None:
    """A leak of two megabytes in a hundred rounds would be seen. In a process of its own, where no memory is free."""
    code = f"from tests.whole.test_faults_images import print_growth; print_growth({leak})"
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    megabytes, files, threads = map(float, said.split())
    assert megabytes > 1.5 if leak else megabytes < 1
    assert files == threads == 0
