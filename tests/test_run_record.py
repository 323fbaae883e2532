"""run.json as a value, and who may write it."""

import json
from dataclasses import replace

import pytest

from deepcluster.storage.content import RunRecord
from deepcluster.storage.run_folder import RunFolder
from tests.tiny import writable

RUN = {"schema_version": 1, "images": "photos", "location": "/photos", "seed": 5, "n_clusters": None}


@pytest.mark.parametrize("more", [{}, {"n_clusters": 3, "of a later version": [1, {"a": None}]}])
def test_a_record_is_written_as_it_was_read(more):
    assert RunRecord.from_json(RUN | more).to_json() == RUN | more


def test_only_what_is_known_is_in_the_file():
    record = replace(RunRecord.from_json(RUN), verdict="v", edits="a").with_phase("reading", 1.234)
    assert record.with_phase("rounds", 2).to_json() == RUN | {
        "verdict": "v", "edits": "a", "seconds_by_phase": {"reading": 1.23, "rounds": 2}
    }  # fmt: skip
    assert "edits" not in replace(record, edits=None).to_json()


def test_a_record_comes_back(tmp_path):
    record = RunRecord.from_json(RUN)
    writable(tmp_path).write_record(record)
    assert json.loads((tmp_path / "run.json").read_text()) == RUN
    assert RunFolder(tmp_path).read_record() == record
