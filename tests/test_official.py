"""Published weights: files as the authors' programs wrote them, against forward passes written from the descriptions.

None of the real files is here (they are CC BY-NC, and could not be fetched): these have their names, shapes, formats.
"""

import base64
import io
import pickle
import pickletools
import re
import tarfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from deepcluster.errors import ModelError
from deepcluster.nets.network import build, from_official
from deepcluster.nets.published_2018 import read_official, recognised
from deepcluster.nets.weights import read_checkpoint, shapes_only
from deepcluster.seeding import generator, lent_global

K = 5  # pseudo-labels
IDENT = 139_872_341_234_512  # where Python 2 had a parameter in memory
MEAN, STD = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

# Outputs, kernel, stride and padding of a convolution with batch normalisation and ReLU, or kernel and stride of a
# maximum; then the two linear layers.
LAYERS: dict[str, list[tuple[int, ...]]] = {
    "alexnet": [
        (96, 11, 4, 2), (3, 2), (256, 5, 1, 2), (3, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1), (3, 2),
    ],
    "vgg16": [
        *[(64, 3, 1, 1)] * 2, (2, 2), *[(128, 3, 1, 1)] * 2, (2, 2), *[(256, 3, 1, 1)] * 3, (2, 2),
        *[(512, 3, 1, 1)] * 3, (2, 2), *[(512, 3, 1, 1)] * 3, (2, 2),
    ],
}  # fmt: skip
WIDTH = {"alexnet": 9216, "vgg16": 25088}


def described(arch: str, *, sobel: bool) -> nn.Sequential:
    """A network of 2018 by its description, as if trained; it ends with a ReLU and ``top_layer``."""
    inputs, features = 2 if sobel else 3, []
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with lent_global(0, "official"):
        if sobel:
            layers["sobel"] = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1))
        for numbers in LAYERS[arch]:
            if len(numbers) == 2:
                features.append(nn.MaxPool2d(*numbers))
            else:
                features += [nn.Conv2d(inputs, *numbers), nn.BatchNorm2d(numbers[0]), nn.ReLU(inplace=True)]
                inputs = numbers[0]
        linear = [nn.Linear(WIDTH[arch], 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, 4096)]
        linear = [nn.Dropout(0.5), *linear] if arch == "alexnet" else linear
        layers |= {"features": nn.Sequential(*features), "flat": nn.Flatten(), "classifier": nn.Sequential(*linear)}
        layers |= {"relu": nn.ReLU(), "top_layer": nn.Linear(4096, K)}
        return as_trained(nn.Sequential(layers))


