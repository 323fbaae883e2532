"""`deepcluster evaluate`: what all protocols share, and the protocol ``clustering``."""

import json
import os
import re
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from deepcluster.cli import _figure_lines, run_command
from deepcluster.clustering import whiten
from deepcluster.errors import DataError, NonFiniteError
from deepcluster.evaluation import ClusteringOptions, KnnOptions, LinearOptions, common
from deepcluster.evaluation import linear as probe
from deepcluster.evaluation.common import Labelled, ProbeTask, clustering, knn
from deepcluster.evaluation.feature_maps import layers_of, maps_at, pooling_of
from deepcluster.evaluation.linear import linear
from deepcluster.images import find
from deepcluster.images.views import fixed_view
from deepcluster.nets.network import Network, build
from deepcluster.nets.weights import shapes_only
from deepcluster.runtime.partition import Partition
from tests.drawings import KINDS, drawings, pack
from tests.helpers.features import normal
from tests.helpers.runs import Said, change_record, rows
from tests.test_nets import same, snapshot


@pytest.fixture
def evaluated(run, prints):
    """Returns the figures of `deepcluster evaluate` of the run."""
    return lambda *arguments: json.loads(prints("evaluate", run, *arguments, "--json"))["values"]


def test_agreement_by_hand():
    # Classes aabb, clusters 0 1 1 1: the best matching is a-0, b-1, three of four right.
    figures = dict(clustering([0, 1, 1, 1, 7], ["a", "a", "b", "b", ""], seed=3))
    assert (figures["images"], figures["classes"], figures["clusters"]) == (4, 2, 2)
    assert figures["acc"] == 0.75
    assert figures["ari"] == 0.0  # pairs together in both: 1; expected: 2 * 3 / 6
    # Of the six orders of aabb, each gives the same table up to names: 0.75 again.
    assert figures["acc_chance"] == 0.75
    with pytest.raises(DataError):
        list(clustering([0, 1], ["", ""]))


def test_the_chance_level_is_that_of_labels_in_another_order():
    labels = [str(i % 4) for i in range(400)]
    perfect = dict(clustering([int(label) for label in labels], labels, seed=1))
    assert perfect["acc"] == perfect["nmi"] == perfect["ari"] == 1.0
    assert 0.25 < float(perfect["acc_chance"]) < 0.35
    assert abs(float(perfect["ari_chance"])) < 0.02
    again, other = (dict(clustering([*map(int, labels)], labels, seed=seed)) for seed in (1, 2))
    assert again == perfect != other
    assert "acc_chance" not in dict(clustering([0, 1], ["a", "b"], ClusteringOptions(shuffles=0)))


def test_held_out_is_a_fifth_and_depends_on_the_seed():
    def parts(count: int, seed: int = 0) -> list[list[int]]:
        source, labels = find(np.zeros((count + 1, 2, 2), np.uint8)), ["", *map(str, range(count))]
        train, train_labels, test, test_labels = common.hold_out(source, labels, seed)
        assert [labels[int(path)] for path in train.paths + test.paths] == train_labels + test_labels
        return [[int(path) for path in part.paths] for part in (train, test)]

    train, test = parts(101)
    assert len(test) == 20 and train == sorted(train) and test == sorted(test)
    assert sorted(train + test) == list(range(1, 102))  # the image without a label is in neither
    assert test == parts(101)[1] != parts(101, seed=1)[1]
    assert [len(part) for part in parts(2)] == [1, 1]
    with pytest.raises(DataError):
        parts(1)


def test_accuracies_by_hand():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert common.accuracies(scores, torch.tensor([1, 0, 0, 0])) == {"top1": 0.75}
    scores = torch.eye(6)[[0, 1, 2]] + torch.arange(6) / 100  # the least, beside the one of the row, is class 0 or 1
    assert common.accuracies(scores, torch.tensor([0, 0, 5])) == pytest.approx({"top1": 1 / 3, "top5": 2 / 3})


