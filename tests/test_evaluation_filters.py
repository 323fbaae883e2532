"""The protocol ``filters``: networks with known filters, the top images against all of them sorted, and the sheets."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from deepcluster.cli import run_command
from deepcluster.errors import UsageError
from deepcluster.evaluation.feature_maps import layers_of, maps_at, read_maps
from deepcluster.nets.backbone import Network, build
from deepcluster.research.filters import FiltersOptions, ascend, evenly, filters, noise, sheet, top_images, visible
from tests.drawings import drawings
from tests.helpers.runs import small_fit
from tests.test_evaluation import evaluated

SIZE = 12


def linear_network(kernels: Tensor) -> Network:
    """One convolution as large as the image, so that the answer of a filter is its product with the image."""
    body = nn.Sequential(nn.Conv2d(3, len(kernels), SIZE, bias=False))
    body[0].weight.data.copy_(kernels)
    return Network(body, len(kernels)).eval()


def gratings(seed: int = 0) -> Tensor:
    """Two kernels of length 1 that have nothing to do with each other: waves across and down, of random colours."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    waves = torch.stack([torch.sin(2 * torch.pi * x / 6), torch.sin(2 * torch.pi * y / 4)])
    kernels = waves[:, None] * torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    return kernels / kernels.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


# ---- gradient ascent


def test_the_picture_is_the_filter():
    kernels = gratings() / 10  # of two the gradient of the cross-entropy goes along their difference
    network = linear_network(kernels)
    made = ascend(network, layers_of(network)[0], [0, 1], FiltersOptions(iterations=40, lr=1.0), size=SIZE, seed=0)
    for i in (0, 1):
        assert correlation(made.pictures[i], kernels[i] - kernels[1 - i]) > 0.95
        assert correlation(made.pictures[i], kernels[i]) > 0.6 > 0 > correlation(made.pictures[i], kernels[1 - i])
    assert (made.after > made.before).all()


def test_the_only_filter_that_answers():
    """The others answer nothing whatever comes: the picture correlates with the one filter."""
    kernels = torch.cat([gratings()[:1], torch.zeros(3, 3, SIZE, SIZE)]) / 10
    network = linear_network(kernels)
    made = ascend(network, layers_of(network)[0], [0], FiltersOptions(iterations=40, lr=1.0), size=SIZE, seed=0)
    assert correlation(made.pictures[0], kernels[0]) > 0.95


def test_one_step_by_hand():
    """Of length lr along the gradient, (1 - p) k0 - p k1 for these two filters, and back by the decay."""
    kernels = gratings()
    network = linear_network(kernels)
    layer = layers_of(network)[0]
    options = FiltersOptions(iterations=1, lr=0.7, weight_decay=0.01, blur=0.0)
    start = (noise([0], SIZE, 5) - network.mean) / network.std
    p = (start.flatten(1) @ kernels.flatten(1).T).softmax(1)[0]
    along = (1 - p[0]) * kernels[0] - p[1] * kernels[1]
    by_hand = start[0] + 0.7 * (along / along.norm() - 0.01 * start[0])
    made = ascend(network, layer, [0], options, size=SIZE, seed=5)
    assert torch.allclose(made.pictures[0], by_hand, atol=1e-5)
    assert made.before[0] == pytest.approx(float((start[0] * kernels[0]).sum()), abs=1e-4)
    assert made.after[0] == pytest.approx(float((by_hand * kernels[0]).sum()), abs=1e-4)


def test_the_answer_rises():
    network = build("compact", image_size=16, seed=1).eval()
    layer = layers_of(network)[2]
    answers = []
    for iterations in (0, 5, 20, 60):
        options = FiltersOptions(iterations=iterations, lr=0.3)
        answers.append(ascend(network, layer, [0, 5, 11], options, size=16, seed=0).after)
    for before, after in pairwise(answers):
        assert (after > before).all()


def test_the_start_is_noise_as_the_network_expects_it():
    """Grey of 128 with noise of 20, of 255, and normalised: not numbers of 0 to 255, as in the release."""
    network = build("alexnet", image_size=224, sobel=True).eval()
    made = ascend(network, layers_of(network)[0], [3], FiltersOptions(iterations=0), size=64, seed=0)
    pixels = made.pictures * network.std + network.mean
    assert float(pixels.mean()) == pytest.approx(128 / 255, abs=0.003)
    assert float(pixels.std()) == pytest.approx(20 / 255, abs=0.002)
    assert float(made.pictures.abs().max()) < 4
    assert torch.equal(made.before, made.after)


def test_a_picture_depends_on_its_filter_and_the_seed_alone():
    network = build("compact", image_size=16, seed=1).eval()
    layer, options = layers_of(network)[1], FiltersOptions(iterations=5)
    together = ascend(network, layer, [2, 7, 9], options, size=16, seed=4).pictures
    assert torch.equal(together, ascend(network, layer, [2, 7, 9], options, size=16, seed=4).pictures)
    alone = ascend(network, layer, [7], options, size=16, seed=4).pictures
    starts = noise([2, 7, 9], 16, 4)
    assert torch.equal(starts[1], noise([7], 16, 4)[0])
    assert not torch.allclose(starts[0], starts[1], atol=0.1)
    assert torch.allclose(together[1], alone[0], atol=1e-3)
    assert not torch.allclose(together[1], together[0], atol=0.1)
    assert not torch.allclose(alone, ascend(network, layer, [7], options, size=16, seed=5).pictures, atol=0.1)


