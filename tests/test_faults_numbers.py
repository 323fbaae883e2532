"""Numbers at their ends: how many images and clusters, images that are all alike, shapes, and runs that are long."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepcluster.errors import DataError, DeepClusterWarning, UsageError
from deepcluster.runs import fit as run
from deepcluster.runs.plan import Request
from deepcluster.runs.recut import recut
from tests.helpers.runs import record, rows

TINY = {"epochs": 1, "batch_size": 4, "image_size": 8, "view_size": 8, "margin": 1.0}
TINY |= {"projection_hidden": 4, "projection_dim": 4}


def clusters(images: np.ndarray, k: int | None, out: Path, **options: object) -> list[int]:
    """The clusters of a tiny run, of which all numbers are finite and every label is one of the clusters."""
    request = Request(out=out, n_clusters=k, options={"rounds": 1} | TINY | options, overwrite=True)
    folder = run.fit(images, request).path
    table, features = rows(folder / "clusters.csv"), np.load(folder / "features.npy")
    labels = [int(row["cluster"]) for row in table]
    count = record(folder)["clusters"]
    assert len(table) == len(features) == len(images)
    assert np.isfinite(features).all()
    assert all(np.isfinite(float(row[name])) for row in table for name in ("distance", "margin"))
    assert set(labels) == set(range(count)) and count <= (k or len(images))
    return labels


def noise(count: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)


# K and N


@pytest.mark.parametrize(
    ("count", "k"),
    [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (7, 4), (19, 19), (20, 1), (20, 19), (20, 20), (20, 21)],
)
def test_numbers_of_images_and_clusters(count: int, k: int, tmp_path: Path) -> None:
    out, rounds = tmp_path / "run", (count + k) % 2
    if k > count:
        with pytest.raises(DataError, match=rf"^{k} clusters are more than the {count} images?: give at most {count}$"):
            clusters(noise(count), k, out, rounds=rounds)
        assert not out.exists()  # it is said before anything is written
    else:
        assert len(set(clusters(noise(count), k, out, rounds=rounds))) == k


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_cluster(k: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{k} clusters: give a whole number of at least 1"):
        clusters(noise(3), k, tmp_path / "run")
    clusters(noise(3), 2, tmp_path / "run")
    with pytest.raises(UsageError, match=f"{k} clusters"):
        recut(tmp_path / "run", k)


# Images that are alike


def alike(kind: str, count: int = 30) -> tuple[np.ndarray, int]:
    """Images, and how many of them are distinct."""
    two = noise(2)
    return {
        "black": (np.zeros((count, 8, 8, 3), np.uint8), 1),
        "white": (np.full((count, 8, 8, 3), 255, np.uint8), 1),
        "identical": (np.repeat(two[:1], count, 0), 1),
        "two": (np.concatenate([np.repeat(two[:1], count - 1, 0), two[1:]]), 2),
        "one pixel": (np.concatenate([np.repeat(two[:1], count - 1, 0), _touched(two[:1])]), 2),
        "plain": (np.repeat(np.arange(count, dtype=np.uint8), 192).reshape(count, 8, 8, 3), count),
        "a hundred times": (np.repeat(noise(4), 100, 0), 4),
    }[kind]


def _touched(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[..., 3, 3, :] ^= 255
    return image


SLOW = ("white", "identical", "two", "plain", "a hundred times")


@pytest.mark.parametrize("kind", ["black", "one pixel", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
@pytest.mark.filterwarnings("always::deepcluster.errors.DeepClusterWarning")
def test_images_that_are_alike(kind: str, tmp_path: Path) -> None:
    """Black ones have no difference at all, and one pixel is the least there is."""
    images, distinct = alike(kind)
    message = rf"only {distinct} of 6 clusters are not empty: .* equal\?"
    with pytest.warns(DeepClusterWarning, match=message) if distinct < 6 else nullcontext():
        labels = clusters(images, 6, tmp_path / "run", rounds=2)
    assert len(set(labels)) <= distinct
    if kind != "plain":
        # Equal images are together, and distinct ones apart.
        assert len({(labels[i], images[i].tobytes()) for i in range(len(images))}) == len(set(labels)) == distinct
    clusters(images, None, tmp_path / "auto", rounds=0)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_a_network_that_gives_the_same_for_every_image(
    temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = run.network_of

    def constant(*arguments: object) -> object:
        network = make(*arguments)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        return network

    monkeypatch.setattr(run, "network_of", constant)
    with pytest.warns(DeepClusterWarning, match="only 1 of 3"), pytest.warns(DeepClusterWarning, match="collapsed"):
        labels = clusters(noise(12), 3, tmp_path / "run", rounds=2, temperature=temperature, pseudo_labels=4)
    assert set(labels) == {0}
    history = rows(tmp_path / "run" / "history.csv")
    assert [row["largest_share"] for row in history] == ["1.0", "1.0"]  # a collapse is there to be seen


# Shapes

shapes = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
    st.tuples(st.integers(1, 6), st.sampled_from([1, 3, 4]), st.integers(5, 40), st.integers(5, 40)),
    st.lists(st.integers(0, 5), max_size=5).map(tuple),
)


@given(shapes, st.integers(1, 8), st.sampled_from([0, 1]))
@settings(derandomize=True, max_examples=25, deadline=None)
def test_any_shape_is_clustered_or_refused(shape: tuple[int, ...], k: int, rounds: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = clusters(np.asarray(images), k, Path(folder) / "run", rounds=rounds)
        except DataError as error:
            assert re.search("shape|more than the", str(error))
        except DeepClusterWarning as warning:
            assert "distinct values" in str(warning)  # small images may be equal
        else:
            assert len(found) == shape[0] >= k


# How many files


def test_messages_about_the_number_of_images(tmp_path: Path, ends: Callable[..., str]) -> None:
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    arguments = ["fit", folder, "-o", out, "--rounds", "0", "-q"]
    assert re.search("no files in .*images", ends(arguments, 3))
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("hello")
    assert re.search(r"no readable image in .*images: 2 files tried \(\w+\.\w+: .*; .*\)\. Check", ends(arguments, 3))
    assert not out.exists()
    Image.fromarray(noise(1)[0]).save(folder / "one.png")
    ends(arguments, 0)
    assert [row["cluster"] for row in rows(out / "clusters.csv")] == ["0", "", ""]


# Long runs

ROUNDS = """
import os, sys
import numpy as np, torch
from deepcluster.images.views import Augmentation
from deepcluster.learning.heads import CentroidHead
from deepcluster.learning.heads import WithInstances
from deepcluster.nets.network import build
from tests.loop import loop