def test_clusters_of_the_run_itself(run, photos, evaluated):
    figures = evaluated("--labels", "folders")
    table = [(int(row["cluster"]), row["path"].split("/")[0]) for row in rows(run / "clusters.csv")]
    assert figures == dict(clustering(*zip(*table, strict=True)))
    assert evaluated(photos, "--labels", "folders") == figures  # by the model: as fit places them
    assert evaluated(photos) == evaluated() == figures  # the labels of the fit


def test_a_round_is_scored_by_its_checkpoint(fitted, photos, tmp_path, prints, ends):
    """The last round has the clusters of the result, and round 0 those of the first result."""
    options = ("--recipe", "classic", "--labels", "folders", "--rounds", "3", "--keep-checkpoints", "2")
    run = Path(shutil.copytree(fitted(*options), tmp_path / "run"))
    assert sorted(path.stem for path in run.glob("checkpoints/*.json")) == ["000000", "000002", "000003"]

    def figures(*arguments):
        return json.loads(prints("evaluate", run, *arguments, "--json"))["values"]

    result, metrics = figures(), json.loads((run / "metrics.json").read_text())
    by_round = {number: figures("--round", number) for number in (0, 2, 3)}
    assert by_round[3] == result != by_round[2]
    for name in ("acc", "nmi", "ami", "ari"):
        assert by_round[0][name] == pytest.approx(metrics[f"baseline_{name}"], abs=1e-5)
    for more in ((), ("--set", "reduced=false")):
        assert figures("--round", 3, "--protocol", "knn", *more) == figures("--protocol", "knn", *more)
    assert figures("--round", 0, "--protocol", "linear") != figures("--protocol", "linear")
    (run / "checkpoints/000002.safetensors").write_bytes(b"damaged")
    for number, code in ((1, 4), (2, 4), (-1, 2)):
        ends(["evaluate", run, "--protocol", "knn", "--round", number], code)
    ends(["evaluate", run, photos, "--round", 4], 2)
    ends(["fit", photos, "-o", tmp_path / "new", "--keep-checkpoints", 0], 2)


def test_labels_of_a_table_need_no_images(run, photos, tmp_path, evaluated, ends):
    change_record(run, location=str(tmp_path / "gone"))
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nbars/00.png,x\nblob/01.png,y\n")
    assert evaluated("--labels", labels)["images"] == 2
    assert evaluated()["images"] == 48  # clusters.csv has the labels of the fit
    ends(["evaluate", run, "--labels", "folders"], 3)
    change_record(run, labels=None)
    ends(["evaluate", run], 2)


@pytest.mark.parametrize(("protocol", "figure"), [("clustering", "acc"), ("knn", "top1_k20")])
def test_it_is_said_that_some_images_of_the_run_are_missing(run, photos, tmp_path, capsys, protocol, figure):
    images = shutil.copytree(photos, tmp_path / "photos")
    shutil.rmtree(images / "bars")
    change_record(run, location=str(images))
    assert run_command(["evaluate", str(run), "--labels", "folders", "--protocol", protocol]) == 0
    printed = capsys.readouterr()
    assert re.search(r"\b16 .*48\b", printed.err) and str(images) in printed.err
    assert re.search(rf"^{figure} +\d\.\d{{4}}$", printed.out, re.MULTILINE)


