"""The protocol ``retrieval``: regions and average precision by hand, and a small set in the layout of Oxford."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from deepcluster.cli import run_command
from deepcluster.clustering.whitening import whiten
from deepcluster.errors import DataError, UsageError
from deepcluster.evaluation.feature_maps import layers_of, maps_at
from deepcluster.images import find
from deepcluster.images.store import read_once
from deepcluster.nets.backbone import build
from deepcluster.research.retrieval import (
    RetrievalOptions,
    average_precision,
    dataset,
    images_below,
    region_vectors,
    regions,
    retrieval,
)
from deepcluster.research.whole_images import whole
from tests.drawings import KINDS, draw
from tests.tiny import tiny_run


def test_average_precision_by_hand():
    # + - + with two positives: recall .5 at precision 1, an area of .5 (1 + 1) / 2; then precision 1/2; then recall
    # 1 at precision 2/3, an area of .5 (1/2 + 2/3) / 2.
    assert average_precision("axb", {"a", "b"}, set()) == pytest.approx(0.5 + 7 / 24)
    assert average_precision("ajxjb", {"a", "b"}, {"j"}) == pytest.approx(0.5 + 7 / 24)  # junk leaves no trace
    assert average_precision("xa", {"a"}, set()) == pytest.approx((0 + 1 / 2) / 2)
    assert average_precision("abx", {"a", "b"}, set()) == 1
    assert average_precision("ax", {"a", "gone"}, set()) == 0.5  # what is not in the ranking is missed
    assert average_precision("xy", {"a"}, set()) == 0


def test_regions_by_hand():
    assert regions(12, 12, 1) == [(0, 0, 12)]
    assert regions(12, 12, 2)[1:] == [(0, 0, 8), (0, 4, 8), (4, 0, 8), (4, 4, 8)]
    assert regions(12, 12, 3)[5:] == [(y, x, 6) for y in (0, 3, 6) for x in (0, 3, 6)]
    # 12 x 20: one more along the longer side overlaps by 1 - 8/12 = .33, two more by 1 - 4/12: .33 is nearer to .4.
    assert regions(12, 20, 1) == [(0, 0, 12), (0, 8, 12)]
    assert regions(20, 12, 1) == [(0, 0, 12), (8, 0, 12)]
    assert len(regions(12, 20, 3)) == 2 + 2 * 3 + 3 * 4
    # 12 x 40: steps of 28/n; 1 - 28/48 at n = 4 is .417, at n = 3 .22.
    assert len(regions(12, 40, 1)) == 5
    assert regions(1, 1, 3)[0] == (0, 0, 1)


@pytest.mark.parametrize(("height", "width"), [(24, 32), (32, 24), (7, 7), (3, 40), (1, 2)])
def test_regions_lie_inside_and_cover_the_borders(height, width):
    found = regions(height, width, 3)
    assert all(0 <= y <= height - side and 0 <= x <= width - side for y, x, side in found)
    assert {y + side for y, _, side in found} >= {height}
    assert {x + side for _, x, side in found} >= {width}


def test_region_vectors_are_maxima_of_length_one():
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 3.0, 4.0
    vectors = region_vectors(maps, 2)  # sides 4 and 2 (8 // 3), the second at (0, 2) x (0, 2)
    assert vectors.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [1, 0], [0, 0], [0, 0], [0, 1]]


def test_whole_images_in_a_store():
    pictures = [np.full((30, 60, 3), 200, np.uint8), np.full((50, 20, 3), 100, np.uint8)]
    pictures[0][:, -1] = 7
    source, extents = whole(find([Image.fromarray(each) for each in pictures]), 60)
    store = read_once(source, 60)
    assert extents.tolist() == [[30, 60], [60, 24]]
    assert torch.equal(store.images[0].permute(1, 2, 0)[:30], torch.from_numpy(pictures[0]))
    assert (store.images[0][:, 30:, :-1] == 200).all() and (store.images[0][:, :, -1] == 7).all()  # its last row, again
    assert (store.images[1] == 100).all()


@pytest.fixture(scope="module")
def buildings(tmp_path_factory) -> Path:
    """Three kinds, 6 images each in two formats of frame; a query for each kind, the last image of it is junk."""
    root = tmp_path_factory.mktemp("oxford")
    (root / "jpg").mkdir()
    (root / "gt").mkdir()
    random = np.random.default_rng(3)
    for kind in KINDS:
        for i in range(6):
            picture = draw(kind, random, 48)
            frame = picture[: 48 - 12 * (i % 2)]
            Image.fromarray(frame).save(root / "jpg" / f"{kind}_{i}.jpg", quality=95)
        (root / "gt" / f"{kind}_1_query.txt").write_text(f"oxc1_{kind}_0 4.5 0 40 40.5\n")
        (root / "gt" / f"{kind}_1_good.txt").write_text(f"{kind}_0\n{kind}_1\n")
        (root / "gt" / f"{kind}_1_ok.txt").write_text(f"{kind}_2\n{kind}_3\n{kind}_4")
        (root / "gt" / f"{kind}_1_junk.txt").write_text(f"{kind}_5\n")
    return root


def test_the_layout_of_oxford(buildings):
    source, queries = dataset(str(buildings))
    assert len(source.paths) == 18
    assert [query.name for query in queries] == ["bars_1", "blob_1", "checks_1"]
    assert queries[0].image == "bars_0"
    assert queries[0].box == (4.5, 0, 40, 40.5)
    assert queries[0].positive == {f"bars_{i}" for i in range(5)}
    assert queries[0].junk == {"bars_5"}


def by_hand(network, buildings: Path, options: RetrievalOptions) -> float:
    """The protocol in its order, an image at a time."""

    def vectors(path: Path, box: tuple[int, int, int, int] | None = None) -> torch.Tensor:
        image = Image.open(path).convert("RGB")
        scale = options.image_size / max(image.size)
        image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BICUBIC)
        if box:
            image = image.crop([round(scale * edge) for edge in box])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            return region_vectors(maps_at(network, layers_of(network)[-1], pixels)[0], options.levels)

    paths = sorted((buildings / "jpg").iterdir())
    database = [vectors(path) for path in paths]
    whitening = whiten(torch.cat(database), options.dims)
    rows = torch.stack([F.normalize(whitening(each).sum(0), dim=0) for each in database])
    total = 0.0
    for kind in KINDS:
        box = (4.5, 0, 40, 40.5) if options.crop else None
        query = F.normalize(whitening(vectors(buildings / "jpg" / f"{kind}_0.jpg", box)).sum(0), dim=0)
        ranking = [paths[i].stem for i in (rows @ query).argsort(descending=True)]
        total += average_precision(ranking, {f"{kind}_{i}" for i in range(5)}, {f"{kind}_5"}) / len(KINDS)
    return total


@pytest.mark.parametrize("crop", [True, False])
def test_a_small_oxford(buildings, crop):
    network = build("compact", image_size=32, seed=1).eval()
    source, queries = dataset(str(buildings))
    options = RetrievalOptions(image_size=64, dims=8, crop=crop)
    found = dict(retrieval(network, source, queries, options))
    assert (found["images"], found["queries"], found["dims"], found["skipped"]) == (18, 3, 8, 0)
    assert found["map"] == pytest.approx(by_hand(network, buildings, options), abs=1e-6)
    assert 0.2 < found["chance"] < 0.5
    assert found["map"] > found["chance"]
    others = dict(retrieval(network, source, queries, options, whiten_by=images_below(str(buildings)).part(0, 6)))
    assert others["map"] != found["map"]


def test_by_the_command(buildings, tmp_path, capsys):
    run = tiny_run(tmp_path / "run")
    (run / "run.json").write_text("{}")
    arguments = ["evaluate", str(run), "--protocol", "retrieval", "--image-size", "32", "--set", "dims=4", "--json"]
    assert run_command(arguments) == 2
    assert "IMAGES" in capsys.readouterr().err
    arguments.insert(2, str(buildings))
    assert run_command(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert 0 < first["values"]["map"] <= 1
    assert run_command([*arguments, "--labels", "folders"]) == 2
    capsys.readouterr()
    assert run_command(arguments) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == first
    assert "nothing has changed since" in said.err


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("gt/bars_1_query.txt", "bars_0 1 2 3", "four numbers"),
        ("gt/bars_1_query.txt", "nowhere 1 2 3 4", "nowhere.jpg"),
        ("gt/bars_1_query.txt", b"\xff\xfe", "cannot be read"),
    ],
)
def test_ground_truth_that_is_damaged(buildings, tmp_path, file, content, said):
    root = Path(shutil.copytree(buildings, tmp_path / "copy"))
    (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        dataset(str(root))


def test_a_damaged_image_is_left_out(buildings, tmp_path):
    root = Path(shutil.copytree(buildings, tmp_path / "copy"))
    (root / "jpg" / "blob_3.jpg").write_bytes(b"no image")
    network = build("compact", image_size=32, seed=1).eval()
    found = dict(retrieval(network, *dataset(str(root)), RetrievalOptions(image_size=32, dims=4)))
    assert (found["images"], found["skipped"]) == (18, 1)
    (root / "jpg" / "bars_0.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="query bars_1"):
        dict(retrieval(network, *dataset(str(root)), RetrievalOptions(image_size=32, dims=4)))


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"_query\.txt"):
        dataset(str(tmp_path))
    with pytest.raises(UsageError, match="dims=0 must lie between 1"):
        list(retrieval(build("compact", image_size=32), find([Image.new("RGB", (9, 9))]), [], RetrievalOptions(dims=0)))
