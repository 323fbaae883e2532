"""run.json as a value, and who may write it."""

import json
from dataclasses import replace

import pytest

from deepcluster.storage.run_folder import RunFolder
from deepcluster.storage.run_record import RunRecord

RUN = {"schema_version": 1, "images": "photos", "location": "/photos", "seed": 5, "n_clusters": None}


@pytest.mark.parametrize("more", [{}, {"n_clusters": 3, "of a later version": [1, {"a": None}]}])
def test_a_record_is_written_as_it_was_read(more):
    assert RunRecord.from_json(RUN | more).to_json() == RUN | more


def test_only_what_is_known_is_in_the_file():
    record = replace(RunRecord.from_json(RUN), signs={}, edits="a").with_phase("reading", 1.234)
    assert record.with_phase("rounds", 2).to_json() == RUN | {
        "signs": {}, "edits": "a", "seconds_by_phase": {"reading": 1.23, "rounds": 2}
    }  # fmt: skip
    assert "edits" not in replace(record, edits=None).to_json()


def test_a_folder_of_another_rank_refuses_to_be_written_to(tmp_path):
    record = RunRecord.from_json(RUN)
    RunFolder(tmp_path).write_record(record)
    assert json.loads((tmp_path / "run.json").read_text()) == RUN
    with pytest.raises(AssertionError, match="main rank"):
        RunFolder(tmp_path, read_only=True).write_record(replace(record, status="done"))
    assert RunFolder(tmp_path, read_only=True).read_record() == record
