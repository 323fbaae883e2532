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

from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import Whitening
from deepcluster.errors import UsageError
from deepcluster.fitting.like import Former, continued
from deepcluster.groups.cut import cut_features
from deepcluster.model import Model
from deepcluster.nets.network import no_network
from deepcluster.recipe import Recipe
from deepcluster.runs.change import Change
from deepcluster.runs.edits import edited
from deepcluster.runs.lesson import Answer, asked, lesson
from deepcluster.runs.recut import cut_anew
from deepcluster.runs.run import Rows, Run
from deepcluster.runtime.console import Silent
from deepcluster.storage.content import RunRecord
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.model_files import clusters_in, clusters_tensors

COUNT, KINDS, WIDTH = 60, 5, 6
RECIPE = Recipe(grouping="embedding")


def features(count: int, seed: int) -> torch.Tensor:
    """Rows of length 1 around five directions in turn, all different."""
    random = torch.Generator().manual_seed(seed)
    kinds = torch.eye(WIDTH)[torch.arange(count) % KINDS]
    return torch.nn.functional.normalize(kinds + 0.3 * torch.randn(count, WIDTH, generator=random))


def run_of(reduced: torch.Tensor, k: int, seed: int) -> Run:
    """A run of ``k`` clusters, so many that k-means alone makes them, which takes a millisecond."""
    nothing = torch.zeros(2, WIDTH)
    cut = cut_features(reduced, k, seed=seed)
    model = Model(
        network=no_network(WIDTH),
        reduction=Whitening(torch.zeros(WIDTH), torch.eye(WIDTH)),
        fine_centroids=reduced[:2],
        cut=cut,
        outliers=Outliers(nothing, nothing.unsqueeze(2), torch.inf),
        names=("",) * cut.count,
        image_size=1,
        store_size=1,
        batch_size=1,
    )
    paths = [*map(str, range(len(reduced)))]
    rows = Rows(paths, None, [], reduced, reduced, torch.zeros(len(reduced)))
    return Run(RunRecord(images="rows", location="", seed=seed), model, rows)


