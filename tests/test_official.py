"""Published weights: files as the authors' programs wrote them, against forward passes written from the descriptions.

None of the real files is here (they are CC BY-NC, and could not be fetched): these have their names, shapes, formats.
"""

import base64
import io
import os
import pickle
import pickletools
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.errors import ModelError
from deepcluster.nets.network import Network, build, from_official
from deepcluster.nets.published_2018 import read_official, recognised
from deepcluster.nets.weights import read_checkpoint, shapes_only
from deepcluster.seeding import generator, lent_global

K = 5  # pseudo-labels
IDENT = 139_872_341_234_512  # where Python 2 had a parameter in memory
MEAN, STD = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

# The description, layer by layer: (index, outputs, kernel, stride, padding) of a convolution with batch normalisation
# and ReLU, or (index, kernel, stride) of a maximum; then the two linear layers.
LAYERS: dict[str, list[tuple[int, ...]]] = {
    "alexnet": [
        (0, 96, 11, 4, 2), (3, 3, 2), (4, 256, 5, 1, 2), (7, 3, 2), (8, 384, 3, 1, 1), (11, 384, 3, 1, 1),
        (14, 256, 3, 1, 1), (17, 3, 2),
    ],
    "vgg16": [
        (0, 64, 3, 1, 1), (3, 64, 3, 1, 1), (6, 2, 2), (7, 128, 3, 1, 1), (10, 128, 3, 1, 1), (13, 2, 2),
        (14, 256, 3, 1, 1), (17, 256, 3, 1, 1), (20, 256, 3, 1, 1), (23, 2, 2),
        (24, 512, 3, 1, 1), (27, 512, 3, 1, 1), (30, 512, 3, 1, 1), (33, 2, 2),
        (34, 512, 3, 1, 1), (37, 512, 3, 1, 1), (40, 512, 3, 1, 1), (43, 2, 2),
    ],
}  # fmt: skip
LINEAR = {"alexnet": ((1, 9216), (4, 4096)), "vgg16": ((0, 25088), (3, 4096))}
ARCHS = ("alexnet", "vgg16")


def weights_of(arch: str, *, sobel: bool) -> OrderedDict[str, Tensor]:
    """A state_dict as in a file of 2018, with normalisation that does something."""
    random, state = generator(0, "official", ARCHS.index(arch)), OrderedDict()

    def drawn(*shape: int, around: float = 0.0, by: float = 0.1) -> Tensor:
        return torch.empty(shape).normal_(around, by, generator=random)

    inputs = 2 if sobel else 3
    for index, outputs, kernel, *rest in LAYERS[arch]:
        if not rest:
            continue
        name, norm = f"features.module.{index}", f"features.module.{index + 1}"
        state[f"{name}.weight"] = drawn(outputs, inputs, kernel, kernel, by=(2 / (kernel**2 * inputs)) ** 0.5)
        state |= {f"{name}.bias": drawn(outputs), f"{norm}.weight": drawn(outputs, around=1.0)}
        state |= {f"{norm}.bias": drawn(outputs), f"{norm}.running_mean": drawn(outputs)}
        state[f"{norm}.running_var"] = drawn(outputs, around=1.0).square() + 0.5
        inputs = outputs
    for index, width in LINEAR[arch]:
        state[f"classifier.{index}.weight"] = drawn(4096, width, by=(2 / width) ** 0.5)
        state[f"classifier.{index}.bias"] = drawn(4096)
    state |= {"top_layer.weight": drawn(K, 4096, by=0.01), "top_layer.bias": drawn(K)}
    if sobel:
        across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        down = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
        state |= {"sobel.0.weight": torch.full((1, 3, 1, 1), 1 / 3), "sobel.0.bias": torch.zeros(1)}
        state |= {"sobel.1.weight": torch.stack([across, down])[:, None], "sobel.1.bias": torch.zeros(2)}
    return state


