"""Every option is declared once, and what is declared is what the command line, the pages and the engine know."""

import re
import subprocess
import sys
from typing import Any

import pytest

from deepcluster import cli
from deepcluster.cli import run_command
from deepcluster.errors import UsageError
from deepcluster.evaluation.clustering import ClusteringOptions
from deepcluster.evaluation.few_labels import FewLabelsOptions
from deepcluster.evaluation.knn import KnnOptions
from deepcluster.evaluation.linear import LinearOptions
from deepcluster.recipe import Recipe, declared, read_options
from deepcluster.research.filters import FiltersOptions
from deepcluster.research.retrieval import RetrievalOptions
from deepcluster.research.voc07 import Voc07Options
from deepcluster.runs.evaluate import PROTOCOLS
from tests.other_values import other_value
from tests.pages import ROOT

PROTOCOL_OPTIONS = {
    "clustering": ClusteringOptions,
    "knn": KnnOptions,
    "linear": LinearOptions,
    "few": FewLabelsOptions,
    "retrieval": RetrievalOptions,
    "voc07": Voc07Options,
    "filters": FiltersOptions,
}


class Asked(Exception):
    """A command that goes no further than what it asks the engine for."""


def asked(monkeypatch, engine: str, *arguments: str) -> Any:
    """What a command asks the function ``engine`` for."""

    def stop(_, request, *__, **___):
        raise Asked(request)

    monkeypatch.setattr(engine, stop)
    with pytest.raises(Asked) as caught:
        run_command(["--debug", *arguments])
    return caught.value.args[0]


@pytest.mark.parametrize("name", declared(Recipe))
def test_every_option_has_a_way_from_the_command_line(name, monkeypatch):
    option = declared(Recipe)[name]
    value, flag = other_value(option), f"--{name.replace('_', '-')}"
    ways = [["--set", f"{name}={value}"], ["--set", "sobel=true", f"{name.replace('_', '-')}={value}"]]
    for way in [*ways, *([[flag, str(value)]] if option.flag else [])]:
        options = asked(monkeypatch, "deepcluster.runs.fit.fit", "fit", "photos", *way).options
        assert options[name] == value and type(options[name]) is type(option.default)
        assert options.keys() <= {name, "sobel"}
    if not option.flag:
        assert run_command(["fit", "photos", flag, str(value)]) == 2


def test_what_was_not_given_is_left_to_the_recipe(monkeypatch):
    engine = "deepcluster.runs.fit.fit"
    assert asked(monkeypatch, engine, "fit", "photos").options == {}
    assert asked(monkeypatch, engine, "fit", "photos", "--pseudo-labels", "auto").options == {}
    assert asked(monkeypatch, engine, "fit", "photos", "--lr", "1", "--set", "lr=2").options == {"lr": 2}  # the last


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_option_of_a_protocol_that_has_a_flag_has_it(protocol, monkeypatch):
    options = {name: option for name, option in declared(PROTOCOL_OPTIONS[protocol]).items() if option.flag}
    given = [part for name, each in options.items() for part in (f"--{name.replace('_', '-')}", str(other_value(each)))]
    request = asked(
        monkeypatch, "deepcluster.runs.evaluate.evaluate", "evaluate", "run", "--protocol", protocol, *given
    )
    assert request.options == {name: other_value(option) for name, option in options.items()}
    assert {*cli.ProtocolFlags.__annotations__} == {
        name for kind in PROTOCOL_OPTIONS.values() for name, option in declared(kind).items() if option.flag
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "fast"], "--lr"),
        (["--lr", "101"], "lr=101.0 must lie between 0 and 100"),
        (["--set", "lrr=1"], "did you mean lr?"),
        (["--set", "empty=drop"], "split or sample or faiss"),
        (["--recipe", "atuo"], "did you mean auto"),
        (["-k", "many"], "-k many"),
        (["--device", "tpu"], "cuda"),
        (["--time-limit", "soon"], "--time-limit soon: write it as 90s"),
        (["--checkpoint-every", "soon"], "--checkpoint-every soon: write it as 90s"),
        (["--resume"], "give -o RUN"),
    ],
)
def test_a_typo_is_said_before_anything_slow_is_imported(arguments, message):
    code = (
        "import sys\nfrom deepcluster.cli import run_command\n"
        f"code = run_command({['fit', 'photos', *arguments]})\n"
        "sys.exit(99 if {'torch', 'sklearn'} & set(sys.modules) else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_the_reference_lists_every_option(capsys):
    assert run_command(["recipes", "--options"]) == 0
    printed = capsys.readouterr().out
    for name, option in declared(Recipe).items():
        assert f"\n  {name} " in printed and option.help in printed
    page = (ROOT / "docs/reference/options.md").read_text()
    assert f"```text\n{printed}```\n" in page, "put into it what `deepcluster recipes --options` prints"


@pytest.mark.parametrize("protocol", ["linear", "voc07", "filters"])
def test_the_tables_of_protocols_have_the_defaults(protocol):
    section = (ROOT / "docs/protocols.md").read_text().partition(f"\n## {protocol}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", section, re.MULTILINE)
    said = {}
    for names, values in rows:
        said |= dict(zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True))
    plain = {"all": "", "that of the run": 0, "256/224": 256 / 224, "true": True, "false": False}
    options = declared(PROTOCOL_OPTIONS[protocol])
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


def test_research_is_imported_only_when_it_is_asked_for():
    code = (
        "import sys, deepcluster.cli, deepcluster.estimator, deepcluster.runs.evaluate\n"
        "sys.exit(any(name.startswith('deepcluster.research') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