def test_figures_are_kept_unless_a_signal_stops_them_and_not_computed_again(run, evaluated, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("deepcluster.clustering.agreement.scores", lambda *_: signal.raise_signal(signal.SIGINT))
        assert run_command(["evaluate", str(run), "--labels", "folders", "--json"]) == 75
    told = json.loads(capsys.readouterr().out)
    assert told["code"] == 75 and "SIGINT" in told["error"]
    assert not (run / "evaluation-clustering.json").exists()

    first = evaluated("--labels", "folders")
    kept = json.loads((run / "evaluation-clustering.json").read_text())
    assert kept["values"] == first

    with monkeypatch.context() as patch:
        patch.setattr("deepcluster.clustering.agreement.scores", None)  # to compute anything is an error now
        assert evaluated("--labels", "folders") == first
        # Another number of shuffles is another question.
        assert run_command(["evaluate", str(run), "--labels", "folders", "--set", "shuffles=2"]) == 1
    # So is another seed, and another assignment.
    assert evaluated("--labels", "folders", "--seed", 1)["acc_chance"] != first["acc_chance"]
    assert run_command(["recut", str(run), "-k", "2", "--quiet"]) == 0
    assert evaluated("--labels", "folders")["clusters"] == 2


def test_a_damaged_file_is_written_again(run, evaluated):
    figures = evaluated("--labels", "folders")
    file = run / "evaluation-clustering.json"
    whole = file.read_text()
    odd = [json.dumps(json.loads(whole) | {"values": {"acc": value}}) for value in ([1], {"top1": [1]})]
    for content in ("{", "[]", *odd):
        file.write_text(content)
        assert evaluated("--labels", "folders") == figures
        assert file.read_text() == whole


def test_images_to_learn_from_and_to_be_scored_on(run, photos, tmp_path, evaluated, ends):
    apart = tmp_path / "apart"
    for kind in ("bars", "blob"):
        shutil.copytree(photos / kind, apart / kind)
    (apart / "bars" / "00.png").write_text("no image")
    common = ("--labels", "folders", "--protocol", "knn", "--set", "neighbours=1")
    figures = evaluated(*common)  # a fifth is held out
    assert (figures["train_images"], figures["images"]) == (39, 9)
    assert evaluated(*common[2:]) == figures
    figures = evaluated(apart, *common)
    assert (figures["train_images"], figures["images"], figures["top1_k1"]) == (48, 31, 1.0)  # copies of what it learnt
    figures = evaluated(photos, "--train", apart, *common)
    assert (figures["train_images"], figures["images"], figures["classes"]) == (31, 48, 3)
    assert figures["top1_k1"] == pytest.approx(32 / 48, abs=0.03)  # nothing of the third class was learnt
    assert not list(run.glob(".evaluate-*"))

    (tmp_path / "link").symlink_to(photos)
    assert "link" in ends(["evaluate", run, tmp_path / "link", *common], 3)


# Images to score that are those to learn from: what is learnt from, what is scored, and how many are the same.
SAME = {
    "a link to it": ("photos", "link", 4),
    "hard links": ("photos", "hard", 4),
    "a list of links": ("photos", "list.txt", 4),
    "one of its shards": ("shards", "shards/1.tar", 2),
    "a link to a shard": ("shards", "link.tar", 2),
    "a link to an array": ("a.npy", "b.npy", 4),
    "copies": ("photos", "copies", 0),
    "the same names in another shard": ("shards", "other.tar", 0),
}


@pytest.mark.parametrize("way", SAME)
def test_images_are_not_scored_that_were_learnt_from_by_another_name(way, tmp_path):
    for folder in ("0", "1"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "photos" / folder / f"{i}.png").write_bytes(b"never decoded")
        for shard in (f"shards/{folder}.tar", "other.tar"):
            pack(tmp_path / shard, {"images": tmp_path / "photos" / folder})
    for link, target in (("link", "photos"), ("link.tar", "shards/0.tar"), ("b.npy", "a.npy")):
        (tmp_path / link).symlink_to(tmp_path / target)
    shutil.copytree(tmp_path / "photos", tmp_path / "hard", copy_function=os.link)
    shutil.copytree(tmp_path / "photos", tmp_path / "copies")
    files = sorted((tmp_path / "link").glob("*/*.png"))
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    np.save(tmp_path / "a.npy", np.zeros((4, 2, 2), np.uint8))
    learnt, scored, count = SAME[way]
    train, test = find(str(tmp_path / learnt)), find(str(tmp_path / scored))
    refused = pytest.raises(DataError, match=f"^{count} ")
    with refused if count else nullcontext():
        common.check_apart(train, test)


# ---- the protocols ``knn`` and ``linear``: parts by hand, and the results against scikit-learn -----------------------


def task_of(seed: int = 0) -> ProbeTask:
    images, kinds = drawings(40, size=18)
    train, test = torch.randperm(120, generator=torch.Generator().manual_seed(1)).tensor_split([90])
    labelled = [
        Labelled(images[rows], torch.tensor(kinds)[rows], Partition.single(len(rows))) for rows in (train, test)
    ]
    return ProbeTask(build("compact", image_size=16, seed=0).eval(), *labelled, KINDS, 16, 16, seed)


# knn


# The smallest would overflow.
@pytest.mark.parametrize(("temperature", "tolerance"), [(1e-3, 1e-3), (0.07, 2e-5), (0.5, 2e-5)])
def test_votes_are_those_of_scikit_learn(temperature, tolerance):
    train, test = F.normalize(normal(333, 12, 0)), F.normalize(normal(100, 12, 1))
    classes = torch.randint(4, (333,), generator=torch.Generator().manual_seed(2))
    counts = [20, 5, 333]
    for k, votes in zip(counts, common.weighted_votes(train, classes, test, counts, temperature, 4), strict=True):
        theirs = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / temperature)
        )
        theirs.fit(train.double().numpy(), classes.numpy())
        np.testing.assert_allclose(votes.numpy(), theirs.predict_proba(test.double().numpy()), atol=tolerance)


