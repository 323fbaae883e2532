"""The size of the project has limits: what goes beyond them takes something else out."""

import ast

from tests.helpers.pages import ROOT


def test_no_part_is_larger_than_its_limit():
    limits = {
        "deepcluster/**/*.py": 20_690, "deepcluster/report/templates/**/*.*": 3_025, "tests/**/*.py": 18_390,
        "benchmarks/*.py": 2_635, "docs/*.md": 1_840, "docs/tutorials/*.md": 264, "README.md": 116,
    }  # fmt: skip
    lines = {part: sum(len(file.read_text().splitlines()) for file in ROOT.glob(part)) for part in limits}
    assert {part: lines[part] for part in limits if lines[part] > limits[part]} == {}
    parts = [node for file in ROOT.glob("deepcluster/**/*.py") for node in ast.walk(ast.parse(file.read_text()))]
    functions = [node for node in parts if isinstance(node, ast.FunctionDef)]
    assert [one.name for one in functions if (one.end_lineno or 0) - one.lineno >= 60] == []
    many = {one.name for one in functions if len([*one.args.args, *one.args.kwonlyargs]) > 10}
    assert many == {"alternate", "__init__"}  # the steps of the paper, and what scikit-learn wants of an estimator
