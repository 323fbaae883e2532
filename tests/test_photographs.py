"""The start of a run: which published network it takes, and what the run remembers of it."""

import json
import re
import socket
import sys
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from deepcluster.cli import run_command
from deepcluster.errors import ModelError
from deepcluster.fitting.plan import Request, begin, check_weights_here, choose_weights
from deepcluster.images import find
from deepcluster.nets.hub import PACKAGE, local_file
from deepcluster.nets.names import PUBLISHED
from deepcluster.presets import Facts, read_request, resolve
from deepcluster.runtime.console import Silent
from deepcluster.storage.model_files import load
from tests.drawings import save_drawings
from tests.helpers.hub import keep, tiny_file
from tests.helpers.runs import record, rows

LARGE = Facts(count=2000, short_side=96, grey=False, n_clusters=5, device="cpu")
SMALL = "photos-small"


def facts(**changes: object) -> Facts:
    return Facts(**{**vars(LARGE), **changes})


def request(**options: object) -> Request:
    return Request(recipe=read_request(options))


@pytest.fixture(scope="session")
def large_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_drawings(tmp_path_factory.mktemp("large"), 6, 100)


# ---- which one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "images", "here", "start"),
    [
        (request(), LARGE, ("photos", "photos-ssl", SMALL), "photos"),
        (request(), LARGE, ("photos-ssl", SMALL), "photos-ssl"),
        (request(), LARGE, (), ""),
        (request(), facts(grey=True), (SMALL,), SMALL),
        (request(), facts(count=100_000), (SMALL,), SMALL),
        (request(), facts(count=100_001), (SMALL,), ""),
        (request(), facts(short_side=28), (SMALL,), SMALL),
        (request(), facts(short_side=27), (SMALL,), ""),
        *((request(weights=weights), LARGE, (SMALL,), "") for weights in ("none", "", "w.safetensors")),
        *((request(backbone=backbone), LARGE, (SMALL,), "") for backbone in ("compact", "timm:a")),
        (Request(recipe=read_request({}, "v1")), LARGE, (SMALL,), ""),
        (Request(recipe=read_request({"weights": "auto"}, "classic")), LARGE, (SMALL,), ""),
        (Request(recipe=read_request({"weights": "timm"}, "classic")), LARGE, (SMALL,), SMALL),
        (request(backbone=SMALL), facts(short_side=8), (), SMALL),
        (Request(recipe=read_request({"backbone": SMALL}, "v2")), LARGE, (), SMALL),
        (request(backbone=SMALL, weights="none"), LARGE, (), ""),
        (request(weights="timm"), LARGE, (), "photos"),
        (request(weights="timm", backbone=SMALL), LARGE, ("photos",), SMALL),
    ],
)
def test_the_best_on_the_machine_unless_something_else_is_named(request_, images, here, start):
    assert choose_weights(request_, images, here.__contains__) == start


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_names_the_network_as_timm_does(name):
    by_choice = resolve(read_request({}), facts(published=name))
    by_name = resolve(read_request({"backbone": name}), LARGE)
    assert by_choice.recipe == by_name.recipe
    assert by_choice.recipe.backbone == PUBLISHED[name].backbone and by_choice.recipe.weights == "timm"
    assert any(name in line for line in by_choice.by_reason()) and any(name in line for line in by_name.by_reason())


# ---- downloads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(large_photos, tmp_path):
    """The published network that a run of some options begins with."""
    source = find(large_photos)
    out = tmp_path / "run"
    return lambda **options: begin(source, replace(request(**options), out=out), Silent()).facts.published


def test_weights_timm_downloads(hub, begun):
    assert begun(weights="timm", backbone="photos") == "photos"
    assert local_file("photos").read_bytes() == hub.content
    hub.requests.clear()
    assert begun(weights="timm", backbone="photos") == "photos" and not hub.requests


def test_without_a_word_nothing_is_downloaded(hub, begun):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert begun() == SMALL
    with pytest.raises(ModelError, match=r"deepcluster fetch photos-ssl;.*--weights none"):
        begun(backbone="photos-ssl")
    assert not hub.requests


def test_a_rank_without_the_network_of_the_main_rank_says_how_to_get_it(hub_cache):
    """The main rank decides; ranks may run on several machines."""
    with pytest.raises(ModelError, match="deepcluster fetch photos;"):
        check_weights_here("photos")
    keep(tiny_file())
    check_weights_here("photos")
    check_weights_here("")


# ---- runs -----------------------------------------------------------------------------------------------------------

QUICK = ("-k", "3", "--image-size", "32", "--epochs", "1", "--rounds", "1", "--precision", "fp32")


def test_a_pretrained_network_is_used_as_it_is_and_the_run_says_how_to_train_it(large_photos, tmp_path, capsys):
    fit = ["fit", str(large_photos), "-o", str(tmp_path / "run"), "-k", "3", "--image-size", "32"]
    for options, offered in (([], True), (["--rounds", "0", "--overwrite"], False)):
        assert run_command([*fit, *options]) == 0
        assert ("--rounds 1" in capsys.readouterr().out) == offered
        assert (record(tmp_path / "run")["rounds"], record(tmp_path / "run")["result"]) == (0, "final")


def test_a_run_of_photographs_and_what_comes_after_it(hub_cache, large_photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the internet was used"))
    out = tmp_path / "run"
    fit = ["fit", str(large_photos), "-o", str(out), *QUICK, "--set", "class_probabilities=0.5"]
    assert run_command(fit) == 0
    said = capsys.readouterr()
    (network,) = [line for line in said.out.splitlines() if line.startswith("Network")]
    assert "EfficientNet-Lite0" in network and said.out.count("deepcluster fetch") == 1 and "warning" not in said.err
    recipe = tomllib.loads((out / "recipe.toml").read_text())
    assert (recipe["backbone"], recipe["weights"]) == (PUBLISHED[SMALL].backbone, "timm")
    assert any(SMALL in reason for reason in json.loads((out / "run.json").read_text())["reasons"].values())

    # The nouns of the images before training; drawings of 32 px have no name.
    assert [row["path"] for row in rows(out / "nouns.csv")] == [row["path"] for row in rows(out / "clusters.csv")]
    assert 'class="hints' not in (out / "report.html").read_text()

    keep(tiny_file())  # a better one has come meanwhile, and would not even load
    clusters = (out / "clusters.csv").read_text()
    assert run_command([*fit, "--resume"]) == 0 and (out / "clusters.csv").read_text() == clusters
    stopped = re.sub('"status": "done"', '"status": "stopped"', (out / "run.json").read_text())
    (out / "run.json").write_text(stopped)
    assert run_command([*fit, "--resume"]) == 0
    assert (out / "clusters.csv").read_text() == clusters

    again = ["fit", str(large_photos), "-o", str(tmp_path / "again"), "-k", "3", "--recipe", str(out / "recipe.toml")]
    assert run_command(again) == 0
    assert (tmp_path / "again" / "clusters.csv").read_text() == clusters

    monkeypatch.setitem(sys.modules, PACKAGE, None)  # a model needs the package no more
    assert run_command(["predict", str(out), str(large_photos), "-o", str(tmp_path / "p.csv")]) == 0
    # The saved model takes square roots and class probabilities, too.
    assert recipe["root"] and load(out).reduction.classes.scale == 0.5
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
