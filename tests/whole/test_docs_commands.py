"""The documentation is true: every command and every Python block of its pages runs, page by page, in order.

Each page has a sandbox of its own with what its reader would have: ``photos/`` (48 small drawings), ``new/`` (6 more),
``labels.csv`` and the file of weights that it names. Two rules make it cheap: ``fit`` gets the options ``QUICK`` that
the page does not set, and a Python block ``rounds=1``. A comment ``exit code N`` is part of what a page promises.
"""

import importlib
import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest

import deepcluster
from deepcluster import errors, export
from deepcluster.commands import cli
from deepcluster.recipes.presets import PRESETS
from deepcluster.runtime.signals import EXIT_ON_SECOND_SIGINT
from deepcluster.storage.content import COLUMNS, FILES, PREDICTIONS
from tests.helpers import pages
from tests.helpers.pages import PAGES, ROOT, blocks, prose, text_of
from tests.helpers.sandbox import Sandbox, example_of, options, verbs

HISTORY = (
    "decisions.md",
    "RECORDS.md",
    "2026-11.md",
    "2026-12.md",
)  # may name options that are gone, or other programs'


def page_of(page: Path) -> object:
    """A page to test; slow but for the README and the reference of the command."""
    quick = page.parent == ROOT or page.name == "usage.md"
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    "page", [page_of(page) for page in pages.pages_with("console", "python") if page not in pages.TRANSLATIONS]
)
def test_a_page_is_true(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    sandbox = Sandbox(tmp_path, page)
    for block in blocks(page):
        if block.language == "console":
            for line in block.lines():
                sandbox.run(line)
        elif block.language == "python":
            sandbox.execute(block)
    if page == ROOT / "README.md":  # its run serves the examples of the helps, too
        for line in sorted({*map(example_of, verbs())} - {*without_comments(page)}):
            sandbox.run(line)
    for named in re.findall(r"`(runs/[\w./-]+)`", prose(page)):
        assert Path(named).exists(), f"{page.name} names {named}, which its commands do not make"


def test_a_translation_has_the_same_commands_code_links_and_figures():
    """It is true if the original is. A link may lead to the translated tutorial."""
    texts = [re.sub(r"<!-- .*? -->", "", text_of(page)) for page in (ROOT / "README.md", pages.TRANSLATED)]
    for pattern in (r"\]\(([^)]+)\)", r"`[^`\n]+`", r"[\d.,]*\d"):  # links, code, numbers
        items = [re.findall(pattern, re.sub("docs/(zh|tutorials)/", "docs/", text)) for text in texts]
        names = {"README.md", pages.TRANSLATED.name}
        original, translated = (sorted(name for name in page if name not in names) for page in items)
        assert original == translated
    assert without_comments(ROOT / "README.md") == without_comments(pages.TRANSLATED)


@pytest.mark.parametrize("name", ["tutorials/photographs.md", "tutorials/teach.md", "questions.md"])
def test_a_translated_page_has_commands_and_figures_of_the_original(name: str):
    original, translated = ROOT / "docs" / name, ROOT / "docs/zh" / Path(name).name
    said, translation = (re.sub(r"<!-- .*? -->", "", text_of(page)) for page in (original, translated))
    for pattern in (r"`[^`\n]+`", r"\d[\d.,]*\d(?: (?:%|MB|px))?"):
        assert set(re.findall(pattern, translation)) <= set(re.findall(pattern, said))
    assert set(without_comments(translated)) <= set(without_comments(original))


def test_the_page_shows_the_steps_of_change_a_step():
    (shown,) = (block.text for block in blocks(ROOT / "docs/change-a-step.md") if block.language == "py")
    assert shown.strip() in (ROOT / "examples/change_a_step.py").read_text()


def without_comments(page: Path) -> list[str]:
    return [re.sub(r"\s+# .*", "", line) for block in blocks(page) for line in block.lines()]


def value_of(name: str, tables: ModuleType) -> float:
    """Return what was measured (collections~flowers5.nmi) or a constant (nets.names.PUBLISHED.photos.megabytes)."""
    if (ROOT / f"benchmarks/results/{re.split('[.~]', name)[0]}.json").exists():
        return tables.figure(name)
    value: Any = deepcluster
    for part in name.split("."):
        if hasattr(value, "__path__") and find_spec(f"{value.__name__}.{part}"):
            value = importlib.import_module(f"{value.__name__}.{part}")
        else:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def test_tables_and_marked_numbers_are_those_measured_or_of_the_code(monkeypatch: pytest.MonkeyPatch):
    """A mark is the source of the number before it, as in ``288<!-- images.decode.BYTES_AT_ONCE / 1e6 --> MB``."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    for page in PAGES:
        assert tables.written(text_of(page)) == text_of(page), "python benchmarks/tables.py"
        for number, source in re.findall(r"([\d.,]*\d)<!-- ([^>]*) -->", text_of(page)):
            value = eval(re.sub(r"[a-z][\w~-]*\.[\w.-]*\w", lambda name: str(value_of(name[0], tables)), source))
            half = 0.5001 * 10 ** -len(number.partition(".")[2])
            assert abs(value - float(number.replace(",", ""))) <= half, f"{page.name}: {source} is {value}"


def test_results_have_a_row_on_each_line(monkeypatch: pytest.MonkeyPatch):
    """A new measurement then changes the lines of its runs alone."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    in_rows = importlib.import_module("common").in_rows
    for file in (ROOT / "benchmarks/results").glob("*.json"):
        assert file.read_text() == in_rows(json.loads(file.read_text())) + "\n", f"{file.name}: by `save`"


FIGURE = r"(?<![\w.,/])(?<!\w-)(?:\d[\d,]*\.\d+|\.\d+|\d[\d,]*(?= ?(?:%|(?:[MG]B|m?s|seconds?|minutes?)\b)))(?!\w|\.\d)"
SOURCED = r"<!-- table.*?<!-- end|[\d.,]+<!-- [^>]* -->|`[^`]*`|\]\([^)]*\)|(?:[Ss]ection|arXiv|Python) \d\S*"
# Figures of others, and of an install.
ELSEWHERE = {
    "README.md": "1.2",
    "export.md": ".228 .229 4.0",
    "method.md": "0.9",
    "results.md": "1.5",
}
UNCHECKED = {
    *pages.TRANSLATIONS,
    *(page for page in PAGES if page.name in (*HISTORY, "reproduction.md")),
}  # published, or past


@pytest.mark.parametrize("page", [page for page in PAGES if page not in UNCHECKED], ids=lambda page: page.name)
def test_figures_in_sentences_have_a_source(page: Path):
    """A decimal, share, time or size is in a table of tables.py, or has a mark, so it cannot become stale."""
    figures = re.findall(FIGURE, re.sub(SOURCED, " ", prose(page), flags=re.DOTALL))
    assert {*figures} <= {*ELSEWHERE.get(page.name, "").split()}, "mark the source (benchmarks/README.md)"


def test_no_paragraph_has_more_than_80_words():
    for page in [*(ROOT / "docs").rglob("*.md"), *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]:
        text = re.sub(r"<!--.*?-->|\]\([^)]*\)|^\|[^\n]*$", "", prose(page), flags=re.DOTALL | re.MULTILINE)
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*] |\d\. )", text):
            assert len(paragraph.split()) <= 80, f"{page.name}: {paragraph.strip()[:60]}"


