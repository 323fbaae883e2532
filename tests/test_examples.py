"""The examples run, as a reader would run them."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from deepcluster.cli import run_command

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def output_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def output(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return output


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> int:
    """scikit-learn has only so many digits."""
    digits, count = load_digits(), 400
    few = type(digits)(data=digits.data[:count], images=digits.images[:count], target=digits.target[:count])
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: few)
    return count


def test_own_loop(output_of, few_digits):
    *rounds, last = output_of("own_loop.py", "1")
    assert [line.split(":")[0] for line in rounds] == ["round 0"]
    assert float(last.split()[3]) > 0.5  # NMI


@pytest.mark.slow
def test_own_network(output_of, few_digits):
    *rounds, score, same = output_of("own_network.py", "1")
    assert [line.split(":")[0] for line in rounds] == ["round 0"]
    assert float(score.split()[1]) > 0.3
    assert same == "loaded: True"


def test_use_the_model(output_of, few_digits, tmp_path):
    run = tmp_path / "run"
    arguments = ["-k", "10", "--rounds", "0", "--quiet", "-o", str(run)]
    assert run_command(["fit", "sklearn:digits", *arguments]) == 0
    assert len(np.load(run / "features.npy")) == few_digits
    lines = output_of("use_the_model.py", str(run))
    assert len(lines) == 21
    assert sum(map(int, lines[-1].partition("[")[2].rstrip("]").split(","))) == 20


def test_photographs(output_of, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = output_of("photographs.py", str(photos), "3", "0")[-7:]
    assert lines[0] == "48 photographs in 3 clusters, 0 files of no use"
    told = dict(line.split(": ", 1) for line in lines[1:])
    assert sum(int(told[f"cluster {i}"].split()[0]) for i in range(3)) == 48
    assert len(json.loads(told["clusters of three photographs"])) == 3
    assert Path(told["the report"]).is_file()


def test_estimator(output_of, few_digits):
    lines = output_of("estimator.py", "", "0")
    assert "now 25 clusters" in lines[-3]
    assert lines[-1].removeprefix("loaded: ") == lines[-3].rpartition("are in ")[2]


@pytest.mark.slow
def test_pipeline(output_of):
    lines = output_of("pipeline.py", "0", "0")
    assert [line.split(" held-out")[0].strip() for line in lines] == ["raw pixels", "DeepCluster"]
    assert all(float(line.split()[i]) > 0.9 for line in lines for i in [line.split().index("accuracy") + 1])


def test_no_example_is_long():
    assert all(len(path.read_text().splitlines()) < 100 for path in EXAMPLES.glob("*.py"))