@pytest.mark.parametrize("reduced", [True, False])
def test_the_protocol_on_reduced_features_and_on_those_of_the_backbone(reduced):
    task = task_of()
    whitened = whiten(normal(200, 128, 3), 8)
    figures = dict(knn(replace(task, reduction=lambda: whitened), KnnOptions(neighbours="3,1000", reduced=reduced)))
    assert list(figures) == ["train_images", "images", "classes", "chance", "top1_k3", "top1_k90"]
    most = int(torch.bincount(task.train.classes).argmax())
    assert figures["chance"] == pytest.approx(float((task.test.classes == most).float().mean()))

    with torch.no_grad():
        rows = (task.network.features(fixed_view(part.images, 16)) for part in (task.train, task.test))
        train, test = map(whitened if reduced else F.normalize, rows)
    theirs = KNeighborsClassifier(3, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    right = theirs.fit(train, task.train.classes).score(test, task.test.classes)
    assert figures["top1_k3"] == pytest.approx(right)


# linear


# By layer: how many numbers are left after the average of the literature, or the channels and sides of the maps.
@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("alexnet", 224, [9600, 9216, 9600, 9600, 9216]),
        ("vgg16", 224, [9216] * 2 + [8192] * 2 + [9216] * 3 + [8192] * 6),
        ("compact", 32, [(16, 32), (32, 32), (32, 16), (64, 16), (128, 8), (128, 4)]),
        ("timm:resnet18", 64, [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)]),
        ("timm:test_vit", 160, [(64, 10)] * 6),  # tokens, without those that stand for the image
        ("timm:swin_tiny_patch4_window7_224", 224, [(96, 56), (192, 28), (384, 14), (768, 7)]),  # channels come last
    ],
)
def test_layers_and_how_they_are_pooled(name, size, expected):
    with shapes_only():
        network = build(name, image_size=size, feature_dim=8).eval()
        for layer, right in zip(layers_of(network), expected, strict=True):
            maps = maps_at(network, layer, torch.zeros(1, 3, size, size))
            text, pooling = pooling_of(layer, maps.shape, size)
            numbers = pooling(maps).flatten(1).shape[1]
            assert right in (numbers, tuple(maps.shape[1:3])) and maps.shape[2] == maps.shape[3] and numbers < 10_000
            assert text.startswith("average") == (name in ("alexnet", "vgg16"))
    if name == "alexnet":  # the zeros of the border count
        pooled = pooling_of(layers_of(network)[2], (1, 384, 13, 13), 224)[1](torch.ones(1, 1, 13, 13))[0, 0]
        assert pooled[[0, 4, 0, 2, 2], [0, 4, 2, 4, 2]].tolist() == pytest.approx([4 / 9, 4 / 9, 6 / 9, 6 / 9, 1])


