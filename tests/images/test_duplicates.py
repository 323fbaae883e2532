"""Images that are alike: copies are recognised whatever was done to them, and the most similar ones come first."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepcluster import DeepCluster
from deepcluster.errors import UsageError
from deepcluster.fitting.fit import fit
from deepcluster.fitting.plan import Request
from deepcluster.images import duplicates
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.store import square
from deepcluster.recipes.presets import read_request
from deepcluster.runs.apply import Edits, apply
from deepcluster.runs.predict import SIMILAR, row_of, similar
from tests.helpers.drawings import drawings, save_drawings
from tests.helpers.image_files import stored
from tests.helpers.runs import Said, record, rows

SIDE = 48
WAYS = {
    "JPEG of quality 75": lambda image: Image.open(io.BytesIO(stored(image, "JPEG", quality=75))),
    "two thirds of the size": lambda image: image.resize((32, 32), Image.Resampling.BICUBIC),
    "a little brighter": lambda image: image.point(lambda value: min(255, round(value * 1.03))),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_copy_is_found_and_nothing_else(way):
    # Images as different as photographs are, without hard edges that a smaller copy would lose.
    small = np.random.default_rng(1).integers(0, 256, (300, 6, 6, 3), np.uint8)
    images = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in small]
    images += [WAYS[way](images[i]) for i in (5, 40, 41, 299)]
    squares = np.stack([square(image, SIDE) for image in images])
    groups = near_duplicates(torch.from_numpy(squares).permute(0, 3, 1, 2))
    assert [[row for row, _ in group] for group in groups] == [[5, 300], [40, 301], [41, 302], [299, 303]]
    assert all(group[0][1] == 0 and group[1][1] <= 0.1 for group in groups)


def test_distances_by_hand():
    # Half black, half white has a standard deviation of 127.5; 3 of 256 grey levels more in a quarter of the picture.
    one = torch.zeros(3, 32, 32, dtype=torch.uint8)
    one[:, :, 16:] = 255
    other = one.clone()
    other[:, :16, :16] = 6
    ((first, second),) = near_duplicates(torch.stack([one, other]))
    assert first == (0, 0.0)
    assert second[0] == 1 and second[1] == pytest.approx(np.sqrt(36 / 4) / 127.5, rel=0.01)


def near(hashes: list[int], turn: int = 0) -> set[tuple[int, int]]:
    rows = torch.from_numpy(np.array(hashes, np.uint64).view(np.int64))
    pairs = duplicates._near_pairs(rows, torch.zeros(len(rows)), turn)
    return {(min(pair), max(pair)) for pair in torch.cat([*pairs]).tolist()}


def test_hashes_are_near_if_at_most_8_bits_differ_and_32_neighbours_are_compared():
    assert near([0, 2**8 - 1]) == {(0, 1)} and near([0, 2**9 - 1]) == set()
    assert max(other - one for one, other in near([0] * 40)) == 32


@pytest.mark.parametrize("whole", range(4))
def test_hashes_with_one_whole_block_of_16_bits_are_neighbours_in_one_of_the_orders(whole):
    """Among many others, and the highest bit of each other block is wrong."""
    hashes = np.random.default_rng(0).integers(0, 2**63, 3000, np.uint64).tolist()
    wrong = sum(1 << 16 * block + 15 for block in range(4) if block != whole)
    pairs = set().union(*(near([hashes[0] ^ wrong, *hashes], turn) for turn in duplicates.ROTATIONS_BITS))
    assert (0, 1) in pairs


def test_a_fine_pattern_counts_and_the_noise_of_a_plain_picture_does_not():
    slope = 4 * torch.arange(16, dtype=torch.int64).expand(3, 16, 16) + 90
    fine = 8 * (torch.arange(16)[:, None] + torch.arange(16)) % 16  # a chess board of 0 and 8 in every second pixel
    assert near_duplicates(torch.stack([slope + fine, slope + 8 - fine]).byte()) == []
    plain = torch.full((3, 16, 16), 90, dtype=torch.uint8)
    noisy = plain.clone()
    noisy[:, :, -1] += 1
    assert [[row for row, _ in group] for group in near_duplicates(torch.stack([plain, noisy]))] == [[0, 1]]


def test_plain_images_of_other_colours_and_drawings_are_different():
    (group,) = near_duplicates(torch.full((500, 3, 16, 16), 90, dtype=torch.uint8))
    assert [row for row, _ in group] == list(range(500))
    colours = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200], [90, 90, 90]], dtype=torch.uint8)
    assert near_duplicates(colours[:, :, None, None].expand(-1, -1, 16, 16)) == []
    assert near_duplicates(drawings(100)[0]) == []


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([8, 16, 33]))
def test_the_order_changes_nothing(seed, count, side):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), generator=random, dtype=torch.uint8)
    images = images[torch.randint(0, count, (count,), generator=random)]
    order = torch.randperm(count, generator=random)
    groups = {frozenset(row for row, _ in group) for group in near_duplicates(images)}
    turned = {frozenset(int(order[row]) for row, _ in group) for group in near_duplicates(images[order])}
    assert groups == turned
    equal = {}
    for row, image in enumerate(images):
        equal.setdefault(image.numpy().tobytes(), set()).add(row)
    for alike in equal.values():
        assert len(alike) == 1 or any(alike <= group for group in groups)


def test_a_run_reports_them_and_uses_them(tmp_path):
    folder, out = save_drawings(tmp_path / "photos", 8, 16), tmp_path / "run"
    first = sorted(folder.rglob("*.png"))[0]
    (folder / "=copy.png").write_bytes(first.read_bytes())
    said = Said()
    fit(folder, Request(out=out, n_clusters=2, recipe=read_request({"rounds": 0, "image_size": 16})), said)
    assert {row["path"] for row in rows(out / "duplicates.csv")} == {"./=copy.png", str(first.relative_to(folder))}
    (line,) = [line for line in said.lines if line.startswith("Alike: 2 ")]
    assert "(duplicates.csv)" in line
    assert {row["status"] for row in rows(out / "clusters.csv")} == {"ok"}


# ---- the images of a run most like one: in a table, as a page, from the estimator ------------------------------------


def expected(run: Path, row: int) -> np.ndarray:
    """The other rows by their cosine to ``row``, descending."""
    features = np.load(run / "features.npy")
    order = np.argsort(-(features @ features[row]), kind="stable")
    return order[order != row]


def paths_of(run: Path) -> list[str]:
    return [row["path"] for row in rows(run / "clusters.csv")]


def test_the_same_images_by_path_by_file_and_as_another_file(finished, photos, tmp_path, prints, monkeypatch):
    paths = paths_of(finished)
    copy = shutil.copy(photos / paths[5], tmp_path / "copy.png")
    wanted = [paths[row] for row in expected(finished, 5)]
    clusters = {row["path"]: row["cluster"] for row in rows(finished / "clusters.csv")}
    for image, nearest in ((paths[5], wanted), (photos / paths[5], wanted), (copy, [paths[5], *wanted])):
        table = list(csv.DictReader(io.StringIO(prints("similar", finished, image, "-n", "6"))))
        assert list(table[0]) == list(SIMILAR)
        assert [row["path"] for row in table] == nearest[:6]
        similarities = [float(row["similarity"]) for row in table]
        assert similarities == sorted(similarities, reverse=True)
        assert all(row["cluster"] == clusters[row["path"]] for row in table)
    monkeypatch.chdir(tmp_path)
    file = str(tmp_path / "copy.png")  # a file that is here comes before a path of the run
    assert row_of(Path(record(finished)["base"]), ["copy.png", file], "copy.png") == 1


def test_all_of_them_at_most_and_never_in_place_of_an_image(finished, photos, tmp_path, prints, ends):
    path = paths_of(finished)[0]
    assert prints("similar", finished, path, "-n", "1000", "-o", tmp_path / "near.csv") == ""
    assert len(rows(tmp_path / "near.csv")) == len(paths_of(finished)) - 1
    assert path in ends(["similar", finished, path, "-o", photos / path, "--overwrite"], 2)


def test_nearest_of_the_estimator(finished, photos, tmp_path):
    model = DeepCluster.load(finished)
    similarities, numbers = model.nearest(None, 4)
    assert similarities.shape == numbers.shape == (48, 4)
    assert numbers[5].tolist() == expected(finished, 5)[:4].tolist()
    of_file, with_itself = model.nearest([photos / model.paths_[5]], 4)
    assert with_itself[0].tolist() == [5, *expected(finished, 5)[:3]]
    assert of_file[0, 0] == pytest.approx(1, abs=1e-5) and (np.diff(of_file) <= 0).all()
    assert model.nearest(None, 99)[1].shape == (48, 47)
    for n in (0, 2.5, True, "3"):
        with pytest.raises(UsageError, match=f"n={n!r}"):
            model.nearest(None, n)
    with pytest.raises(UsageError, match="nearest"):
        DeepCluster.load(model.save(tmp_path / "model")).nearest([photos / model.paths_[5]])


def test_an_equal_image_is_found_and_the_image_itself_is_not(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    x[7] = x[2]
    np.save(tmp_path / "x.npy", x)
    run = fit(tmp_path / "x.npy", Request(features=True, out=tmp_path / "run", n_clusters=3)).path
    for row, other in (("2", "7"), ("7", "2")):
        paths = [row["path"] for row in similar(run, row, 39)]
        assert paths[0] == other and {*paths} == {str(i) for i in range(40)} - {row}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError):
        similar(run, str(tmp_path / "a.png"))
    apply(run, Edits("", {0: "zero", 1: "one", 2: "two"}, (), None))
    assert {(int(row["cluster"]), row["name"]) for row in similar(run, "2", 39)} == {
        (0, "zero"),
        (1, "one"),
        (2, "two"),
    }
