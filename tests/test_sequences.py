"""Random sequences of commands, some of them killed, on a run folder with files of the user in it.

After each command every file of the user is as it was, and the run is absent, as before or as after: never mixed. The
same three sequences at each call, or DEEPCLUSTER_SEQUENCES random ones.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

from deepcluster.runtime.plain_files import is_run
from deepcluster.storage import run_folder as files
from tests.commands import Commands
from tests.helpers.runs import bystanders, contents, state_of

SEQUENCES = os.environ.get("DEEPCLUSTER_SEQUENCES")
OPTIONS = ["--image-size", "8", "--rounds", "0", "--precision", "fp32", "--pseudo-labels", "5", "--quiet"]
MORE = ["", "--overwrite", "--resume"]
# Where a command is killed: before the n-th call of a function that changes the disk; None: it is not.
CHANGES = ["pathlib:Path.replace", "pathlib:Path.rename", "pathlib:Path.unlink", "os:fsync", "shutil:rmtree"]
KILLS = st.one_of(
    st.none(),
    st.tuples(st.just("SIGKILL"), st.sampled_from(CHANGES), st.integers(1, 25)),
    st.tuples(st.sampled_from(["SIGINT", "SIGTERM"]), st.sampled_from(CHANGES[::3]), st.integers(1, 25)),
)


class Life(RuleBasedStateMachine):
    """``command`` is set from outside: the process that forks one for each command."""

    command: Commands

    @initialize()
    def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="sequences-"))
        self.photos, self.run = self.place / "photos", self.place / "run"
        self.photos.mkdir()
        random = np.random.default_rng(0)
        for i in range(14):
            pixels = np.full((8, 8, 3), 60 * (i % 4), np.uint8) + random.integers(0, 40, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(self.photos / f"{i:02}.png")
        self.originals = contents(self.photos)
        self.mine: dict[str, bytes] = {}
        self.before: dict[str, object] | None = None
        self.killed = False

    def teardown(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def do(self, *arguments: object, trap: tuple[str, str, int] | None = None) -> tuple[int, str]:
        code, said = self.command(*arguments, trap=trap)
        assert code in (0, 2, 3, 4, 5, 75) or (code == -9 and trap), (arguments, trap, code, said)
        assert "bug" not in said and "Traceback" not in said, (arguments, trap, said)
        self.ended = code
        return code, said

    def changes(self, *arguments: object, trap: tuple[str, str, int] | None) -> None:
        """A command that makes a new state of the run, or is killed or stopped and leaves the old one."""
        before = state_of(self.run)
        code, said = self.do(*arguments, trap=trap)
        after = state_of(self.run)
        if code != 0 and not (code == -9 and after != before):
            # fit --overwrite: the first result replaces the old run.
            assert after == before or (arguments[0] == "fit" and after is None), (arguments, trap, said)

    @rule(k=st.integers(2, 5), kill=KILLS, seed=st.integers(0, 2), more=st.sampled_from(MORE))
    def fit(self, k: int, kill: tuple[str, str, int] | None, seed: int, more: str) -> None:
        options = [*OPTIONS, "-k", k, "--seed", seed, *([more] if more else [])]
        self.changes("fit", self.photos, "-o", self.run, *options, trap=kill)
        if self.run.is_dir() and is_run(self.run) and not self.mine:
            self.mine = bystanders(self.run, write=True)

    @precondition(lambda self: self.mine)
    @rule(k=st.integers(1, 5), kill=KILLS)
    def recut(self, k: int, kill: tuple[str, str, int] | None) -> None:
        self.changes("recut", self.run, "-k", k, "-q", trap=kill)

    @precondition(lambda self: self.mine)
    @rule(merge=st.booleans(), name=st.sampled_from(["beach", "=1+1", ""]), kill=KILLS)
    def apply(self, merge: bool, name: str, kill: tuple[str, str, int] | None) -> None:
        edits = self.place / "edits.json"
        edits.write_text(json.dumps({"schema_version": 1, "merge": [[0, 1]] if merge else [], "names": {"0": name}}))
        self.changes("apply", self.run, edits, "-q", trap=kill)
        if state_of(self.run) and self.do("apply", self.run, edits, "-q")[0] == 0:  # repeated after a kill
            assert state_of(self.run)["names"].get("0") == name  # type: ignore[index, union-attr]

    @precondition(lambda self: self.mine)
    @rule(kill=KILLS)
    def update(self, kill: tuple[str, str, int] | None) -> None:
        more = self.place / "more"
        more.mkdir(exist_ok=True)
        number = len(list(more.iterdir()))
        Image.new("RGB", (8, 8), (100, 20 * number, 0)).save(more / f"{number}.png")
        self.changes("update", self.run, more, trap=kill)

    @precondition(lambda self: self.mine)
    @rule(kill=KILLS)
    def report(self, kill: tuple[str, str, int] | None) -> None:
        self.changes("report", self.run, trap=kill)

    @precondition(lambda self: self.mine)
    @rule(kill=KILLS)
    def export(self, kill: tuple[str, str, int] | None) -> None:
        out = self.place / "exported"
        shutil.rmtree(out, ignore_errors=True)
        code, _ = self.do("export", self.run, "--to", "folders", "--mode", "copy", "-o", out, "-q", trap=kill)
        assert out.exists() == (code == 0) or (code == -9 and len(contents(out)) >= len(self.originals))

    @precondition(lambda self: self.mine)
    @rule(overwrite=st.booleans())
    def predict(self, overwrite: bool) -> None:
        out, before = self.place / "out.csv", state_of(self.run)
        there = out.exists()
        code, _ = self.do("predict", self.run, self.photos, "-o", out, "-q", *(["--overwrite"] if overwrite else []))
        assert (code == 0) <= (overwrite or not there)
        if code == 0 and before:
            predicted = [line.split(",")[1] for line in out.read_text().splitlines()[1:]]
            clusters = [row["cluster"] for row in files.open_run(self.run).read_clusters() if row["status"] == "ok"]
            assert predicted == clusters[: len(predicted)]  # the images of an update come after those of the fit

    @invariant()
    def nothing_of_the_users_has_changed(self) -> None:
        if hasattr(self, "originals"):
            assert contents(self.photos) == self.originals
            assert not self.mine or bystanders(self.run) == self.mine

    @invariant()
    def the_run_is_never_mixed(self) -> None:
        if hasattr(self, "run"):
            state_of(self.run)


def test_sequences_of_commands_with_kills(command):
    Life.command = command
    choice = settings(max_examples=int(SEQUENCES or 3), derandomize=not SEQUENCES, stateful_step_count=8)
    run_state_machine_as_test(Life, settings=settings(choice, deadline=None, suppress_health_check=list(HealthCheck)))