def test_every_help_ends_with_an_example_of_its_command():
    for verb in verbs():
        (name, *_) = pages.of_deepcluster(example_of(verb)) or [""]
        assert name == verb


def test_commands_are_found():
    ours = [arguments for page in PAGES for line in pages.commands(page) if (arguments := pages.of_deepcluster(line))]
    assert {arguments[0] for arguments in ours} == verbs()  # each command is shown somewhere


def test_no_command_hides_in_another_block():
    ours = re.compile(rf"(\$ )?deepcluster ({'|'.join(verbs())})\b")
    for page in PAGES:
        hidden = [line for block in blocks(page) if block.language != "console" for line in block.lines()]
        hidden = [line for line in hidden if ours.match(line)]
        assert not hidden, f"{page.name}: in a console block they are run: {hidden}"
        fences = len(re.findall(r"^ *```", text_of(page), re.MULTILINE))
        whole = pages.FENCE.findall(text_of(page))
        assert fences == 2 * len(whole), f"{page.name}: a block without a language or an end"


def test_options_in_the_prose_exist():
    everywhere = set.union(*map(options, verbs())) | {"--debug", *cli.app}
    everywhere |= {"--standalone", "--nproc-per-node", "--master-port"}  # torchrun's
    for page in PAGES:
        if page.name in HISTORY:
            continue
        for code in re.findall(r"`((?:deepcluster |-)[^`\n]+)`", prose(page)):
            verb = command[1] if (command := re.match(r"deepcluster (\w+)", code)) else ""
            assert verb in verbs() | {"", "VERB"}, f"{page.name}: {code}"
            named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", code))
            assert named <= (options(verb) if verb in verbs() else everywhere), f"{page.name}: {code}"


