"""2,000 random changes to images and to models, by the scripts of `make fuzz`."""

import json
import random
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from deepcluster.errors import ModelError
from deepcluster.images.decode import pillow_limits
from deepcluster.storage import model_files as models
from fuzz import decode, harness, model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decode", "model"])
def test_2000_random_changes(name, tmp_path):
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", f"fuzz.{name}", "--plain", "--runs", "2000", "--seconds", "900"],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] == 2000
    assert 0 < found["accepted"] < 1500  # most changes are found, and not all are harmless by chance
    assert found["slowest"] < 10
    assert found["risen_mb"] < 210


@pytest.mark.parametrize("script", [decode, model])
def test_what_is_whole_is_accepted_and_a_few_changes_do_no_harm(script, monkeypatch):
    monkeypatch.setattr(decode.decoding, "MAX_PIXELS", decode.MAX_PIXELS)
    chance = random.Random(0)
    with pillow_limits():
        assert script.one(script.seeds()[0])
        for _ in range(30):
            script.one(harness.changed(script.seeds(), chance))


@pytest.mark.parametrize(
    ("error", "found"), [(KeyError("names"), KeyError), (ModelError("no name of a file"), AssertionError)]
)
def test_a_fault_is_a_finding(monkeypatch, error, found):
    """The negative control."""
    monkeypatch.setattr(models, "load", Mock(side_effect=error))
    with pytest.raises(found):
        model.one(model.seeds()[0])
