"""Published networks: found in the cache without the network, fetched whole or not at all."""

import json
import re
import socket
import subprocess
import sys
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch.nn import functional as F

from deepcluster.commands.cli import run_command
from deepcluster.errors import DeepClusterWarning, ModelError, UsageError
from deepcluster.fitting import forecast
from deepcluster.fitting.plan import Request, check_weights_here, choose_weights, decide
from deepcluster.groups import choose_k
from deepcluster.images import find
from deepcluster.nets.hub import PACKAGE, PACKAGE_FILE, fetch, local_file
from deepcluster.nets.names import DISTRIBUTION, PUBLISHED
from deepcluster.nets.network import build
from deepcluster.nets.small import LITE0_NAMES
from deepcluster.nets.timm import in_layout_of, nouns
from deepcluster.recipes.auto import ImageFacts
from deepcluster.recipes.presets import read_request, resolve
from deepcluster.runtime.console import Silent
from deepcluster.storage.model_files import load
from tests.helpers.drawings import save_drawings
from tests.helpers.hub import keep, tiny_file
from tests.helpers.runs import record, result, rows


def test_the_names_are_timms_and_the_licences_are_permissive():
    for published in PUBLISHED.values():
        config = timm.get_pretrained_cfg(published.network)
        assert config.hf_hub_id == f"timm/{published.network}" and config.hf_hub_filename is None
        assert published.licence.lower() == config.license == "apache-2.0"


# ---- the installed network ------------------------------------------------------------------------------------------


def test_the_installed_network_is_found_without_running_its_package(hub_cache):
    """Nor is a slow library imported: `predict` of one image would wait for it, and so would `recut`."""
    code = (
        "import sys, torch, deepcluster.images, deepcluster.runs.predict\n"
        "from deepcluster.learning import extract\n"
        "from deepcluster.nets.network import build\n"
        "from deepcluster.nets.hub import local_file; print(local_file('photos-small'))\n"
        "network = build('timm:tf_efficientnet_lite0.in1k', image_size=32)\n"
        "extract(network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))\n"
        "import deepcluster.runs.recut\n"
        "from deepcluster.clustering.agreement import ari\n"
        "from deepcluster.clustering.kmeans import best_of\n"
        "assert ari(best_of(1, torch.tensor([[0.0], [1.0], [8.0], [9.0]]), 2, 0).labels, [0, 0, 1, 1]) == 1\n"
        f"slow = {{{PACKAGE!r}, 'timm', 'sklearn', 'torchvision', 'torch._dynamo', 'scipy.sparse'}}\n"
        "assert not slow & set(sys.modules)"
    )
    path = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert path.endswith(PACKAGE_FILE)


def test_it_knows_a_photograph(hub_cache):
    """A picture of a flower looks more like itself mirrored than like a picture of a temple."""
    china, flower = (torch.tensor(image) for image in load_sample_images().images)
    pictures = torch.stack([flower, flower.flip(1), china]).permute(0, 3, 1, 2)
    network = build("timm:tf_efficientnet_lite0.in1k", image_size=224, weights="timm").eval()
    with torch.no_grad():
        seen = network.features(F.interpolate(pictures.float() / 255, (224, 224)))
        named, features = nouns("timm:tf_efficientnet_lite0.in1k", network.classifier, seen), F.normalize(seen)
    assert features[0] @ features[1] > 0.9 > 0.3 > features[0] @ features[2]
    (path,) = {local_file(name) for name in ("photos-small", *LITE0_NAMES)}
    file = torch.load(path, weights_only=True)
    sureness = (seen @ file["_fc.weight"].T + file["_fc.bias"]).softmax(1).amax(1).tolist()
    assert [value for _, value in named] == pytest.approx(sureness, rel=1e-4) and named[0][0] == "daisy"