@dataclass
class Person:
    """A run, and what a person has said of it."""

    run: Run
    random: np.random.Generator
    placed: dict[int, str] = field(default_factory=dict)  # names of the clusters of rows that she placed
    names: set[str] = field(default_factory=set)  # that she gave
    faces: list[int] = field(default_factory=list)  # rows that she chose to show their clusters

    def clusters(self) -> list[int]:
        return self.run.placement.cluster.tolist()

    def present(self) -> list[int]:
        return sorted({*self.clusters()})

    def name_of(self, row: int) -> str:
        return self.run.model.names[self.clusters()[row]]

    def some(self, things: list[int], count: int = 1) -> list[int]:
        return self.random.choice(things, min(count, len(things)), replace=False).tolist()

    def take(self, change: Change) -> None:
        self.run = change.run
        assert change.placement.cluster.equal(self.run.model.placement(self.run.rows.reduced).cluster)

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
        (group,) = self.some(self.present())
        name = str(self.random.choice(["a", "b", "c", "d", "new", ""]))
        inside = [row for row, cluster in enumerate(self.clusters()) if cluster == group and row in self.placed]
        self.take(edited(self.run, Edits(names={group: name})))
        self.lets_go(inside)
        self.names |= {name} - {""}

    def merge(self) -> None:
        if len(self.present()) > 3:
            pair = self.some(self.present(), 2)
            inside = [row for row in self.placed if self.clusters()[row] in pair]
            self.take(edited(self.run, Edits(merge=(tuple(pair),))))
            self.lets_go(inside)

    def split(self) -> None:
        (group,) = self.some(self.present())
        inside = [row for row in self.placed if self.clusters()[row] == group]
        with suppress(UsageError):  # of one centroid
            self.take(edited(self.run, Edits(split=((group, 2),))))
        self.lets_go(inside)

    def move(self) -> None:
        rows = self.some([*range(len(self.run.rows.paths))], 2)
        (group,) = self.some([*self.present(), len(self.run.model.names)])
        stay = [row for row in rows if self.clusters()[row] == group]
        self.take(edited(self.run, Edits(move=tuple((row, group) for row in rows))))
        self.faces = [row for row in self.faces if row not in rows] + stay
        assert [self.clusters()[row] for row in rows] == [group] * len(rows)
        self.lets_go(rows)
        self.names |= {*self.placed.values()}

    def face(self) -> None:
        """An image that she moves to its own cluster shows it."""
        (row,) = self.some([*range(len(self.run.rows.paths))])
        before = self.clusters()
        self.take(edited(self.run, Edits(move=((row, before[row]),))))
        assert self.clusters() == before
        self.faces = [other for other in self.faces if other != row] + [row]
        self.lets_go([row])
        self.names |= {*self.placed.values()}

    def junk(self) -> None:
        self.take(edited(self.run, Edits(junk=tuple(sorted(self.some(self.present(), 2))))))

    def teach(self) -> None:
        drawn = bool(self.random.random() < 0.2)
        rows = [int(one.path) for one in asked(self.run, 4, drawn=drawn)]
        rows += [row for row in self.some([*range(len(self.run.rows.paths))], 2) if row not in rows]
        before = self.clusters()
        answers = {row: Answer(row, name="abcde"[row % KINDS], drawn=drawn) for row in rows[1:]}
        answers |= {row: Answer(row, self.some(self.present())[0]) for row in rows[:1]}
        denied = [row for row in self.some(rows, 1) if row not in self.placed]
        answers |= {row: Answer(row, not_cluster=self.some(self.present())[0]) for row in denied}
        self.take(lesson(self.run, [*answers.values()]))
        self.say({row: one.name for row, one in answers.items() if one.name})
        self.lets_go([row for row, one in answers.items() if one.not_cluster is None and not one.name])
        for row in denied:
            group = answers[row].not_cluster
            assert group is not None
            names = [self.run.model.names[number] or number for number in (group, self.clusters()[row])]
            assert names[0] != names[1] or len({*self.run.model.names}) == 1
            assert self.clusters()[row] == before[row] or self.kind(before[row]) == self.kind(group)

    def kind(self, group: int) -> str | int:
        return self.run.model.names[group] or group

    def examples(self) -> None:
        (group,) = self.some(self.present())
        inside = [row for row, cluster in enumerate(self.clusters()) if cluster == group]
        if len(inside) > 4:
            rows = self.some(inside, 4)
            answers = [*(Answer(row, group) for row in rows[:2]), *(Answer(row, name="part") for row in rows[2:])]
            if self.kind(group) != "part":
                self.take(lesson(self.run, answers, within=group))
                self.lets_go([row for row in self.placed if row in inside])
                self.lets_go(rows[:2])
                self.say(dict.fromkeys(rows[2:], "part"))

    def recut(self) -> None:
        number = len(self.present()) + int(self.random.integers(-2, 3))
        self.take(cut_anew(self.run, max(7, number), RECIPE, Silent()))
        if not self.placed:
            self.names = {name for name in self.names if name in self.run.model.names}

    def update(self) -> None:
        rows = self.run.rows
        new = features(3, int(self.random.integers(1 << 30)))
        every = replace(
            rows,
            paths=[*map(str, range(len(rows.paths) + 3))],
            reduced=torch.cat([rows.reduced, new]),
            residuals=torch.cat([rows.residuals, torch.zeros(3)]),
            added=rows.added + 3,
        )
        self.run = replace(self.run, rows=every)

    def like(self) -> None:
        """A new fit of most images, in another order, and of some that are new."""
        old = self.run
        order = self.random.permutation(len(old.rows.paths))[3:]
        rows = torch.from_numpy(np.concatenate([order, [-1, -1]]))
        fresh = features(2, int(self.random.integers(1 << 30)))
        reduced = torch.cat([old.rows.reduced, fresh])[rows]  # -1 is the last one
        reduced[-2:] = fresh
        k = max(7, len(self.present()))
        new = run_of(reduced, k, int(self.random.integers(1 << 30)))
        former = Former(Path("old"), old, {}, 1)
        self.run, placement, _ = continued(new, new.placement, former, rows)
        assert placement.cluster.equal(self.run.placement.cluster)
        row_of = {int(row): place for place, row in enumerate(order)}
        left = {old.model.names[old.placement.cluster[row]] for row in row_of}
        self.placed = {row_of[row]: name for row, name in self.placed.items() if row in row_of}
        self.faces = [row_of[row] for row in self.faces if row in row_of]
        self.names &= left

    def write(self) -> None:
        groups = clusters_in(clusters_tensors(self.run.model), None)
        assert vars(groups.annotations).items() <= vars(self.run.model).items()

    # ---- what holds -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        for row, name in self.placed.items():
            assert self.name_of(row) == name, (row, name, self.name_of(row))
        names = {self.run.model.names[group] for group in self.present()}
        assert self.names <= names, self.names - names
        assert self.run.model.faces == tuple(self.faces)


STEPS = (
    *("name", "merge", "split", "move", "face", "junk", "teach", "teach", "examples", "recut", "update", "like"),
    "write",
)


@pytest.mark.parametrize("seed", range(20))
def test_what_a_person_says_holds(seed):
    random = np.random.default_rng(seed)
    person = Person(run_of(features(COUNT, seed), 7, seed), random)
    done: list[str] = []
    before: list[Person] = []
    for _ in range(12):
        step = str(random.choice([*STEPS, "undo"]))
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
                before.append(replace(person, placed=dict(person.placed), names={*person.names}, faces=[*person.faces]))
            getattr(person, step)()
        try:
            person.check()
        except AssertionError as error:
            raise AssertionError(done) from error
