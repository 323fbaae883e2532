"""What a person says of a run holds: random walks over names, merges, splits, moves, answers, cuts and new images.

After each step an image that a person placed is in a cluster of that name, each name that was given is there, and the
model places the images where the run has them.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.errors import UsageError
from deepcluster.fitting.like import Former, continued
from deepcluster.groups.cut import cut_features
from deepcluster.recipes.options import Recipe
from deepcluster.runs.apply import applied
from deepcluster.runs.change import Change
from deepcluster.runs.recut import cut_anew
from deepcluster.runs.run import Run
from deepcluster.runs.teach import Answer, asked, taught_by
from deepcluster.runtime.console import Silent
from deepcluster.storage.clusters_file import Made, encoded, read_clusters
from deepcluster.storage.edits_file import Edits
from tests.helpers.tiny import run_of, tiny_model

COUNT, KINDS, WIDTH = 60, 5, 6
RECIPE = Recipe(grouping="kmeans")


def features(count: int, seed: int) -> torch.Tensor:
    """Rows of length 1 around five directions in turn, all different."""
    random = torch.Generator().manual_seed(seed)
    kinds = torch.eye(WIDTH)[torch.arange(count) % KINDS]
    return torch.nn.functional.normalize(kinds + 0.3 * torch.randn(count, WIDTH, generator=random))


def clustered(reduced: torch.Tensor, k: int, seed: int) -> Run:
    """A run of ``k`` clusters, so many that k-means alone makes them, which takes a millisecond."""
    cut = cut_features(reduced, k, seed=seed)
    model = tiny_model(("",) * cut.count, dims=WIDTH, cut=cut, fine_centroids=reduced[:2])
    return run_of(model, reduced, seed=seed)


@dataclass
class Person:
    """A run, and what a person has said of it."""

    run: Run
    random: np.random.Generator
    placed: dict[int, str] = field(default_factory=dict)  # names of the clusters of rows that she placed
    names: set[str] = field(default_factory=set)  # that she gave

    def clusters(self) -> list[int]:
        return self.run.placement.cluster.tolist()

    def present(self) -> list[int]:
        return sorted({*self.clusters()})

    def name_of(self, row: int) -> str:
        return self.run.model.names[self.clusters()[row]]

    def choice_of(self, things: list[int], count: int = 1) -> list[int]:
        return self.random.choice(things, min(count, len(things)), replace=False).tolist()

    def take(self, change: Change) -> None:
        self.run = change.run
        assert change.run.placement.cluster.equal(self.run.model.placement(self.run.rows.reduced).cluster)

    def say(self, rows: dict[int, str]) -> None:
        self.placed |= {row: name for row, name in rows.items() if name}
        self.names |= {*self.placed.values()}

    def lets_go(self, rows: Iterator[int] | list[int]) -> None:
        """Her own merge, split or name changes what she called these."""
        for row in rows:
            if name := self.name_of(row):
                self.placed[row] = name
            else:
                self.placed.pop(row, None)
        self.names = {name for name in self.names if name in self.run.model.names}

    # ---- her steps --------------------------------------------------------------------------------------------------

    def name(self) -> None:
        (group,) = self.choice_of(self.present())
        name = str(self.random.choice(["a", "b", "c", "d", "new", ""]))
        inside = [row for row, cluster in enumerate(self.clusters()) if cluster == group and row in self.placed]
        self.take(applied(self.run, Edits(names={group: name})))
        self.lets_go(inside)
        self.names |= {name} - {""}

    def merge(self) -> None:
        if len(self.present()) > 3:
            pair = self.choice_of(self.present(), 2)
            inside = [row for row in self.placed if self.clusters()[row] in pair]
            self.take(applied(self.run, Edits(merge=(tuple(pair),))))
            self.lets_go(inside)

    def split(self) -> None:
        (group,) = self.choice_of(self.present())
        inside = [row for row in self.placed if self.clusters()[row] == group]
        with suppress(UsageError):  # of one centroid
            self.take(applied(self.run, Edits(split=((group, 2),))))
        self.lets_go(inside)

    def move(self) -> None:
        rows = self.choice_of([*range(len(self.run.rows.paths))], 2)
        (group,) = self.choice_of([*self.present(), len(self.run.model.names)])
        self.take(applied(self.run, Edits(move=tuple((row, group) for row in rows))))
        assert [self.clusters()[row] for row in rows] == [group] * len(rows)
        assert {self.run.model.placed[row] for row in rows} == {"answer"}
        self.lets_go(rows)
        self.names |= {*self.placed.values()}

    def see(self) -> None:
        """She sees some images of a cluster, and leaves them there."""
        (group,) = self.choice_of(self.present())
        rows = self.choice_of([row for row, cluster in enumerate(self.clusters()) if cluster == group], 4)
        before = self.run
        self.take(applied(before, Edits(checked=tuple(rows))))
        assert self.run.placement is before.placement
        assert {self.run.model.placed[row] for row in rows if row not in before.model.placed} <= {"checked"}
        self.lets_go(rows)

    def junk(self) -> None:
        self.take(applied(self.run, Edits(junk=tuple(sorted(self.choice_of(self.present(), 2))))))

    def teach(self) -> None:
        by = "drawn" if self.random.random() < 0.2 else "answer"
        rows = [int(one.path) for one in asked(self.run, 4)[by == "drawn"]]
        rows += [row for row in self.choice_of([*range(len(self.run.rows.paths))], 2) if row not in rows]
        answers = {row: Answer(row, name="abcde"[row % KINDS], by=by) for row in rows[1:]}
        answers |= {row: Answer(row, self.choice_of(self.present())[0]) for row in rows[:1]}
        self.take(taught_by(self.run, [*answers.values()]))
        self.say({row: one.name for row, one in answers.items() if one.name})
        self.lets_go([row for row, one in answers.items() if not one.name])

    def recut(self) -> None:
        number = max(len(self.kinds()), len(self.present()) + int(self.random.integers(-2, 3)))
        self.take(cut_anew(self.run, number, RECIPE, Silent()))
        assert len(self.present()) == number

    def kinds(self) -> set[int]:
        """The clusters that have a name, a mark or an image that she placed."""
        model, cluster = self.run.model, self.clusters()
        named = {number for number in cluster if model.names[number] or number in model.junk}
        return named | {cluster[row] for row in model.placed}

    def update(self) -> None:
        old = self.run
        new = features(3, int(self.random.integers(1 << 30)))
        count = len(old.rows.reduced)
        added = count - old.rows.fitted
        rejected = [*range(count - added, count + 3, 3)]  # one of every three
        every = run_of(old.model, torch.cat([old.rows.reduced, new]), added=added + 3, rejected=rejected)
        self.run = replace(old, rows=every.rows)

    def like(self) -> None:
        """A new fit of most images, in another order, and of some that are new."""
        old = self.run
        order = self.random.permutation(len(old.rows.paths))[3:]
        rows = torch.from_numpy(np.concatenate([order, [-1, -1]]))
        fresh = features(2, int(self.random.integers(1 << 30)))
        reduced = torch.cat([old.rows.reduced, fresh])[rows]  # -1 is the last one
        reduced[-2:] = fresh
        k = max(7, len(self.present()))
        new = clustered(reduced, k, int(self.random.integers(1 << 30)))
        self.run, _ = continued(new, Former(Path("old"), old, [], 1), rows)
        row_of = {int(row): place for place, row in enumerate(order)}
        left = {old.model.names[old.placement.cluster[row]] for row in row_of}
        self.placed = {row_of[row]: name for row, name in self.placed.items() if row in row_of}
        self.names &= left

    # ---- what holds -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        for row, name in self.placed.items():
            assert self.name_of(row) == name, (row, name, self.name_of(row))
        names = {self.run.model.names[group] for group in self.present()}
        assert self.names <= names, self.names - names
        assert self.placed.keys() <= self.run.model.placed.keys()


# Answers come twice as often.
DEEDS = ("name", "merge", "split", "move", "see", "junk", "teach", "teach", "recut", "update", "like")


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 40))])
def test_what_a_person_says_holds(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    person = Person(clustered(features(COUNT, seed), 7, seed), random)
    done: list[str] = []
    before: list[Person] = []
    for _ in range(12):
        step = str(random.choice([*DEEDS, "undo"]))
        done.append(step)
        if step == "undo" and before:
            former = before.pop()
            names = former.run.model.names
            given = ("",) * (len(person.run.model.names) - len(names))
            person = replace(former, run=replace(former.run, model=replace(former.run.model, names=names + given)))
        elif step != "undo":
            if step in ("update", "like"):  # another run, or other images
                before.clear()
            else:
                before.append(replace(person, placed=dict(person.placed), names={*person.names}))
            getattr(person, step)()
        try:
            person.check()
        except AssertionError as error:
            raise AssertionError(done) from error
    (tmp_path / "clusters").write_bytes(encoded(person.run.model, person.run.facts, Made()))
    stored = vars(read_clusters(tmp_path / "clusters")[2])
    assert stored.items() <= vars(person.run.model).items()


@settings(max_examples=8)
@given(
    st.integers(0, 1 << 32),
    st.lists(st.sampled_from(["name", "merge", "move", "see", "junk", "teach"]), max_size=8),
    st.floats(1, 2.5),
)
def test_a_recut_keeps_her_kinds_and_has_as_many_clusters_as_were_asked_for(
    seed: int, steps: list[str], times: float
) -> None:
    """Kinds with names alone, too. A smaller number is refused."""
    person = Person(clustered(features(COUNT, seed % 1000), 7, seed % 1000), np.random.default_rng(seed))
    for step in steps:
        getattr(person, step)()
    before, kinds = person.run, person.kinds()
    number = max(2, round(times * len(kinds)))
    person.take(cut_anew(before, number, RECIPE, Silent()))
    person.check()
    assert len(person.present()) == number
    names = [{run.model.names[kind] for kind in run.placement.cluster.tolist()} for run in (before, person.run)]
    assert names[0] - {""} == names[1] - {""}
    if len(kinds) > 1:
        with pytest.raises(UsageError, match=f"{len(kinds)} clusters have names or answers .* -k {len(kinds) - 1}"):
            cut_anew(before, len(kinds) - 1, RECIPE, Silent())