@pytest.mark.parametrize("network", [network for network in PUBLISHED.values() if network.synsets])
def test_the_nouns_of_a_network_are_those_of_timm(network):
    """One image of each class: its noun is timm's description of the class, which is read without timm's import."""
    subset = infer_imagenet_subset(timm.get_pretrained_cfg(network.network).to_dict())
    descriptions = ImageNetInfo(subset).label_descriptions()
    classes = len(descriptions)
    every = [*range(0, classes, 97)]
    weight = F.one_hot(torch.tensor(every), classes).T.float()
    named = nouns(network.backbone, (weight, torch.zeros(classes)), torch.eye(len(every)))
    assert [noun for noun, _ in named] == [descriptions[i].split(",")[0] for i in every]


def test_a_missing_package_is_said_and_nothing_else_changes(hub_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.warns(DeepClusterWarning, match=rf"{DISTRIBUTION} .*pip install"):
        assert local_file("photos-small") is None
    assert local_file("photos") is None


def test_a_changed_file_is_said_and_never_read(hub_cache, tmp_path, monkeypatch):
    file = tmp_path / PACKAGE / PACKAGE_FILE
    file.parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise SystemExit('this code ran')")
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with pytest.warns(DeepClusterWarning, match="SHA-256.*pip install"):
        assert local_file("photos-small") is None


def test_a_file_in_the_cache_is_found_without_the_network(hub_cache, monkeypatch):
    path = keep(tiny_file())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was used"))
    for name in ("photos", PUBLISHED["photos"].backbone, PUBLISHED["photos"].network):
        assert local_file(name) == fetch(name) == path
    assert local_file("photos-ssl") is None


# ---- files from elsewhere -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lite0(tmp_path_factory):
    """The installed network in timm's layout with its classifier, as the Hub has it."""
    model = timm.create_model("tf_efficientnet_lite0")
    state = in_layout_of(model, torch.load(local_file("photos-small"), weights_only=True))
    path = tmp_path_factory.mktemp("weights") / "tf_efficientnet_lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def test_weights_are_known_by_their_layers(lite0, tmp_path):
    for file in (lite0, local_file("photos-small")):
        plan = resolve(read_request({"weights": str(file)}), LARGE)
        assert plan.recipe.backbone == PUBLISHED["photos-small"].backbone
        assert plan.network.endswith(", with given weights")
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"other\.safetensors.*--backbone timm:"):
        resolve(read_request({"weights": str(tmp_path / "other.safetensors")}), LARGE)


# ---- downloads that fail --------------------------------------------------------------------------------------------


# The fault, and the error. (The client takes an ETag for a file name, by which a server could write anywhere.)
OFFLINE = "huggingface_hub.constants.HF_HUB_OFFLINE"
FAILURES = {
    "no digest": (lambda hub, patch: setattr(hub, "etag", "../../../victim"), "photos have no SHA"),
    "other bytes": (lambda hub, patch: setattr(hub, "sent", hub.content[:-1] + b"?"), "photos"),
    "offline": (lambda _, patch: patch.setattr(OFFLINE, True), "HF_HUB_OFFLINE.*--backbone photos --weights"),
}


@pytest.mark.parametrize("way", FAILURES)
def test_a_download_that_fails_leaves_no_weights(hub, hub_cache, monkeypatch, way):
    spoil, message = FAILURES[way]
    victim = hub_cache.parent / "victim"
    victim.write_text("mine")
    spoil(hub, monkeypatch)
    with pytest.raises(ModelError, match=message):
        fetch("photos")
    assert victim.read_text() == "mine" and not [path for path in hub_cache.rglob("blobs/*") if path.is_file()]
    assert way != "offline" or not hub.requests


def test_a_damaged_file_is_seen_and_fetched_again(hub, hub_cache):
    path = keep(hub.content)
    path.write_bytes(hub.content[:-100])
    with pytest.warns(DeepClusterWarning, match="deepcluster fetch photos"):
        assert local_file("photos") is None
    assert fetch("photos").read_bytes() == hub.content
    assert local_file("photos") == fetch("photos")