def test_nothing_is_installed_from_where_deepcluster_is_not():
    """The package is on no registry, so a message or a page names the library that is missing, and no extra of ours."""
    texts = {path: text_of(path) for path in [*PAGES, *(ROOT / "deepcluster").rglob("*.py")]}
    assert [path for path, text in texts.items() if re.search(r"pip install.*deepcluster\b", text)] == []


def test_links_and_names_of_source_files_lead_somewhere():
    folders = ("", "deepcluster", "examples", "examples/research", "benchmarks", "tests")
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page)):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
        for name in re.findall(r"`([\w/.]+/\w+\.py|[a-z_]+\.py)`", prose(page)) if page.name not in HISTORY else ():
            assert any((ROOT / folder / name).exists() for folder in folders), f"{page.name}: {name}"


def test_the_columns_in_the_pages_are_those_of_the_files():
    page = text_of(ROOT / "docs/run-folder.md")
    for name in ("cluster_summary.csv", "skipped.csv", "duplicates.csv"):
        columns = FILES[name].columns
        assert f"`{','.join(columns)}`" in next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
    of_images = page.partition("## images.csv")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", of_images, re.MULTILINE)) == FILES["images.csv"].columns
    assert ",".join(PREDICTIONS) in text_of(ROOT / "README.md")


def test_the_exit_codes_in_the_pages_are_those_of_the_errors():
    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    said = text_of(ROOT / "docs/usage.md").partition("## Exit codes")[2]
    assert set(map(int, re.findall(r"\b(\d+) [a-z]", said))) == codes | {0, EXIT_ON_SECOND_SIGINT}


def test_the_names_that_stay_exist():
    names = {" ".join(name.split()) for name in re.findall(r"`([^`]+)`", text_of(ROOT / "docs/reference/stability.md"))}
    commands = {name for name in names if name.split()[0] in verbs()}
    assert {name.split()[0] for name in commands} == verbs()
    for verb, *flags in map(str.split, commands):
        assert {*flags} <= options(verb), verb
    functions = {name for name in names if name.startswith("deepcluster.")}
    for module, _, name in (name.rpartition(".") for name in functions):
        assert hasattr(importlib.import_module(module), name), name
    known = {*FILES, "model/", *(column.name for column in COLUMNS), *PRESETS, *export.__all__}
    known |= {*dir(deepcluster.DeepCluster), *re.findall(r"(\w+_):", deepcluster.DeepCluster.__doc__ or "")}
    assert names - commands - functions <= known


def test_every_package_is_in_the_list_of_packages():
    table = text_of(ROOT / "CONTRIBUTING.md").partition("| package or module |")[2].partition("##")[0]
    names = re.findall(r"`(\w+)/?`", table)
    contracts = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    level = {name: i for i, layer in enumerate(contracts[0]["layers"]) for name in re.findall(r"\w+", layer)}
    order = [level[name] for name in names if name in level]
    assert order == sorted(order, reverse=True)
    assert level.keys() <= {*names, "__main__"}


def test_every_form_of_export_has_a_page_and_tests():
    forms = get_args(get_type_hints(cli.export)["to"])
    assert sorted(forms) == sorted(export.__all__)
    for form in forms:
        assert f"\n## {form}\n" in text_of(ROOT / "docs/export.md") and (ROOT / f"tests/export/test_{form}.py").exists()