def test_maps_are_those_after_the_relu_and_before_pooling():
    network = build("alexnet", image_size=224, sobel=True).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    body = network.body
    body.features[7].register_forward_hook(lambda *_: pytest.fail("a layer above is computed"))
    with torch.no_grad():
        maps = maps_at(network, layers_of(network)[1], images)
        by_hand = body.features[:7](body.sobel((images - network.mean) / network.std))
    assert isinstance(body.features[6], nn.ReLU)
    assert torch.equal(maps, by_hand)
    assert maps.min() == 0
    _, pooling = pooling_of(layers_of(network)[1], maps.shape, 64)  # 7 x 7 of 256: 6 x 6 are fewer than 10,000
    assert pooling(maps).flatten(1).shape == (2, 9216)


def test_the_learning_rate_of_a_probe_falls_as_published():
    # 90 epochs of ImageNet (5,005 iterations an epoch), as the release computes it.
    assert probe.lr_at(0, 0.01, 1e-7) == 0.01
    assert probe.lr_at(90 * 5005, 0.01, 1e-7) == pytest.approx(0.0099977, abs=1e-7)
    assert probe.lr_at(90 * 5005, 0.01, 1e-4) == pytest.approx(0.0083, abs=5e-5)


def test_ten_crops_are_the_five_of_torchvision_and_the_same_mirrored():
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    five = transforms.five_crop(images, 2)
    assert torch.equal(torch.stack(probe.ten_crops(images, 2)), torch.stack([*five, *(crop.flip(3) for crop in five)]))


def test_random_crops_are_pixels_of_the_image():
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    images = (10 * y + x).to(torch.uint8).expand(400, 3, 8, 8)
    crops = probe.random_crops(images, 5, torch.Generator().manual_seed(0))[:, 0].int()
    steps = crops[:, :, 1:] - crops[:, :, :-1]
    mirrored = (steps == -1).all(2).all(1)
    assert ((steps == 1).all(2).all(1) | mirrored).all()
    assert (crops[:, 1:] - crops[:, :-1] == 10).all()
    assert 0.4 < mirrored.float().mean() < 0.6
    corners = torch.where(mirrored, crops[:, 0, -1], crops[:, 0, 0])
    assert {*corners.tolist()} == {10 * top + left for top in range(4) for left in range(4)}