def test_a_network_is_fetched_once_and_listed(hub, hub_cache, prints, ends):
    assert "timm:NAME" in ends(["fetch", "fotos"], 2)
    with pytest.raises(UsageError):
        fetch("timm:resnet18.no_such_tag")
    said = prints("fetch")
    assert "model.safetensors" in said
    path = local_file("photos")
    assert path.read_bytes() == hub.content and path.is_relative_to(hub_cache)
    assert f"GET /timm/{PUBLISHED['photos'].network}/resolve/main/model.safetensors" in hub.requests
    hub.requests.clear()
    prints("fetch")  # it is on this machine already
    assert fetch("photos") == path and not hub.requests
    assert not list(hub_cache.rglob("*.incomplete"))
    assert "photos, photos-small" in prints("doctor")


# ---- the start of a run: which published network it takes, and what the run remembers of it --------------------------

LARGE = ImageFacts(count=2000, short_side=96, grey=False, n_clusters=5)
SMALL = "photos-small"


def request(**options: object) -> Request:
    return Request(recipe=read_request(options))


@pytest.fixture(scope="session")
def large_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_drawings(tmp_path_factory.mktemp("large"), 6, 100)


@pytest.mark.parametrize(
    ("request_", "images", "installed", "start"),
    [
        (request(), LARGE, ("photos", "photos-ssl", SMALL), "photos"),
        (request(), LARGE, ("photos-ssl", SMALL), "photos-ssl"),
        (request(), LARGE, (), ""),
        (request(), replace(LARGE, grey=True), (SMALL,), SMALL),
        (request(), replace(LARGE, count=1_000_000), (SMALL,), SMALL),
        (request(), replace(LARGE, short_side=28), (SMALL,), SMALL),
        (request(), replace(LARGE, short_side=27), (SMALL,), ""),
        *((request(weights=weights), LARGE, (SMALL,), "") for weights in ("none", "", "w.safetensors")),
        *((request(backbone=backbone), LARGE, (SMALL,), "") for backbone in ("compact", "timm:a")),
        (Request(recipe=read_request({}, "v1")), LARGE, (SMALL,), ""),
        (Request(recipe=read_request({"weights": "auto"}, "classic")), LARGE, (SMALL,), ""),
        (Request(recipe=read_request({"weights": "timm"}, "classic")), LARGE, (SMALL,), SMALL),
        (request(backbone=SMALL), replace(LARGE, short_side=8), (), SMALL),
        (Request(recipe=read_request({"backbone": SMALL}, "v2")), LARGE, (), SMALL),
        (request(backbone=SMALL, weights="none"), LARGE, (), ""),
        (request(weights="timm"), LARGE, (), "photos"),
        (request(weights="timm", backbone=SMALL), LARGE, ("photos",), SMALL),
    ],
)
def test_the_best_on_the_machine_unless_something_else_is_named(request_, images, installed, start):
    assert choose_weights(request_, images, installed.__contains__) == start


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_names_the_network_as_timm_does(name):
    by_choice = resolve(read_request({}), replace(LARGE, published=name))
    by_name = resolve(read_request({"backbone": name}), LARGE)
    assert by_choice.recipe == by_name.recipe
    assert by_choice.recipe.backbone == PUBLISHED[name].backbone and by_choice.recipe.weights == "timm"
    assert any(name in line for line in by_choice.by_reason()) and any(name in line for line in by_name.by_reason())


@pytest.fixture
def begun(large_photos, tmp_path):
    """The published network that a run of some options begins with."""
    source = find(large_photos)
    out = tmp_path / "run"
    return lambda **options: decide(source, replace(request(**options), out=out), Silent()).facts.published


def test_weights_timm_downloads_and_nothing_else_does(hub, begun):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert begun() == SMALL
    with pytest.raises(ModelError, match=r"deepcluster fetch photos-ssl;.*--weights none"):
        begun(backbone="photos-ssl")
    assert not hub.requests
    assert begun(weights="timm", backbone="photos") == "photos"
    assert local_file("photos").read_bytes() == hub.content
    hub.requests.clear()
    assert begun(weights="timm", backbone="photos") == "photos" and not hub.requests


def test_a_rank_without_the_network_of_the_main_rank_says_how_to_get_it(hub_cache):
    """The main rank decides; ranks may run on several machines."""
    with pytest.raises(ModelError, match="deepcluster fetch photos;"):
        check_weights_here("photos")
    keep(tiny_file())
    check_weights_here("photos")
    check_weights_here("")


