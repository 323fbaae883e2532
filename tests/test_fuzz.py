"""Random changes to images and to models, by the targets of `make fuzz`."""

import random
import time
from unittest.mock import Mock

import pytest

from deepcluster.errors import ModelError
from deepcluster.images.decode import pillow_limits
from deepcluster.storage import model_files as models
from fuzz import decode, harness, model


@pytest.mark.parametrize("changes", [30, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("script", [decode, model])
def test_what_is_whole_is_accepted_and_changes_do_no_harm(script, changes, monkeypatch):
    monkeypatch.setattr(decode.decoding, "MAX_PIXELS", decode.MAX_PIXELS)
    chance, seeds, accepted = random.Random(0), script.seeds(), 0
    with pillow_limits():
        assert script.one(seeds[0])
        before = harness.peak_memory(anew=True)
        for _ in range(changes):
            begin = time.monotonic()
            accepted += script.one(harness.changed(seeds, chance))
            assert time.monotonic() - begin < 10
    assert 0 < accepted < 0.75 * changes  # most changes are found, and not all are harmless by chance
    assert harness.peak_memory() - before < 210e6


@pytest.mark.parametrize(
    ("error", "found"), [(KeyError("names"), KeyError), (ModelError("no name of a file"), AssertionError)]
)
def test_a_fault_is_a_finding(monkeypatch, error, found):
    """The negative control."""
    monkeypatch.setattr(models, "load", Mock(side_effect=error))
    with pytest.raises(found):
        model.one(model.seeds()[0])