def test_probabilities_are_averaged_not_logits():
    # The mean of the logits is (13, 4): class 0. Two of three crops say class 1.
    crops = [torch.tensor([[9.0, 10.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[30.0, 0.0]])]
    assert probe.mean_probabilities(crops)[0, 1] == pytest.approx((0.7311 + 0.8808 + 0) / 3, abs=1e-4)
    assert probe.mean_probabilities(crops).argmax() == 1 != torch.stack(crops).mean(0).argmax()


def colours(count: int, spread: float, seed: int) -> Labelled:
    """Images of one colour each, around that of their class."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (count,), generator=random)
    middles = torch.tensor([[90.0, 128, 128], [128, 90, 150], [150, 150, 90]])
    colour = (middles[classes] + spread * torch.randn(count, 3, generator=random)).clamp(0, 255).to(torch.uint8)
    images = colour[:, :, None, None].expand(count, 3, 8, 8).contiguous()
    return Labelled(images, classes, Partition.single(count))


def plain_network() -> Network:
    """Its maps are the pixels."""
    layer = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(layer.weight)
    return Network(nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3).eval()


def test_the_probe_is_as_good_as_logistic_regression():
    train, test = colours(300, 25, 0), colours(300, 25, 1)
    network = plain_network()
    options = LinearOptions(epochs=60, batch_size=32, weight_decay=0.0)
    figures = dict(linear(ProbeTask(network, train, test, "abc", 7, 32, 0), options))
    pixels = [labelled.images[:, :, 0, 0].float().numpy() / 255 for labelled in (train, test)]
    theirs = LogisticRegression(C=1e4, max_iter=1000).fit(pixels[0], train.classes).score(pixels[1], test.classes)
    assert theirs >= 0.7
    assert abs(figures["block1"]["top1"] - theirs) <= 0.02


def test_the_network_is_left_alone_and_the_layers_do_not_depend_on_each_other():
    task = task_of()
    before = snapshot(task.network)

    def figures(layers: str, seed: int = 0, epochs: int = 2) -> dict:
        return dict(linear(replace(task, seed=seed), LinearOptions(layers=layers, epochs=epochs, batch_size=8)))

    both = figures("block2,block5")
    assert figures("block5").items() <= both.items()
    assert figures("block5", seed=1)["block5"]["loss"] != both["block5"]["loss"]
    assert figures("block2", epochs=20)["block2"]["top1"] > 0.9
    assert not task.network.training
    assert same(task.network.state_dict(), before)


def test_a_loss_above_that_of_guessing_is_said():
    train = colours(40, 25, 0)
    for lr, expected in ((0.01, False), (1000.0, True)):
        said, task = Said(), ProbeTask(plain_network(), train, train, "abc", 8, 8, 0)
        dict(linear(task, LinearOptions(epochs=3, lr=lr), display=said))
        assert any("block1" in line and f"lr={lr / 10:g}" in line for line in said.lines) is expected


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_it_converges_whatever_the_size_of_the_maps(size):
    """Maps of pretrained networks are up to a thousand times as large as AlexNet's."""
    train, test, network = colours(300, 25, 0), colours(300, 25, 1), plain_network()
    with torch.no_grad():
        network.body[0].weight.mul_(size * torch.tensor([1.0, 3.0, 0.1]).view(3, 1, 1, 1))
    task, figures = ProbeTask(network, train, test, "abc", 7, 32, 0), {}
    for maps in ("normalised", "raw"):
        figures[maps] = dict(linear(task, LinearOptions(epochs=20, batch_size=32, maps=maps)))["block1"]
    assert LinearOptions().maps == "normalised"
    assert figures["normalised"]["loss"] < 0.6 and figures["normalised"]["top1"] > 0.7
    assert figures["raw"]["loss"] > 1


def test_normalised_by_hand():
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(500, 4, generator=random) * torch.tensor([1.0, 100.0, 3.0, 1e-9]) + 7
    shift, scale = probe.normalisation(sample)
    rows = (sample - shift) * scale
    assert torch.allclose(rows.mean(0), torch.zeros(4), atol=1e-4)
    deviation = rows.std(0)
    assert deviation[1] == pytest.approx(float(deviation.max())) and deviation[3] < 1e-3 * deviation[1]
    covariance = rows.T @ rows / len(rows)
    assert torch.linalg.eigvalsh(covariance)[-1] == pytest.approx(probe.STEEPEST, rel=1e-4)
    assert torch.equal(probe.normalisation(torch.ones(5, 2))[0], torch.ones(2))  # all alike: finite
    assert torch.isfinite(probe.normalisation(torch.ones(5, 2))[1]).all()


def test_steps_that_are_too_large():
    options = LinearOptions(layers="block5", lr=1e9, weight_decay=1e9, epochs=3, batch_size=8)
    with pytest.raises(NonFiniteError, match=r"block5.*lr"):
        list(linear(task_of(), options))


def test_the_command_prints_a_table_of_the_layers():
    task, options, figures = task_of(), LinearOptions(layers="block2,block5", epochs=1), {}
    lines = [line.split() for line in _figure_lines(linear(task, options), figures)]
    assert figures == dict(linear(task, options))
    assert [line[0] for line in lines] == ["train_images", "images", "classes", "chance", "layer", "block2", "block5"]
    assert lines[4][1:] == ["top1", "loss", "dims", "pooling"]
    assert lines[6][1:3] == [f"{figures['block5'][name]:.4f}" for name in ("top1", "loss")]
