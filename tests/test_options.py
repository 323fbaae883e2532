"""Every option is declared once, and what is declared is what the command line, the pages and the engine know."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from deepcluster import DeepCluster, flags
from deepcluster.cli import run_command
from deepcluster.clustering import KMeans
from deepcluster.errors import UsageError
from deepcluster.evaluation import PROTOCOL_OPTIONS
from deepcluster.learning import CrossEntropy
from deepcluster.presets import RecipeRequest
from deepcluster.recipe import Option, Recipe, declared, read_options
from tests.pages import ROOT
from tests.tiny import RECORD


def other_value(option: Option) -> Any:
    """A value that an option may have and that is not its default."""
    default = option.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return next((choice for choice in option.choices if choice != default), "other")
    step = 1 if isinstance(default, int) else 0.0625
    return default + step if default + step <= option.high else default - step


class Asked(Exception):
    """A command or a fit that goes no further than the request that it makes."""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The request of a command line or of an estimator's fit, which go no further. Photos, weights and a run exist."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "run"):
        (tmp_path / name).mkdir()
    for name in (*(f"photos/{i}.png" for i in range(7)), other_value(declared(Recipe)["weights"])):
        (tmp_path / name).write_bytes(b"0")
    (tmp_path / "run/run.json").write_text(json.dumps(RECORD))

    def stop(_, request, *__, **___):
        raise Asked(request)

    monkeypatch.setattr("deepcluster.runs.fit.fit", stop)
    monkeypatch.setattr("deepcluster.runs.evaluate.evaluate", stop)

    def request_of(*arguments, **parameters):
        with pytest.raises(Asked) as caught:
            run_command(["--debug", *arguments]) if arguments else DeepCluster(**parameters).fit("photos")
        return caught.value.args[0]

    return request_of


@pytest.mark.parametrize("name", declared(Recipe))
def test_every_option_reaches_the_engine(name, asked):
    option = declared(Recipe)[name]
    value, flag = other_value(option), f"--{name.replace('_', '-')}"
    ways = [["--set", f"{name}={value}"], ["--set", "sobel=true", f"{name.replace('_', '-')}={value}"]]
    requests = [asked("fit", "photos", *way) for way in [*ways, *([[flag, str(value)]] if option.flag else [])]]
    requests.append(asked(options={name: value}))
    if name in DeepCluster().get_params():
        requests.append(asked(**{name: value}))
        assert asked(**{name: None}).recipe.options == {}
    for request in requests:
        options = request.recipe.options
        assert options[name] == value and type(options[name]) is type(option.default)
        assert options.keys() <= {name, "sobel"}
    if not option.flag:
        assert run_command(["fit", "photos", flag, str(value)]) == 2


def test_options_that_were_not_given_are_left_to_the_recipe(asked):
    assert asked("fit", "photos").recipe == asked("fit", "photos", "--pseudo-labels", "auto").recipe == RecipeRequest()
    assert asked("fit", "photos", "--lr", "1", "--set", "lr=2").recipe.options == {"lr": 2}  # the last
    assert asked(pseudo_labels="auto").recipe == RecipeRequest()


FLAGS = {
    "out": Path("new"), "n_clusters": 7, "labels": "folders", "recipe": RecipeRequest("v2"), "time_limit": 5430.0,
    "overwrite": True, "keep_checkpoints": True, "device": "cpu", "seed": 5, "deterministic": True, "verbose": True,
}  # fmt: skip


def test_every_other_flag_and_parameter_reaches_the_engine(asked, tmp_path):
    line = "fit photos -o new -k 7 --labels folders --recipe v2 --time-limit 1h30m30s --overwrite --device cpu --seed 5"
    request = asked(*line.split(), "--deterministic", "--verbose", "--keep-checkpoints")
    assert {name: getattr(request, name) for name in FLAGS} == FLAGS
    assert asked(*["fit", "photos", "-o", "run", "--resume"]).resume
    assert FLAGS.keys() | {"like", "resume", "dry_run", "features"} == vars(flags.FIT).keys()

    others = {"n_clusters", "recipe", "options", "device", "random_state", "verbose"}
    steps = {"clustering": KMeans(), "loss": CrossEntropy(), "optimizer": SGD}
    assert {*DeepCluster().get_params()} - {*declared(Recipe)} == others | steps.keys()
    assert vars(asked(**steps).steps) == steps and asked(**steps).recipe.options == {}
    request = asked(n_clusters=7, recipe="v2", device="cpu", random_state=5, weights=tmp_path, verbose=2)
    for name in ("n_clusters", "device", "seed", "verbose"):
        assert getattr(request, name) == FLAGS[name]
    assert request.recipe == RecipeRequest("v2", options={"weights": str(tmp_path)})
    assert [asked(device=device).device for device in (1, torch.device("cpu"))] == ["cuda:1", "cpu"]
    assert asked(random_state=np.int64(3)).seed == 3
    assert asked(random_state=None).seed != asked(random_state=None).seed
    first, second, third = (asked(random_state=np.random.RandomState(seed)).seed for seed in (1, 1, 2))
    assert first == second != third


@pytest.mark.parametrize("protocol", PROTOCOL_OPTIONS)
def test_every_flag_of_a_protocol_reaches_the_engine(protocol, asked):
    with_flags = {name: option for name, option in declared(PROTOCOL_OPTIONS[protocol]).items() if option.flag}
    values = {name: other_value(option) for name, option in with_flags.items()}
    given = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert asked("evaluate", "run", "--protocol", protocol, *given).options == values
    others = {*flags.ProtocolFlags.__annotations__} - {*declared(PROTOCOL_OPTIONS[protocol])}
    for name in others:
        assert run_command(["evaluate", "run", "--protocol", protocol, f"--{name.replace('_', '-')}", "1"]) == 2


def test_the_reference_lists_every_option(prints):
    printed = prints("recipes", "--options")
    for name, option in declared(Recipe).items():
        assert f"\n  {name} " in printed and option.help in printed


def test_the_table_of_the_linear_protocol_has_the_defaults():
    section = (ROOT / "docs/protocols.md").read_text().partition("\n## linear\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", section, re.MULTILINE)
    said = {}
    for names, values in rows:
        said |= dict(zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True))
    plain = {"all": "", "that of the run": 0, "256/224": 256 / 224, "true": True, "false": False}
    options = declared(PROTOCOL_OPTIONS["linear"])
    assert said.keys() == options.keys()
    for name, text in said.items():
        kind = type(options[name].default)
        value = plain[text] if text in plain else kind(text.replace(",", "") if kind is not str else text)
        assert value == options[name].default, name


@pytest.mark.parametrize("kind", [Recipe, *PROTOCOL_OPTIONS.values()])
def test_the_ends_of_a_range_are_in_it_and_nothing_beyond(kind):
    assert declared(kind)
    for name, option in declared(kind).items():
        assert option.help.endswith(".") and option.read(option.default) == option.default
        if isinstance(option.default, int | float) and not isinstance(option.default, bool):
            for end, step in ((option.low, -1), (option.high, 1)):
                assert read_options(kind, {name: str(end)}) == {name: end}
                with pytest.raises(UsageError, match=f"{name}="):
                    read_options(kind, {name: end + step})
        elif option.choices:
            with pytest.raises(UsageError, match=f"{name}='none of them'.*{option.choices[0]}"):
                read_options(kind, {name: "none of them"})
