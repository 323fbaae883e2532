"""The protocol ``voc07``: average precision, loss, crops and order by hand, and a small set in its layout."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from deepcluster.cli import run_command
from deepcluster.errors import DataError, UsageError
from deepcluster.nets.backbone import build
from deepcluster.research import voc07 as room
from deepcluster.research.voc07 import Voc07Options, average_precisions, devkit, loss_of, splits, square_crops, voc07
from tests.drawings import KINDS, draw
from tests.tiny import tiny_run


def test_average_precision_by_hand():
    # Class 0: + - + in the order of scores: (1 + 2/3) / 2. The difficult image at the top does not count.
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.1], [0.99, 0.2]], np.float32)
    truth = np.array([[1, 1], [-1, -1], [1, -1], [0, -1]], np.int8)
    first, tied = average_precisions(scores, truth)
    assert first == pytest.approx((1 + 2 / 3) / 2)
    assert tied == pytest.approx(1 / 2)  # a tie with an image without the class is lost


def test_difficult_ones_have_no_loss():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    loss = loss_of(logits, torch.tensor([[1, 0], [-1, 0]], dtype=torch.int8))
    expected = (F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(0.5))) / 2  # by the 2 images
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert (logits.grad[:, 1] == 0).all() and (logits.grad[:, 0] != 0).all()


def test_every_epoch_has_an_order_of_its_own():
    batches = list(room._batches(10, 4, 7, seed=0))
    assert [len(rows) for rows in batches] == [4, 4, 2, 4, 4, 2, 4]
    epochs = [torch.cat(batches[i : i + 3]).tolist() for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_crops_by_hand():
    # A ramp in an upper left corner of 40 x 80: its colours tell where a crop is.
    y, x = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    image = torch.stack([x.clamp(max=79), y.clamp(max=39), torch.zeros_like(x)]).to(torch.uint8)
    extents = torch.tensor([[40, 80]]).expand(500, 2)
    random = torch.Generator().manual_seed(0)
    views = 255 * square_crops(image.expand(500, 3, 80, 80), extents, 16, (0.1, 0.4), random)
    width = (views[:, 0, 0, -1] - views[:, 0, 0, 0]) * 16 / 15  # of the crop, by the outermost pixels
    height = (views[:, 1, -1, 0] - views[:, 1, 0, 0]) * 16 / 15
    torch.testing.assert_close(width.abs(), height, atol=0.2, rtol=0)
    areas = height**2 / 3200
    assert 0.1 - 0.005 < areas.min() < 0.12 and 0.37 < areas.max() < 0.405  # 3200 * .4 is a square of 35.8 px
    assert 0.4 < (width < 0).float().mean() < 0.6
    assert views[:, 1].max() <= 39 and views[:, 0].max() <= 79
    left = views[:, 0].amin((1, 2)) - height / 32
    top = views[:, 1].amin((1, 2)) - height / 32
    assert left.min() < 1 and (left + height).max() > 78 and top.min() < 1 and (top + height).max() > 38
    whole = 255 * square_crops(image[None], extents[:1], 8, (0.9, 0.9), random)
    assert whole[0, 1].max() - whole[0, 1].min() == pytest.approx(40 * 7 / 8, abs=0.2)  # at most the shorter side


CLASSES = ("bars", "blob", "checks")


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    """20 images in each of train, val and test, of one or two kinds side by side; some difficult."""
    root = tmp_path_factory.mktemp("voc") / "VOCdevkit" / "VOC2007"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    random = np.random.default_rng(5)
    lines: dict[tuple[str, str], list[str]] = {}
    for number in range(60):
        part = ("train", "val", "test")[number % 3]
        shown = [KINDS[number % 7 % 3], KINDS[number % 4 % 3]]
        picture = np.concatenate([draw(kind, random, 30) for kind in shown], axis=number % 2)
        Image.fromarray(picture).save(root / "JPEGImages" / f"{number:06}.jpg", quality=95)
        for kind in CLASSES:
            value = 0 if number % 11 == 0 else 1 if kind in shown else -1
            for each in (part, "trainval")[: 1 if part == "test" else 2]:
                lines.setdefault((kind, each), []).append(f"{number:06} {value:2}")
    for (kind, part), each in lines.items():
        (root / "ImageSets" / "Main" / f"{kind}_{part}.txt").write_text("\n".join(each) + "\n")
    return root


def test_the_layout(kit):
    assert devkit(str(kit)) == devkit(str(kit.parent)) == devkit(str(kit.parent.parent)) == kit
    train, test, names = splits(kit, "trainval")
    assert (train.truth.shape, test.truth.shape, tuple(names)) == ((40, 3), (20, 3), CLASSES)
    assert {*train.truth.ravel()} == {-1, 0, 1}
    assert Path(test.source.paths[0]).name == "000002.jpg"
    lines = (kit / "ImageSets/Main/blob_test.txt").read_text().split()
    assert test.truth[:, 1].tolist() == [int(value) for value in lines[1::2]]
    train, test, _ = splits(kit, "train")
    assert (len(train.truth), len(test.truth)) == (20, 20)
    assert Path(test.source.paths[0]).name == "000001.jpg"


def scratch_in(folder: Path):
    @contextmanager
    def scratch():
        place = folder / f"scratch{len(list(folder.iterdir()))}"
        place.mkdir()
        yield place

    return scratch


QUICK = {"iterations": 80, "batch_size": 8, "lr": 0.1, "step_size": 60, "crops": 4}


@pytest.mark.parametrize("layers", ["top", "all"])
def test_it_learns_what_it_may(kit, tmp_path, monkeypatch, layers):
    monkeypatch.setattr(room, "LONGER_SIDE", 60)  # that of the images of the kit
    network = build("compact", image_size=16, seed=0).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train, test, names = splits(kit, "trainval")
    options = Voc07Options(layers=layers, **QUICK)
    found = dict(voc07(network, train, test, names, options, image_size=16, scratch=scratch_in(tmp_path)))
    assert [name for name in found if name.startswith("ap_")] == [f"ap_{name}" for name in CLASSES]
    assert found["map"] == pytest.approx(np.mean([found[f"ap_{name}"] for name in CLASSES]))
    assert found["map"] > found["chance"] + 0.1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_it_depends_on_the_seed_alone(kit, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "LONGER_SIDE", 60)
    network = build("compact", image_size=16, seed=0).eval()
    train, test, names = splits(kit, "trainval")
    options = Voc07Options(iterations=3, batch_size=8, crops=2)

    def found(seed: int) -> dict[str, float]:
        scratch = scratch_in(tmp_path)
        return dict(voc07(network, train, test, names, options, image_size=16, scratch=scratch, seed=seed))

    assert found(0) == found(0) != found(1)


def changed_by(options: Voc07Options) -> set[str]:
    """What three steps on AlexNet's paper layers change."""
    network = build("alexnet", image_size=224, sobel=True).eval()
    small = nn.Sequential(nn.Dropout(0.5), nn.Linear(9216, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8))
    network.body.classifier, network.feature_dim = small, 8
    trained = room._prepare(network, 2, options, seed=0)
    if options.layers == "top":
        assert (small[1].bias == 0.1).all() and (network.head.bias == 0.1).all()
        assert small[1].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert small.training and not network.body.features.training
    known = {id(parameter) for parameter in trained}
    return {name for name, parameter in network.named_parameters() if id(parameter) in known}


