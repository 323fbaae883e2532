"""Every option is declared once, and what is declared is what the command line, the pages and the engine know."""

import json
import re
from typing import Any

import pytest

from deepcluster import flags
from deepcluster.cli import run_command
from deepcluster.errors import UsageError
from deepcluster.evaluation.options import PROTOCOL_OPTIONS
from deepcluster.recipe import Recipe, declared, read_options
from deepcluster.runs.evaluate import PROTOCOLS
from tests.other_values import Asked, other_value
from tests.pages import ROOT
from tests.tiny import RECORD


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """What the command lines here name: images, weights and a run."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "run"):
        (tmp_path / name).mkdir()
    for name in ("photos/a.png", other_value(declared(Recipe)["weights"])):
        (tmp_path / name).write_bytes(b"0")
    (tmp_path / "run/run.json").write_text(json.dumps(RECORD))


def asked(monkeypatch, engine: str, *arguments: str) -> Any:
    """What a command asks the function ``engine`` for."""

    def stop(_, request, *__, **___):
        raise Asked(request)

    monkeypatch.setattr(engine, stop)
    with pytest.raises(Asked) as caught:
        run_command(["--debug", *arguments])
    return caught.value.args[0]


@pytest.mark.parametrize("name", declared(Recipe))
def test_every_option_has_a_way_from_the_command_line(name, monkeypatch, at_hand):
    option = declared(Recipe)[name]
    value, flag = other_value(option), f"--{name.replace('_', '-')}"
    ways = [["--set", f"{name}={value}"], ["--set", "sobel=true", f"{name.replace('_', '-')}={value}"]]
    for way in [*ways, *([[flag, str(value)]] if option.flag else [])]:
        options = asked(monkeypatch, "deepcluster.runs.fit.fit", "fit", "photos", *way).options
        assert options[name] == value and type(options[name]) is type(option.default)
        assert options.keys() <= {name, "sobel"}
    if not option.flag:
        assert run_command(["fit", "photos", flag, str(value)]) == 2


def test_what_was_not_given_is_left_to_the_recipe(monkeypatch, at_hand):
    engine = "deepcluster.runs.fit.fit"
    assert asked(monkeypatch, engine, "fit", "photos").options == {}
    assert asked(monkeypatch, engine, "fit", "photos", "--pseudo-labels", "auto").options == {}
    assert asked(monkeypatch, engine, "fit", "photos", "--lr", "1", "--set", "lr=2").options == {"lr": 2}  # the last


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_option_of_a_protocol_that_has_a_flag_has_it(protocol, monkeypatch, at_hand):
    options = {name: option for name, option in declared(PROTOCOL_OPTIONS[protocol]).items() if option.flag}
    given = [part for name, each in options.items() for part in (f"--{name.replace('_', '-')}", str(other_value(each)))]
    request = asked(
        monkeypatch, "deepcluster.runs.evaluate.evaluate", "evaluate", "run", "--protocol", protocol, *given
    )
    assert request.options == {name: other_value(option) for name, option in options.items()}
    assert {*flags.ProtocolFlags.__annotations__} == {
        name for kind in PROTOCOL_OPTIONS.values() for name, option in declared(kind).items() if option.flag
    }


def test_the_protocols_with_options_are_those_that_there_are():
    assert PROTOCOL_OPTIONS.keys() == {*PROTOCOLS}


def test_the_reference_lists_every_option(capsys):
    assert run_command(["recipes", "--options"]) == 0
    printed = capsys.readouterr().out
    for name, option in declared(Recipe).items():
        assert f"\n  {name} " in printed and option.help in printed
    page = (ROOT / "docs/reference/options.md").read_text()
    assert f"```text\n{printed}```\n" in page, "put into it what `deepcluster recipes --options` prints"


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
                with pytest.raises(UsageError, match=f"{name}=.* must lie between"):
                    read_options(kind, {name: end + step})
        elif option.choices:
            with pytest.raises(UsageError, match=f"{name}='none of them': choose {option.choices[0]} or"):
                read_options(kind, {name: "none of them"})