def described(arch: str, state: dict[str, Tensor], images: Tensor, *, sobel: bool) -> dict[str, Tensor]:
    """The output of each layer by its description, from the tensors of a file."""
    x, out = (images - MEAN) / STD, {}
    if sobel:
        x = F.conv2d(x, state["sobel.0.weight"], state["sobel.0.bias"])
        x = out["sobel"] = F.conv2d(x, state["sobel.1.weight"], state["sobel.1.bias"], padding=1)
    for index, *numbers in LAYERS[arch]:
        if len(numbers) == 2:
            x = F.max_pool2d(x, *numbers)
        else:
            _, _, stride, padding = numbers
            name, norm = f"features.module.{index}", f"features.module.{index + 1}"
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)
            shape = (1, -1, 1, 1)
            x = (x - state[f"{norm}.running_mean"].view(shape)) / (
                state[f"{norm}.running_var"].view(shape) + 1e-5
            ).sqrt()
            x = (x * state[f"{norm}.weight"].view(shape) + state[f"{norm}.bias"].view(shape)).clamp(min=0)
        out[f"features.{index if len(numbers) == 2 else index + 2}"] = x
    (first, _), (second, _) = LINEAR[arch]
    x = x.flatten(1) @ state[f"classifier.{first}.weight"].T + state[f"classifier.{first}.bias"]
    x = out[f"classifier.{first + 1}"] = x.clamp(min=0)
    x = out[f"classifier.{second}"] = x @ state[f"classifier.{second}.weight"].T + state[f"classifier.{second}.bias"]
    out["top_layer"] = x.clamp(min=0) @ state["top_layer.weight"].T + state["top_layer.bias"]
    return out


