"""Near-duplicates: copies are recognised whatever was done to them, and nothing else is."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepcluster.fitting import fit as run
from deepcluster.fitting.plan import Request
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.store import square
from deepcluster.presets import read_request
from tests.drawings import drawings, save_drawings
from tests.helpers.image_files import stored
from tests.helpers.runs import Said, rows

SIDE = 48
WAYS = {
    "as it is": lambda image: image,
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
    if way == "as it is":
        assert all(distance == 0 for group in groups for _, distance in group)


def test_distances_by_hand():
    # Half black, half white has a standard deviation of 127.5; 3 of 256 grey levels more in a quarter of the picture.
    one = torch.zeros(3, 32, 32, dtype=torch.uint8)
    one[:, :, 16:] = 255
    other = one.clone()
    other[:, :16, :16] = 6
    ((first, second),) = near_duplicates(torch.stack([one, other]))
    assert first == (0, 0.0)
    assert second[0] == 1 and second[1] == pytest.approx(np.sqrt(36 / 4) / 127.5, rel=0.01)


def test_plain_images_of_other_colours_and_drawings_are_different():
    (group,) = near_duplicates(torch.full((500, 3, 16, 16), 90, dtype=torch.uint8))
    assert [row for row, _ in group] == list(range(500))
    colours = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200], [90, 90, 90]], dtype=torch.uint8)
    assert near_duplicates(colours[:, :, None, None].expand(-1, -1, 16, 16)) == []
    assert near_duplicates(drawings(100)[0]) == []


@settings(max_examples=25, deadline=None)
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
    run.fit(folder, Request(out=out, n_clusters=2, recipe=read_request({"rounds": 0, "image_size": 16})), said)
    assert {row["path"] for row in rows(out / "duplicates.csv")} == {"./=copy.png", str(first.relative_to(folder))}
    (line,) = [line for line in said.lines if line.startswith("Alike: 2 ")]
    assert "(duplicates.csv)" in line
    assert {row["status"] for row in rows(out / "clusters.csv")} == {"ok"}