def test_which_layers_are_trained():
    top = {f"body.classifier.{i}.{kind}" for i in (1, 4) for kind in ("weight", "bias")} | {"head.weight", "head.bias"}
    norms = {f"body.features.{i}.{kind}" for i in (1, 5, 9, 12, 15) for kind in ("weight", "bias")}
    convolutions = {f"body.features.{i}.{kind}" for i in (0, 4, 8, 11, 14) for kind in ("weight", "bias")}
    assert changed_by(Voc07Options()) == top
    assert changed_by(Voc07Options(train_batchnorm=True)) == top | norms
    assert changed_by(Voc07Options(layers="all")) == top | norms | convolutions  # and not the Sobel filter


def test_the_steps_halve(kit, tmp_path, monkeypatch):
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            total = sum(float(p.grad.norm()) ** 2 for group in self.param_groups for p in group["params"]) ** 0.5
            assert total <= 10.001
            return super().step(closure)

    monkeypatch.setattr(room, "SGD", Watched)
    train, test, names = splits(kit, "train")
    options = Voc07Options(split="train", iterations=5, step_size=2, lr=0.1, batch_size=4, crops=1)
    network = build("compact", image_size=16).eval()
    dict(voc07(network, train, test, names, options, image_size=16, scratch=scratch_in(tmp_path)))
    assert seen == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


def test_by_the_command(kit, tmp_path, capsys):
    run = tiny_run(tmp_path / "run")
    (run / "run.json").write_text("{}")
    arguments = ["evaluate", str(run), str(kit), "--protocol", "voc07", "--json", "--set", "iterations=3", "crops=2"]
    assert run_command(arguments) == 0
    found = json.loads(capsys.readouterr().out)["values"]
    assert (found["train_images"], found["images"], found["classes"]) == (40, 20, 3)
    assert not list(run.glob(".evaluate-*"))


def test_what_is_wrong_is_said(kit, tmp_path):
    for options in ({"split": "test"}, {"layers": "fc7"}, {"crop_min": 0.9}, {"crops": 0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            Voc07Options(**options)
    with pytest.raises(DataError, match="VOCdevkit/VOC2007"):
        devkit(str(tmp_path))
    lists = Path(shutil.copytree(kit, tmp_path / "copy")) / "ImageSets" / "Main"
    for file, content, said in (
        ("blob_test.txt", "000002 5\n", "1, 0 or -1"),
        ("blob_test.txt", "000002 1\n", "not of the same images"),
        ("blob_test.txt", (kit / "ImageSets/Main/blob_test.txt").read_text().replace(" 1", "-1"), "class blob"),
    ):
        (lists / file).write_text(content)
        with pytest.raises(DataError, match=said):
            splits(tmp_path / "copy", "trainval")
