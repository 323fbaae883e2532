"""Photographs start from a published network: which one, who is asked, and what a run remembers of it."""

import io
import json
import re
import shutil
import socket
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster import DeepCluster
from deepcluster.cli import run_command
from deepcluster.errors import DeepClusterWarning, ModelError
from deepcluster.nets.published import PUBLISHED, cached
from deepcluster.presets import Facts, resolve
from deepcluster.runs.job import Request
from deepcluster.runs.weights import Start, choose, nobody, recorded, settle
from deepcluster.runtime.display import Silent
from deepcluster.runtime.processes import Processes
from deepcluster.runtime.terminal import Terminal
from tests.drawings import KINDS, draw
from tests.helpers.hub import keep, tiny_file

LARGE = Facts(count=2000, short_side=96, grey=False, n_clusters=5, device="cpu")
SMALL = "photos-small"


def facts(**changes: object) -> Facts:
    return Facts(**{**vars(LARGE), **changes})


def request(**options: object) -> Request:
    return Request(options=options)


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published layout."""
    import timm
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(timm.create_model(PUBLISHED[SMALL].network, pretrained=False).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def large_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(7)
    for kind in KINDS:
        for i in range(6):
            Image.fromarray(draw(kind, random, 100)).save(root / f"{kind}{i}.png")
    return root


# ---- which one ------------------------------------------------------------------------------------------------------


def having(*names: str):
    return lambda name: name in names


def test_the_best_that_is_there():
    assert choose(request(), LARGE, having("photos", "photos-ssl", SMALL)) == Start("photos")
    assert choose(request(), LARGE, having("photos-ssl", SMALL)) == Start("photos-ssl")
    assert choose(request(), LARGE, having(SMALL)) == Start(SMALL)
    assert choose(request(), LARGE, having()) == Start("photos", here=False)


@pytest.mark.parametrize("changes", [{"grey": True}, {"count": 100_000}, {"short_side": 4000, "count": 1}])
def test_for_grey_images_too(changes):
    assert choose(request(), facts(**changes), having(SMALL)) == Start(SMALL)


@pytest.mark.parametrize("changes", [{"short_side": 95}, {"count": 100_001}])
def test_small_images_and_large_sets_train_from_nothing(changes):
    assert choose(request(), facts(**changes), having(SMALL)) == Start()


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "none"},
        {"weights": ""},
        {"weights": "w.safetensors"},
        {"backbone": "compact"},
        {"backbone": "timm:a"},
    ],
)
def test_what_is_given_is_kept(options):
    assert choose(request(**options), LARGE, having(SMALL)) == Start()


def test_the_recipes_of_papers_are_theirs():
    for name, expected in {"v1": Start(), "v2": Start(), "classic": Start(SMALL)}.items():
        assert choose(Request(recipe=name), LARGE, having(SMALL)) == expected


def test_by_name_it_is_wanted():
    for base in ("auto", "v2"):
        asked = Request(recipe=base, options={"backbone": SMALL})
        assert choose(asked, facts(short_side=32), having()) == Start(SMALL, here=False, wanted=True)
    assert choose(request(backbone=SMALL, weights="none"), LARGE, having()) == Start()


def test_weights_timm_alone_is_consent():
    agreed = {"wanted": True, "agreed": True}
    assert choose(request(weights="timm"), LARGE, having()) == Start("photos", here=False, **agreed)
    assert choose(request(weights="timm"), LARGE, having(SMALL)) == Start(SMALL, **agreed)
    assert choose(request(weights="timm", backbone=SMALL), LARGE, having("photos")) == Start(
        SMALL, here=False, **agreed
    )
    assert choose(request(weights="timm", backbone="timm:resnet18"), LARGE, having()) == Start()


def test_two_networks_at_once_are_for_those_who_name_them():
    here = having("photos-pair", SMALL)
    assert choose(request(), LARGE, here).name == SMALL
    assert choose(request(backbone="photos-pair"), LARGE, here).name == "photos-pair"


def test_a_resumed_run_does_not_change_its_mind():
    assert choose(Request(published=""), LARGE, having(SMALL)) == Start()
    assert choose(Request(published=SMALL), LARGE, having("photos", SMALL)) == Start(SMALL, wanted=True)
    assert choose(Request(published=SMALL), LARGE, having()) == Start(SMALL, here=False, wanted=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_names_the_network_as_timm_does(name):
    by_choice = resolve("auto", {}, facts(published=name))
    by_name = resolve("auto", {"backbone": name}, LARGE)
    assert by_choice.recipe == by_name.recipe
    assert by_choice.recipe.backbone == PUBLISHED[name].backbone and by_choice.recipe.weights == "timm"
    assert by_choice.recipe.rounds <= 3
    assert any(name in line for line in by_choice.by_reason()) and any(name in line for line in by_name.by_reason())


def test_weights_none_are_random():
    assert resolve("auto", {"weights": "none"}, facts(published=SMALL)).recipe.backbone == "compact"
    recipe = resolve("auto", {"weights": "none", "backbone": SMALL}, LARGE).recipe
    assert (recipe.backbone, recipe.weights) == (PUBLISHED[SMALL].backbone, "")
    assert resolve("auto", {"weights": "auto"}, facts(published=SMALL)).recipe.weights == "timm"


# ---- consent --------------------------------------------------------------------------------------------------------


def test_yes_fetches_it(hub):
    questions = []
    settled = settle(request(), LARGE, display=Silent(), ask=lambda text: questions.append(text) or True)
    assert settled.published == "photos" and cached("photos").read_bytes() == hub.content
    (question,) = questions
    for part in ("photos", "178 MB", "Apache-2.0", "huggingface.co (timm, convnext_tiny.fb_in22k)", "a small network"):
        assert part in question


def test_weights_timm_asks_no_more(hub):
    assert settle(request(weights="timm"), LARGE, display=Silent()).published == "photos"
    assert cached("photos").read_bytes() == hub.content


def test_no_is_silent(hub):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settle(request(), LARGE, display=Silent(), ask=lambda _: False).published == ""
    assert not hub.requests


def test_with_nobody_to_ask_the_warning_names_the_command(hub):
    with pytest.warns(DeepClusterWarning, match=r"`deepcluster fetch`.*178 MB.*weights none"):
        assert settle(request(), LARGE, display=Silent()).published == ""
    assert not hub.requests


@pytest.mark.parametrize("ask", [nobody, lambda _: False])
def test_without_the_network_that_was_named_the_run_ends(hub, ask):
    with pytest.raises(ModelError, match=r"`deepcluster fetch photos-ssl`.*--weights none"):
        settle(request(backbone="photos-ssl"), LARGE, display=Silent(), ask=ask)
    assert not hub.requests


def test_a_download_that_fails(hub):
    hub.sent = b"?" * len(hub.content)
    with pytest.raises(ModelError, match=r"arrive damaged.*--weights none goes on"):
        settle(request(), LARGE, display=Silent(), ask=lambda _: True)


class Typed(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "answer"), [("y\n", True), ("Yes\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_the_question_on_a_terminal(monkeypatch, typed, answer):
    monkeypatch.setattr(sys, "stdin", Typed(typed))
    monkeypatch.setattr(sys, "stdout", screen := Typed())
    with Terminal(quiet=False) as terminal:
        assert terminal.ask("May I?") is answer
    assert "May I? [y/N]" in screen.getvalue()


@pytest.mark.parametrize("options", [{"quiet": True}, {"quiet": False, "to_stderr": True}])
def test_nobody_is_asked_who_wants_to_hear_nothing(monkeypatch, options):
    monkeypatch.setattr(sys, "stdin", Typed("y\n"))
    monkeypatch.setattr(sys, "stdout", Typed())
    with Terminal(**options) as terminal:
        assert terminal.ask("May I?") is None


def settled(processes: Processes, caches: list[str]) -> tuple[str | None, list[str]]:
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_CACHE = caches[processes.rank]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        name = settle(request(), LARGE, display=Silent(), processes=processes).published
    return name, [str(warning.message) for warning in warned]


def test_all_ranks_decide_alike(ranks, tmp_path):
    """By what all of them have: they may run on several machines."""
    both, one = str(tmp_path / "both"), str(tmp_path / "one")
    for name in ("photos", SMALL):
        keep(Path(both), name, tiny_file())
    keep(Path(one), SMALL, tiny_file())
    assert ranks[2](settled, [both, one]) == [(SMALL, [])] * 2
    (name, warned), silent = ranks[2](settled, [both, str(tmp_path / "none")])
    assert name == "" and len(warned) == 1 and silent == ("", [])


# ---- runs -----------------------------------------------------------------------------------------------------------

QUICK = ("-k", "3", "--image-size", "32", "--epochs", "1", "--rounds", "1", "--precision", "fp32")


def test_a_run_from_the_cache_and_what_comes_after_it(hub_cache, lite0, large_photos, tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    kept = keep(hub_cache, SMALL, lite0)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    out = tmp_path / "run"
    fit = ["fit", str(large_photos), "-o", str(out), *QUICK]
    assert run_command(fit) == 0
    said = capsys.readouterr()
    assert SMALL in said.out and "warning" not in said.err
    recipe = tomllib.loads((out / "recipe.toml").read_text())
    assert (recipe["backbone"], recipe["weights"]) == (PUBLISHED[SMALL].backbone, "timm")
    assert any(SMALL in reason for reason in json.loads((out / "run.json").read_text())["reasons"])
    assert recorded(out) == SMALL

    keep(hub_cache, "photos", tiny_file())  # a better one has come meanwhile, and would not even load
    clusters = (out / "clusters.csv").read_text()
    assert run_command([*fit, "--resume"]) == 0 and "finished already" in capsys.readouterr().out
    stopped = re.sub('"status": "done"', '"status": "stopped"', (out / "run.json").read_text())
    (out / "run.json").write_text(stopped)
    assert run_command([*fit, "--resume"]) == 0
    assert (out / "clusters.csv").read_text() == clusters

    again = tmp_path / "again"
    assert (
        run_command(["fit", str(large_photos), "-o", str(again), "-k", "3", "--recipe", str(out / "recipe.toml")]) == 0
    )
    assert (again / "clusters.csv").read_text() == clusters

    shutil.rmtree(kept.parents[3])  # a model needs the file no more
    assert run_command(["predict", str(out), str(large_photos), "-o", str(tmp_path / "p.csv")]) == 0


def test_a_run_without_a_terminal_warns_and_goes_on(hub_cache, large_photos, tmp_path, capsys):
    fit = ["fit", str(large_photos), "-o", str(tmp_path / "run"), *QUICK]
    assert run_command([*fit, "--json"]) == 0
    said = capsys.readouterr()
    assert "warning: " in said.err and "`deepcluster fetch`" in said.err and json.loads(said.out)["clusters"] == 3
    assert recorded(tmp_path / "run") == ""
    assert run_command([*fit, "--overwrite", "--weights", "none"]) == 0
    assert "deepcluster fetch" not in (said := capsys.readouterr()).err and "deepcluster fetch" not in said.out


def test_a_dry_run_asks_and_fetches_nothing(hub, large_photos, capsys):
    for options, expected in (
        ((), "trains from nothing"),
        (("--backbone", "photos-small"), "ends with an error"),
        (("--backbone", PUBLISHED[SMALL].backbone, "--weights", "timm"), ""),
    ):
        assert run_command(["fit", str(large_photos), *QUICK, "--dry-run", *options]) == 0
        said = capsys.readouterr()
        assert expected in said.out and not said.err
    assert not hub.requests


def test_the_estimator(hub_cache, large_photos):
    quick = {"n_clusters": 3, "rounds": 0, "image_size": 16}
    with pytest.warns(DeepClusterWarning, match="`deepcluster fetch`"):
        DeepCluster(**quick).fit(large_photos)
    DeepCluster(**quick, weights="none").fit(large_photos)
    with pytest.raises(ModelError, match="`deepcluster fetch photos`"):
        DeepCluster(**quick, backbone="photos").fit(large_photos)