def computed(network: Network, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The outputs of the layers of a network of ours that have these names."""
    out: dict[str, Tensor] = {}
    hooks = [
        network.body.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: out.__setitem__(name, output.clone())
        )
        for name in names
        if name != "top_layer"
    ]
    with torch.no_grad():
        out["top_layer"] = network.eval()(images)
    for hook in hooks:
        hook.remove()
    return out


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest number."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def images_of(seed: int) -> Tensor:
    """One smooth image with some noise."""
    random = generator(seed, "official images")
    smooth = F.interpolate(torch.rand(1, 3, 8, 8, generator=random), size=(224, 224), mode="bilinear")
    return (smooth + 0.1 * torch.rand(1, 3, 224, 224, generator=random)).clamp(0, 1)


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
            if opcode.name == "BINUNICODE" and len(value) < 256:
                words += b"U" + bytes([len(value)]) + value.encode("latin1")
            elif opcode.name == "LONG1" and part > 0:
                words += b"I%d\n" % value
            else:
                words += modern[position : stream.tell()]
    path.write_bytes(bytes(words) + modern[stream.tell() :])
    return path


@pytest.fixture(scope="module")
def alexnet():
    return weights_of("alexnet", sobel=True)


# Every layer


# The others are slow: files of up to half a gigabyte.
@pytest.mark.parametrize(
    ("arch", "sobel"),
    [
        pytest.param(arch, sobel, marks=[] if (arch, sobel) == ("alexnet", True) else [pytest.mark.slow])
        for arch in ARCHS
        for sobel in (True, False)
    ],
)
def test_every_layer_equals_its_description(tmp_path, arch, sobel):
    state, images = weights_of(arch, sobel=sobel), images_of(1)
    write = save_python2 if (arch, sobel) == ("alexnet", True) else save_legacy
    path = write(checkpoint_of(arch, state), tmp_path / "checkpoint.pth.tar")
    network = from_official(path)
    path.unlink()
    expected = described(arch, state, images, sobel=sobel)
    found = computed(network, images, list(expected))
    assert len(expected) == len(LAYERS[arch]) + 3 + sobel
    for name, value in expected.items():
        assert value.std() > 0 and apart(found[name], value) < 1e-5, name
    assert network.architecture == {"name": arch, "image_size": 224, "sobel": sobel}


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
    def named(*names: str) -> dict[str, Tensor]:
        return {name: torch.zeros(2) for name in names}

    others = [
        torchvision.models.vgg16_bn, torchvision.models.alexnet, torchvision.models.densenet121,
        torchvision.models.mobilenet_v2, torchvision.models.squeezenet1_0, torchvision.models.resnet50,
    ]  # fmt: skip
    for make in others:
        with torch.device("meta"):
            state = make(weights=None).state_dict()
        assert recognised(state, "a.pt") is None, make.__name__
    # torchvision's own examples train features in parallel, too
    assert recognised(named("features.module.0.weight", "classifier.6.weight"), "a.pt") is None
    for name in ("compact", "timm:resnet18", "timm:densenet121", "timm:vgg16_bn"):
        with shapes_only():
            state = build(name, image_size=32, feature_dim=1).body.state_dict()
        assert recognised(state, "a.pt") is None, name


def test_a_file_of_something_else_is_not_official(tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"a.pt: has none of the published layouts"):
        read_official(tmp_path / "a.pt")


# DeepCluster-v2


def of_2020(network: nn.Module, heads: int = 3) -> OrderedDict[str, Tensor]:
    state = OrderedDict((f"module.{name}", value) for name, value in network.state_dict().items())
    mlp = nn.Sequential(nn.Linear(2048, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8))
    state |= {f"module.projection_head.{name}": value for name, value in mlp.state_dict().items()}
    return state | {f"module.prototypes.prototypes{h}.weight": torch.zeros(9, 8) for h in range(heads)}


def test_deepcluster_v2_equals_torchvision(tmp_path):
    with lent_global(0, "resnet"):
        resnet = torchvision.models.resnet50(weights=None).eval()
        for module in resnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.2, 0.6)
                module.bias.data.normal_(0, 0.2)
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
        expected = resnet((images - MEAN) / STD)
        assert apart(network.eval().features(images), expected) < 1e-5
        assert expected.std() > 0 and network.head is None


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
    with pytest.raises(pickle.UnpicklingError, match="Unsupported operand 73"):
        torch.load(
            path, map_location="cpu", weights_only=True
        )  # the reason for legacy.py; if it reads this, that can go
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


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40, 2**63 - 1, -(2**63), 255, 128, -129])
def test_whole_numbers_of_python_2(tmp_path, value):
    path = save_legacy({"n": 2**33, "s": "x" * 300, "t": torch.ones(2)}, tmp_path / "a.pt")
    number = pickle.dumps(2**33, 2)[2:-1]
    text = b"X" + (300).to_bytes(4, "little") + b"x" * 300
    old = path.read_bytes()
    assert number in old and text in old
    string = b"T" + (300).to_bytes(4, "little") + b"\xe9" + b"x" * 299
    path.write_bytes(old.replace(number, b"I%d\n" % value).replace(text, string))
    content = read_checkpoint(path)
    assert (content["n"], content["s"]) == (value, "é" + "x" * 299)
    assert torch.equal(content["t"], torch.ones(2))


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
        try:
            read_checkpoint(path)
        except ModelError as error:
            assert "cut.pth.tar" in str(error)


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("where", ["optimizer", "state_dict", "arch"])
def test_a_malicious_file_of_python_2_ends_with_code_4_and_runs_nothing(photos, tmp_path, ends, where):
    """(test_strangers.py has those of Python 3.)"""
    canary, path = tmp_path / "canary", tmp_path / "evil.pth.tar"
    content = checkpoint_of("alexnet", OrderedDict({"features.module.0.weight": torch.ones(2)}))
    if where == "state_dict":
        content["state_dict"]["top_layer.bias"] = Evil(canary)
    elif where == "optimizer":
        content["optimizer"]["state"][IDENT] = Evil(canary)
    else:
        content["arch"] = Evil(canary)
    save_python2(content, path)
    torch.load(path, weights_only=False)
    assert canary.exists(), "the trap itself does not work"
    canary.unlink()
    options = ["-k", "2", "--backbone", "alexnet", "--weights", str(path), "-o", str(tmp_path / "run")]
    said = ends(["fit", photos, *options], 4)
    assert "evil.pth.tar: cannot be read as weights" in said and "nothing of it was executed" in said
    assert not canary.exists() and not (tmp_path / "run").exists()


def test_a_tar_archive_of_the_first_months_is_told_apart(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "old.pth.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(ModelError, match=r"old.pth.tar: .*a tar archive of PyTorch 0.1.8 or older"):
        read_checkpoint(tmp_path / "old.pth.tar")