def test_nouns_raise_the_guess_of_a_fit_and_of_its_recut_alike(large_photos, tmp_path, monkeypatch, prints):
    monkeypatch.setattr(choose_k, "MANY_NOUNS", 0.25)
    run = tmp_path / "run"
    said = prints("fit", large_photos, "-o", run, "--image-size", "32", "--rounds", "0")
    assert "--rounds 1" not in said  # whoever names the rounds is not told how to train
    guess = result(run)["candidates"][0]["k"]
    prints("recut", run, "-k", "auto")
    assert result(run)["candidates"][0]["k"] == guess
    (run / "nouns.csv").unlink()
    prints("recut", run, "-k", "auto")
    assert result(run)["candidates"][0]["k"] < guess


def test_a_run_of_photographs_and_what_comes_after_it(hub_cache, large_photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the internet was used"))
    monkeypatch.setattr(forecast, "MEASURED_SECONDS", 1e-9)
    monkeypatch.setattr(forecast, "LONG_SECONDS", 0)
    out = tmp_path / "run"
    options = "-k 3 --image-size 32 --batch-size 8 --precision fp32 --set class_probabilities=0.5"
    fit = ["fit", str(large_photos), "-o", str(out), *options.split()]
    assert run_command(fit) == 0
    said = capsys.readouterr()
    assert "--rounds 1" in said.out and record(out)["rounds"] == 0  # it is not trained unless that is asked for
    assert said.out.count("Time ") == 1
    (network,) = [line for line in said.out.splitlines() if line.startswith("Network")]
    assert "EfficientNet-Lite0" in network and said.out.count("deepcluster fetch") == 1 and "warning" not in said.err
    recipe = tomllib.loads((out / "recipe.toml").read_text())
    assert (recipe["backbone"], recipe["weights"]) == (PUBLISHED[SMALL].backbone, "timm")
    assert run_command([*fit, "--dry-run", "--verbose"]) == 0  # it leaves out what is decided after reading
    printed = capsys.readouterr().out
    decided = {name: value for name, value in recipe.items() if name != "within_image"}
    assert tomllib.loads(printed[printed.rindex("\nbackbone = ") :]) == decided
    assert printed.count("within_image: decided after reading the images") == 2 and "within_image 1" not in printed
    assert any(SMALL in reason for reason in json.loads((out / "run.json").read_text())["reasons"].values())

    # The nouns of the images before training; drawings of 32 px have no name.
    assert [row["path"] for row in rows(out / "nouns.csv")] == [row["path"] for row in rows(out / "clusters.csv")]
    assert 'class="hints' not in (out / "report.html").read_text()

    keep(tiny_file())  # a better one has come meanwhile, and would not even load
    clusters = (out / "clusters.csv").read_text()
    assert run_command([*fit, "--resume"]) == 0 and (out / "clusters.csv").read_text() == clusters

    monkeypatch.setitem(sys.modules, PACKAGE, None)  # a model needs the package no more
    assert run_command(["predict", str(out), str(large_photos), "-o", str(tmp_path / "p.csv")]) == 0
    # The saved model takes square roots and class probabilities, too.
    assert recipe["root"] and load(out).reduction.prepare.classes.scale == 0.5
    assert {row["path"]: row["distance"] for row in rows(tmp_path / "p.csv")} == {
        row["path"]: row["distance"] for row in rows(out / "clusters.csv")
    }


def test_a_dry_run_downloads_nothing(hub, large_photos, capsys):
    for options, expected in (
        (("--backbone", "photos"), "error"),
        (("--backbone", "photos", "--weights", "timm"), "downloads"),
        (("--backbone", PUBLISHED["photos"].backbone, "--weights", "timm"), "ConvNeXt-T"),
    ):
        assert run_command(["fit", str(large_photos), "-k", "3", "--image-size", "64", "--dry-run", *options]) == 0
        said = capsys.readouterr()
        assert expected in re.sub(r"\s+", " ", said.out) and not said.err
    assert not hub.requests