def test_the_network_stays_as_it_is():
    network = build("compact", image_size=16, seed=1).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ascend(network, layers_of(network)[1], [0], FiltersOptions(iterations=3), size=16, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("sigma", [0.3, 1.0, 10.0])  # the last is wider than the picture
def test_pictures_are_blurred_every_so_often(sigma):
    """With a step of 0 the blur is all that happens: twice in five iterations, against scipy's."""
    network = build("compact", image_size=16, seed=0).eval()
    options = FiltersOptions(iterations=5, lr=0.0, weight_decay=0.0, blur=sigma, blur_every=2)
    found = ascend(network, layers_of(network)[0], [2], options, size=16, seed=4).pictures[0]
    expected = ((noise([2], 16, 4) - network.mean) / network.std)[0].double().numpy()
    for _ in range(2):
        expected = gaussian_filter(expected, (0, sigma, sigma), mode="mirror", radius=min(math.ceil(4 * sigma), 15))
    np.testing.assert_allclose(found, expected, atol=1e-4)


# ---- images that a filter answers most


@pytest.mark.parametrize(("batch_size", "count"), [(4, 9), (7, 1), (7, 50), (100, 9)])
def test_top_images_are_those_of_all_sorted(batch_size, count):
    images, _ = drawings(9, size=16)
    images = torch.cat([images, images[:6], images[20:]])  # twice the same: ties
    network = build("compact", image_size=16, seed=1).eval()
    layers = [layers_of(network)[i] for i in (0, 3, 5)]
    found = top_images(network, layers, images, count, size=16, batch_size=batch_size)
    for layer, (answers, rows) in zip(layers, found, strict=True):
        with torch.no_grad():
            means = torch.cat([maps_at(network, layer, image[None].float() / 255).mean((2, 3)) for image in images]).T
        # Equal images have equal answers: of them the earlier is the first.
        first = {tuple(image.flatten().tolist()): i for i, image in reversed(list(enumerate(images)))}
        for i, every in enumerate(means):
            every = every[[first[tuple(image.flatten().tolist())] for image in images]]
            by_hand = sorted(range(len(images)), key=lambda row, every=every: (-float(every[row]), row))[:count]
            assert torch.allclose(answers[i], every[by_hand], atol=1e-4)
            assert torch.allclose(every[rows[i]], every[by_hand], atol=1e-4)
            assert (answers[i].diff() <= 0).all()
            for a, b in pairwise(range(len(rows[i]))):
                assert answers[i, a] > answers[i, b] or rows[i, a] < rows[i, b]


def test_ties_by_hand():
    """A filter that sees the mean of the colours: images of 0 to 3, and 3 is there three times."""
    body = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False))
    body[0].weight.data.fill_(1.0)
    network = Network(body, 1).eval()
    images = torch.tensor([1, 3, 0, 3, 2, 3, 1], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    for batch_size in (1, 2, 3, 7, 9):
        ((answers, rows),) = top_images(network, layers_of(network), images, 5, size=4, batch_size=batch_size)
        assert rows.tolist() == [[1, 3, 5, 4, 0]]
        assert answers[0, 0] == answers[0, 1] == answers[0, 2] > answers[0, 3] > answers[0, 4]


def test_all_layers_are_read_in_one_pass():
    network = build("compact", image_size=16, seed=1).eval()
    layers, images = layers_of(network), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    passes = []
    handle = network.body[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        found = read_maps(network, layers, images, lambda maps: maps.clone())
        assert len(passes) == 1
        handle.remove()
        for layer, maps in zip(layers, found, strict=True):
            assert torch.equal(maps, maps_at(network, layer, images))
    elsewhere = layers_of(build("compact", image_size=16))[0]
    with pytest.raises(UsageError, match="do not pass through the layer block1"):
        read_maps(network, [*layers, elsewhere][-1:], images, lambda maps: maps)


# ---- sheets


def test_evenly():
    assert evenly(96, 4) == [0, 24, 48, 72]
    assert evenly(10, 3) == [0, 3, 6]
    assert evenly(3, 16) == [0, 1, 2]


def test_visible():
    picture = torch.randn(3, 50, 50, generator=torch.Generator().manual_seed(0)) * 7 + 100
    shown = visible(picture)
    assert float(shown.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(shown.std()) == pytest.approx(1 / 6, abs=0.01)
    assert (visible(torch.full((3, 4, 4), 2.0)) == 0.5).all()


def test_a_sheet_has_its_pictures_where_they_belong():
    def plain(colour: str) -> Image.Image:
        return Image.new("RGB", (8, 8), colour)

    found = sheet([0, 7, 3, 4, 5], [plain("red")] * 5, [[plain("lime")] * 4, [plain("blue")], [], [], []], 4)
    assert found.size == (4 * (2 * 168 + 6), 2 * (168 + 2 + 14))
    pixels = np.asarray(found)
    colours = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
    counts = {name: int((pixels == colour).all(2).sum()) for name, colour in colours.items()}
    assert counts == {"red": 5 * 168**2, "lime": 4 * 83**2, "blue": 83**2}
    assert tuple(pixels[14 + 5, 2 + 168 + 2 + 5]) == (0, 255, 0)
    assert tuple(pixels[14 + 5, 342 + 2 + 168 + 2 + 5]) == (0, 0, 255)


def test_a_filter_that_answers_no_image_has_none_beside_it():
    convolution = nn.Conv2d(3, 2, 1)
    convolution.weight.data.fill_(1.0)
    convolution.bias.data.copy_(torch.tensor([5.0, -1e4]))
    body = nn.Sequential(nn.Sequential(convolution, nn.ReLU()))
    network, sheets = Network(body, 2).eval(), {}
    images = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    options = FiltersOptions(iterations=1, count=4)
    values = dict(filters(network, images, options, image_size=4, batch_size=2, seed=0, keep=sheets.__setitem__))
    assert values["block1_filters"] == values["block1_shown"] == 2
    assert "block1" in sheets
    pixels = np.asarray(sheets["block1"])[14:]
    assert (pixels[:83, 172:255] == 100).all()  # an image, beside the first
    drawn = np.asarray(sheet([0], [Image.new("RGB", (4, 4))], [[]], 4))[14:]
    assert (pixels[:, 342 + 172 :] == drawn[:, 172:]).all()  # nothing, beside the second


# ---- the command


FEW = ("--set", "filters=3", "iterations=4", "count=4")


def test_the_command(run, photos, capsys):
    found = evaluated(capsys, run, "--protocol", "filters", "--layers", "block2,block6", *FEW)
    assert found["images"] == 48
    assert (found["block2_filters"], found["block2_shown"], found["block6_filters"]) == (32, 3, 128)
    assert found["block2_made"] > found["block2_noise"]
    assert not any(name.startswith("block1") for name in found)
    sheets = {path.name: path.read_bytes() for path in run.glob("filters-*")}
    assert set(sheets) == {"filters-block2.png", "filters-block6.png"}
    with Image.open(run / "filters-block2.png") as image:
        assert (image.format, image.size) == ("PNG", (3 * 342, 184))
    assert "Cached" in said_again(run, capsys)
    # The same again where a sheet is gone.
    (run / "filters-block2.png").unlink()
    assert evaluated(capsys, run, "--protocol", "filters", "--layers", "block2,block6", *FEW) == found
    assert {path.name: path.read_bytes() for path in run.glob("filters-*")} == sheets
    # Other images, another seed.
    other = evaluated(capsys, run, photos / "bars", "--protocol", "filters", "--layers", "block2", *FEW, "--seed", 1)
    assert other["images"] == 16
    assert other["block2_made"] != found["block2_made"]
    assert (run / "filters-block2.png").read_bytes() != sheets["filters-block2.png"]


def said_again(run: Path, capsys) -> str:
    capsys.readouterr()
    arguments = ["--protocol", "filters", "--layers", "block2,block6", *FEW]
    assert run_command(["evaluate", str(run), *arguments, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["values"]
    return said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "folders"], "leave --labels and --train out"),
        (["--train", "sklearn:digits"], "leave --labels and --train out"),
        (["--layers", "conv1"], "block1"),
        (["--set", "count=0"], "count"),
        (["--set", "blur_every=0"], "blur_every"),
        (["--set", "filters=0"], "filters"),
    ],
)
def test_what_cannot_be_used(run, capsys, arguments, message):
    assert run_command(["evaluate", str(run), "--protocol", "filters", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(run.glob("filters-*"))


def test_overwrite_removes_the_sheets_and_nothing_like_them(run, photos, capsys):
    evaluated(capsys, run, "--protocol", "filters", "--layers", "block1", *FEW)
    assert (run / "filters-block1.png").exists()
    (run / "filters-mine").write_text("mine")
    (run / "filters-mine.png").write_bytes(b"mine")
    (run / "filters-folder.png").mkdir()
    assert run_command(["fit", str(photos), "-o", str(run), *small_fit(), "--overwrite"]) == 0
    assert not (run / "filters-block1.png").exists()
    assert (run / "filters-mine").exists() and (run / "filters-folder.png").is_dir()
    assert (run / "filters-mine.png").read_bytes() == b"mine"


def test_the_report_shows_them(run, capsys):
    evaluated(capsys, run, "--protocol", "filters", "--layers", "block2", *FEW)
    assert 'id="filters"' not in (run / "report.html").read_text()
    assert run_command(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert 'id="filters"' in page and 'alt="Filters of block2"' in page
    whole = (run / "filters-block2.png").read_bytes()
    (run / "filters-block2.png").write_bytes(whole[: len(whole) // 2])  # of ours, and damaged
    assert run_command(["report", str(run)]) == 5
    assert "filters-block2.png cannot be used" in capsys.readouterr().err
    (run / "filters-block2.png").write_bytes(b"no picture")  # somebody's own
    assert run_command(["report", str(run)]) == 0
