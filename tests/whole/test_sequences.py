"""Random sequences of commands, some of them killed, on a run folder with files of the user in it.

After each command every file of the user is as it was, and the run is as before or as after: never mixed, and never
gone. One sequence that is written down, or DEEPCLUSTER_SEQUENCES random ones.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from PIL import Image

from tests.helpers.commands import command
from tests.helpers.runs import bystanders, contents, state_of

SEQUENCES = os.environ.get("DEEPCLUSTER_SEQUENCES")
FIT = "fit photos -o run --image-size 8 --rounds 0 --precision fp32 --pseudo-labels 5 -q"
LINES = [
    *(f"{FIT} {more}" for more in ("-k 3 --overwrite", "-k 5 --seed 1 --overwrite", "-k 3 --resume", "-k 2")),
    *(f"recut run -k {number} -q" for number in ("1", "4", "2 --dry-run")),
    *(f"apply run {edits} -q" for edits in ("merge.json", "name.json", "--undo", "--undo all", "--redo")),
    *("teach run answers.csv -q", "teach run -q", "ask run -n 3"),
    *(f"update run more/{number}.png" for number in range(3)),
    *("report run", "predict run photos -o new.csv -q"),
    "export run --to folders --mode copy -o sorted --overwrite -q",
]
# Where a command is killed: before the n-th call of a function that changes the disk; None: it is not.
CALLS = ["pathlib:Path.replace", "pathlib:Path.rename", "pathlib:Path.unlink", "os:fsync", "shutil:rmtree", "os:link"]
KILLS = st.one_of(
    st.none(),
    st.tuples(st.just("SIGKILL"), st.sampled_from(CALLS), st.integers(1, 25)),
    st.tuples(st.sampled_from(["SIGINT", "SIGTERM"]), st.sampled_from(CALLS[::3]), st.integers(1, 25)),
)


class Life(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="sequences-"))
        self.photos, self.run = self.place / "photos", self.place / "run"
        random = np.random.default_rng(0)
        for folder, count in (("photos", 14), ("more", 3)):
            (self.place / folder).mkdir()
            for i in range(count):
                pixels = np.full((8, 8, 3), 60 * (i % 4), np.uint8) + random.integers(0, 40, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(self.place / folder / f"{i}.png")
        for name, edits in {"merge": {"merge": [[0, 1]]}, "name": {"names": {"0": "=1+1"}}}.items():
            (self.place / f"{name}.json").write_text(json.dumps({"schema_version": 1, **edits}))
        (self.place / "answers.csv").write_text('path,name\n0.png,=1+1\n5.png,"a, b"\n')
        self.originals = contents(self.photos)
        assert self.end_of(f"{FIT} -k 3", None)[0] == 0
        self.mine = bystanders(self.run, write=True)

    def teardown(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def end_of(self, line: str, trap: tuple[str, str, int] | None) -> tuple[int, str]:
        places = ("photos", "run", "more", "sorted", "new.csv", "merge.json", "name.json", "answers.csv")
        words = [str(self.place / word) if word.partition("/")[0] in places else word for word in line.split()]
        code, said = command(*words, trap=trap)
        assert code in (0, 2, 3, 4, 5, 75) or (code == -9 and trap), (line, trap, code, said)
        assert "bug" not in said and "Traceback" not in said, (line, trap, said)
        return code, said

    @rule(line=st.sampled_from(LINES), kill=KILLS)
    def a_command(self, line: str, kill: tuple[str, str, int] | None) -> None:
        before = state_of(self.run)
        code, said = self.end_of(line, kill)
        after = state_of(self.run)
        assert after is not None, (line, kill)
        if code not in (0, -9) and "has changed already" not in said:
            assert after == before, (line, kill, said)
        assert contents(self.photos) == self.originals and bystanders(self.run) == self.mine


WRITTEN = {
    "recut run -k 4 -q": None,
    "apply run merge.json -q": ("SIGKILL", "os:fsync", 2),
    "update run more/0.png": ("SIGTERM", "os:fsync", 2),
    "teach run answers.csv -q": ("SIGKILL", "pathlib:Path.replace", 2),
    f"{FIT} -k 5 --seed 1 --overwrite": ("SIGKILL", "pathlib:Path.rename", 1),
    LINES[-1]: ("SIGKILL", "os:fsync", 2),
    "apply run --undo -q": None,
}


def test_a_sequence_of_commands_with_kills():
    life = Life()
    life.begin()
    for line, kill in WRITTEN.items():
        life.a_command(line=line, kill=kill)
    life.teardown()


@pytest.mark.skipif(not SEQUENCES, reason="DEEPCLUSTER_SEQUENCES has no number")
def test_random_sequences_of_commands_with_kills():
    choice = settings(max_examples=int(SEQUENCES or 1), stateful_step_count=8, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Life, settings=choice)