def as_trained(network: nn.Module) -> nn.Module:
    """With normalisation that does something, and numbers that neither vanish nor grow from layer to layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5)
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.2)
    return network.eval()


def of_2018(network: nn.Module) -> OrderedDict[str, Tensor]:
    """The state_dict as in a file of 2018."""
    return OrderedDict(
        (name.replace("features.", "features.module."), value)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


def images_of(seed: int) -> Tensor:
    return torch.rand(2, 3, 224, 224, generator=generator(seed, "official images"))


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def checkpoint_of(arch: str, state: OrderedDict[str, Tensor]) -> dict[str, object]:
    """All that the program of 2018 saved; the optimizer names parameters by their addresses."""
    group = {"lr": 0.05, "momentum": 0.9, "dampening": 0, "nesterov": False, "weight_decay": 1e-05, "params": [IDENT]}
    optimizer = {"state": {IDENT: {"momentum_buffer": torch.ones(3)}}, "param_groups": [group]}
    return {"epoch": 7, "arch": arch, "state_dict": state, "optimizer": optimizer}


def save_legacy(content: object, path: Path) -> Path:
    torch.save(content, path, pickle_protocol=2, _use_new_zipfile_serialization=False)
    return path


def save_python2(content: object, path: Path) -> Path:
    """As Python 2 spells it: str as bytes, and whole numbers of more than 32 bits as text."""
    modern = save_legacy(content, path).read_bytes()
    stream, words = io.BytesIO(modern), bytearray()
    for part in range(5):
        for opcode, value, position in pickletools.genops(stream):
            if opcode.name == "BINUNICODE":
                length = len(value).to_bytes(1 if len(value) < 256 else 4, "little")
                words += (b"U" if len(length) == 1 else b"T") + length + value.encode("latin1")
            elif opcode.name == "LONG1" and part > 0:
                words += b"I%d\n" % value
            else:
                words += modern[position : stream.tell()]
    path.write_bytes(bytes(words) + modern[stream.tell() :])
    return path


@pytest.fixture(scope="module")
def alexnet():
    return of_2018(described("alexnet", sobel=True))


@pytest.mark.parametrize("arch", LAYERS)
@pytest.mark.parametrize("sobel", [True, False])
def test_the_layers_are_those_of_the_description(arch, sobel):
    with shapes_only():
        ours, theirs = build(arch, image_size=224, sobel=sobel).body, described(arch, sobel=sobel)
    for part in ("features", "classifier", *["sobel"] * sobel):
        assert str(ours.get_submodule(part)) == str(theirs.get_submodule(part))  # with all sizes


# The others are slow: files of up to half a gigabyte.
@pytest.mark.parametrize(
    ("arch", "sobel"),
    [
        pytest.param(arch, sobel, marks=[] if (arch, sobel) == ("alexnet", True) else [pytest.mark.slow])
        for arch in LAYERS
        for sobel in (True, False)
    ],
)
def test_a_file_of_2018_computes_as_its_description(tmp_path, arch, sobel):
    theirs, images = described(arch, sobel=sobel), images_of(1)
    write = save_python2 if (arch, sobel) == ("alexnet", True) else save_legacy
    path = write(checkpoint_of(arch, of_2018(theirs)), tmp_path / "checkpoint.pth.tar")
    network = from_official(path).eval()
    path.unlink()
    assert network.architecture == {"name": arch, "image_size": 224, "sobel": sobel, "second_size": 0}
    with torch.no_grad():
        features = theirs[:-2]((images - MEAN) / STD)
        assert features.min() < 0
        assert_near(network.features(images), features)
        assert_near(network(images), theirs[-2:](features))


# Names


@pytest.mark.parametrize("prefixes", [("features.module.", ""), ("features.", ""), ("features.module.", "module."),
                                      ("features.", "module.")], ids=str)  # fmt: skip
@pytest.mark.parametrize("without", [(), ("top_layer.",), ("sobel.",), ("top_layer.", "sobel.")], ids=str)
@pytest.mark.parametrize("counts", [False, True])
def test_names_with_and_without_prefixes(alexnet, prefixes, without, counts):
    features, before = prefixes
    plain = {name.replace("features.module.", "features."): value for name, value in alexnet.items()}
    plain = {name: value for name, value in plain.items() if not name.startswith(without)}
    if counts:
        plain["features.1.num_batches_tracked"] = torch.tensor(3)
    given = {before + re.sub(r"^features\.", features, name): value for name, value in plain.items()}
    found = recognised(given, "a.pth.tar")
    assert (found.release, found.backbone, found.sobel) == ("DeepCluster", "alexnet", "sobel." not in without)
    assert (found.head and len(found.head[1])) == (None if "top_layer." in without else K)
    expected = {name: value for name, value in plain.items() if not name.startswith("top_layer.")}
    assert found.state.keys() == expected.keys()
    assert all(found.state[name] is expected[name] for name in expected)


def test_names_that_are_of_other_networks():
    others = [
        torchvision.models.vgg16_bn, torchvision.models.alexnet, torchvision.models.densenet121,
        torchvision.models.mobilenet_v2, torchvision.models.squeezenet1_0, torchvision.models.resnet50,
    ]  # fmt: skip
    for make in others:
        with torch.device("meta"):
            state = make(weights=None).state_dict()
        assert recognised(state, "a.pt") is None, make.__name__
    # torchvision's own examples train features in parallel, too
    assert (
        recognised({name: torch.zeros(2) for name in ("features.module.0.weight", "classifier.6.weight")}, "") is None
    )
    for name in ("compact", "timm:resnet18", "timm:densenet121", "timm:vgg16_bn"):
        with shapes_only():
            state = build(name, image_size=32, feature_dim=1).body.state_dict()
        assert recognised(state, "a.pt") is None, name


# DeepCluster-v2


def of_2020(network: nn.Module, heads: int = 3) -> OrderedDict[str, Tensor]:
    state = OrderedDict((f"module.{name}", value) for name, value in network.state_dict().items())
    mlp = nn.Sequential(nn.Linear(2048, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8))
    state |= {f"module.projection_head.{name}": value for name, value in mlp.state_dict().items()}
    return state | {f"module.prototypes.prototypes{h}.weight": torch.zeros(9, 8) for h in range(heads)}


def test_deepcluster_v2_equals_torchvision(tmp_path):
    with lent_global(0, "resnet"):
        resnet = as_trained(torchvision.models.resnet50(weights=None))
    resnet.fc = nn.Identity()
    state = of_2020(resnet)
    content = {"epoch": 400, "state_dict": state, "optimizer": checkpoint_of("", state)["optimizer"]}
    path = save_python2(content, tmp_path / "v2.pth.tar")
    found, network = read_official(path), build("timm:resnet50", image_size=224, weights=str(path))
    path.unlink()
    heads = ("module.projection_head.", "module.prototypes.")
    assert found.dropped == tuple(name for name in state if name.startswith(heads)) and len(found.dropped) == 12
    assert network.origin == "DeepCluster-v2, resnet50; left out: projection_head, prototypes"
    images = images_of(4)
    with torch.no_grad():
        assert_near(network.eval().features(images), resnet((images - MEAN) / STD))
    assert network.head is None


# What does not fit


@pytest.mark.parametrize(("name", "sobel"), [("alexnet", False), ("vgg16", True), ("compact", False),
                                             ("timm:resnet50", False)])  # fmt: skip
def test_the_wrong_network_is_told_the_right_one(alexnet, tmp_path, monkeypatch, name, sobel):
    monkeypatch.setattr("deepcluster.nets.network.read_state", lambda path: alexnet)
    with pytest.raises(ModelError) as caught:
        build(name, image_size=224, sobel=sobel, weights="alex.pth.tar")
    published, way_out = "DeepCluster, alexnet behind a Sobel filter", "give --backbone alexnet --set sobel=true"
    assert all(part in str(caught.value) for part in ("alex.pth.tar", name, published, way_out))


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"top_layer.weight": (3, 4096)}, "top_layer.weight (3, 4096)"),
        ({"top_layer.weight": (3, 4096), "top_layer.bias": (4,)}, "top_layer.bias (4,)"),
        ({"top_layer.weight": (3, 4095), "top_layer.bias": (3,)}, "top_layer.weight (3, 4095)"),
        ({"top_layer.weight": (3, 4096), "top_layer.bias": (3,), "top_layer.scale": (3,)}, "top_layer.scale"),
        ({"top_layer.weight": (0, 4096), "top_layer.bias": (0,)}, "top_layer.bias (0,)"),
        ({"features.0.weight": (2,), "top_layer.bias": (2,)}, "has features.0.weight twice"),
    ],
)
def test_tensors_that_do_not_fit(shapes, told):
    state = {name: torch.zeros(shape) for name, shape in shapes.items()} | {"features.module.0.weight": torch.ones(2)}
    with pytest.raises(ModelError, match=re.escape(told)) as caught:
        recognised(state, "bad.pth.tar")
    assert "bad.pth.tar" in str(caught.value)


# Python 2


# Made by CPython 2.7.18 (cPickle, protocol 2): the content below, on "cuda:0", in the order in which torch 0.3 wrote
# it, by stand-ins for its storages and tensors (torch itself is not needed to pickle them).
PYTHON2 = base64.b64decode(
    "gAKKCmz8nEb5IGqoUBkugAJN6QMugAJ9cQEoVRBwcm90b2NvbF92ZXJzaW9ucQJN6QNVCnR5cGVfc2l6ZXNxA31xBChVA2ludHEF"
    "SwRVBXNob3J0cQZLAlUEbG9uZ3EHSwR1VQ1saXR0bGVfZW5kaWFucQiIdS6AAn1xAShVCnN0YXRlX2RpY3RxAmNjb2xsZWN0aW9u"
    "cwpPcmRlcmVkRGljdApxA11xBChdcQUoVRhmZWF0dXJlcy5tb2R1bGUuMC53ZWlnaHRxBmN0b3JjaC5fdXRpbHMKX3JlYnVpbGRf"
    "dGVuc29yCnEHKChVB3N0b3JhZ2VxCGN0b3JjaApGbG9hdFN0b3JhZ2UKcQlVDjkzMDAwMDAwMDAwMDAwcQpVBmN1ZGE6MHELSwZO"
    "dFFLAEsDSwKGcQxLAksBhnRScQ1lXXEOKFUWZmVhdHVyZXMubW9kdWxlLjAuYmlhc3EPaAcoKGgIaAlVDjkzMDAwMDAwMDAwMDY0"
    "cRBoC0sDTnRRSwBLA4VxEUsBhXRScRJlZYVScRNVBWVwb2NocRRLB1UEYXJjaHEVVQdhbGV4bmV0cRZVCW9wdGltaXplcnEXfXEY"
    "KFUFc3RhdGVxGX1xGkkxMzk4NzIzNDEyMzQ1MTIKfXEbVQ9tb21lbnR1bV9idWZmZXJxHGgHKChoCGgJVQ45MzAwMDAwMDAwMDEy"
    "OHEdaAtLBk50UUsASwNLAoZxHksCSwGGdFJxH3NzVQxwYXJhbV9ncm91cHNxIF1xIX1xIihVCWRhbXBlbmluZ3EjSwBVCG5lc3Rl"
    "cm92cSSJVQJscnElRz+pmZmZmZmaVQZwYXJhbXNxJl1xJyhJMTM5ODcyMzQxMjM0NTEyCkkxMzk4NzIzNDEyMzQ1ODQKZVUMd2Vp"
    "Z2h0X2RlY2F5cShHPuT4tYjjaPFVCG1vbWVudHVtcSlHP+zMzMzMzM11YXV1LoACXXEBKFUOOTMwMDAwMDAwMDAwMDBxAlUOOTMw"
    "MDAwMDAwMDAwNjRxA1UOOTMwMDAwMDAwMDAxMjhxBGUuBgAAAAAAAAAAAAAAAACAPgAAAD8AAEA/AACAPwAAoD8DAAAAAAAAAAAA"
    "gD8AAKA/AADAPwYAAAAAAAAAAAAAQAAAEEAAACBAAAAwQAAAQEAAAFBA"
)


def test_a_file_of_python_2(tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    path.write_bytes(PYTHON2)
    with pytest.raises(pickle.UnpicklingError, match="operand 73"):  # if torch reads it, our translation can go
        torch.load(path, map_location="cpu", weights_only=True)
    content = read_checkpoint(path)
    assert (content["epoch"], content["arch"]) == (7, "alexnet")
    state = content["state_dict"]
    assert list(state) == ["features.module.0.weight", "features.module.0.bias"]
    assert torch.equal(state["features.module.0.weight"], torch.arange(6).view(3, 2) / 4)
    assert torch.equal(state["features.module.0.bias"], 1 + torch.arange(3) / 4)
    optimizer = content["optimizer"]
    assert torch.equal(optimizer["state"][IDENT]["momentum_buffer"], 2 + torch.arange(6).view(3, 2) / 4)
    group = checkpoint_of("alexnet", state)["optimizer"]["param_groups"][0]
    assert optimizer["param_groups"] == [group | {"params": [IDENT, IDENT + 72]}]


def test_large_numbers_and_long_texts_of_python_2(tmp_path):
    given = {"n": [2**31, -(2**31) - 1, 2**40, 2**63 - 1, -(2**63)], "s": "é" * 255, "t": "é" * 256}
    content = read_checkpoint(save_python2(given | {"x": torch.ones(2)}, tmp_path / "a.pt"))
    assert torch.equal(content.pop("x"), torch.ones(2)) and content == given


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_file_of_python_2(tmp_path):
    path = tmp_path / "cut.pth.tar"
    for end in range(0, len(PYTHON2), 3):
        path.write_bytes(PYTHON2[:end])
        with pytest.raises(ModelError, match=r"cut.pth.tar: (cannot be read as weights|the file is empty)"):
            read_checkpoint(path)
    random = generator(0, "damage")
    for at in torch.randint(0, len(PYTHON2), (200,), generator=random).tolist():
        path.write_bytes(PYTHON2[:at] + bytes([PYTHON2[at] ^ 0x55]) + PYTHON2[at + 1 :])
        with suppress(ModelError):
            read_checkpoint(path)


def test_files_of_something_else_or_of_the_first_months(tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"a.pt: has none of the published layouts"):
        read_official(tmp_path / "a.pt")
    with tarfile.open(tmp_path / "old.pth.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(ModelError, match=r"old.pth.tar: .*a tar archive of PyTorch 0.1.8 or older"):
        read_official(tmp_path / "old.pth.tar")