kind, rounds, leak = sys.argv[1:]
images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), np.uint8))
network, options = build("compact", image_size=8), {}
if kind == "memory":
    network = build("compact", image_size=8, projection=(8, 4))
    options = {"reuse_features": True, "head": CentroidHead(0.1), "loss": WithInstances(0.2)}
    options["views"] = (Augmentation(),) * 2
kept, seen = [], []
for round in loop(
    network, images, clusters=4, rounds=int(rounds), patience=10**6, batch_size=12, lr=0.01, **options
):
    if leak:
        kept.append(np.ones(2500))
    pages = int(open("/proc/self/statm").read().split()[1])
    files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    seen.append((pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads))
megabytes, files, threads = np.array(seen[100:]).T
slope = np.polyfit(np.arange(len(megabytes)), megabytes, 1)[0] * 100
print(slope, files.min(), files.max(), threads.min(), threads.max())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize(("kind", "leak"), [("pass", ""), ("memory", ""), ("pass", "leak")])
def test_memory_and_open_files_stay_level(kind: str, leak: str) -> None:
    """A leak of two megabytes in a hundred rounds would be seen."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ROUNDS, kind, "300" if leak else "500", leak]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    megabytes, fewest, most, least_threads, most_threads = map(float, done.stdout.split())
    assert megabytes > 1.5 if leak else megabytes < 1
    assert fewest == most and least_threads == most_threads
