"""A change of a run: a value until :func:`commit` writes it. All changes go one road, :func:`carry_out`."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deepcluster.errors import DeepClusterError, UsageError
from deepcluster.groups.cut import Placement
from deepcluster.images import Source
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.page import MAP, read_tree, shown_of, write_page, write_tree
from deepcluster.runs.result import Outcome, describe, first_metrics, write_outcome
from deepcluster.runs.run import Run, read_run, recipe_of
from deepcluster.runtime.compute import GROUPING_PHASE
from deepcluster.runtime.console import Display, Several
from deepcluster.storage import run_folder, steps
from deepcluster.storage.content import RunRecord
from deepcluster.texts import one_line, plural

# Headings of the commands that take a change back, or make it again.
UNDO, REDO = "Undo", "Redo"


@dataclass(frozen=True)
class Change:
    """The next result of a run. If ``run`` is the very run that it was, nothing changes."""

    run: Run  # run.json without the entries that describe its clusters
    placement: Placement  # of all images
    done: str = ""  # the change in words, for the list of steps back; "": it is no such step
    example: int = 0  # row of an image that shows it
    steps: int = 0  # that it goes back or, negative, forward
    said: Mapping[str, str] = field(default_factory=dict)  # lines about it, by their headings
    baseline: Mapping[str, float] | None = None  # metrics before the rounds; None: the run's, if its clusters stay
    write: Callable[[run_folder.NextState], object] = lambda staged: None  # writes the files that only this change has
    last: Callable[[Outcome], str] | None = None  # gives the last line


ChangeOf = Callable[[run_folder.RunFolder, Run], Change]  # reads the folder, and writes nothing


class Made(NamedTuple):
    """A change that was written, or would be."""

    before: Run
    change: Change

    def to_json(self) -> dict[str, Any]:
        """Return the images that change their cluster, and the numbers of images of all clusters before and after."""
        moves = preview(*self)
        was, now = (Counter(placement.cluster.tolist()) for placement in (self.before.placement, self.change.placement))
        names = self.change.run.model.names
        return {
            "clusters": len(self.change.run.model.cut.cluster_of.unique()),
            "changed": sum(moves.values()),
            "changes": [{"before": a, "after": b, "images": images} for (a, b), images in moves.items()],
            "sizes": [
                {"cluster": number, "name": names[number], "before": was[number], "after": now[number]}
                for number in sorted({*was, *now})
            ],
        }


def new_clusters(record: RunRecord, cut_k: int | None, **entries: Any) -> RunRecord:
    """Return run.json without the entries on former clusters. ``cut_k``: Number of the new ones; None: a guess."""
    return replace(record, cut=None, cut_k=cut_k, stability=None, verdict=None, **entries)


def decided(after: Run, digest: str, changes_clusters: bool, **described: Any) -> Change:
    """Return the change by decisions of a person with this digest, which the model of ``after`` has."""
    record = replace(after.record, edits=digest)
    if changes_clusters:
        record = new_clusters(record, len(after.model.cut.cluster_of.unique()))
    return Change(replace(after, record=record), after.placement, **described)


def preview(before: Run, after: Run | Change) -> dict[tuple[int, int], int]:
    """Return numbers of images by their clusters before and after a change, if these differ; the largest first."""
    pairs = zip(before.placement.cluster.tolist(), after.placement.cluster.tolist(), strict=False)
    return dict(Counter(pair for pair in pairs if pair[0] != pair[1]).most_common())


def carry_out(
    path: Path,
    change_of: ChangeOf,
    display: Display,
    *,
    dry_run: bool = False,
    source: Source | None = None,
    takes_images: bool = False,
    quick: bool = False,
) -> Made:
    """Change the run at ``path``, or with ``dry_run`` say what would change.

    ``takes_images``: As for ``read_run``. ``quick``: As for ``write_page``.
    """
    display.progress(GROUPING_PHASE, 0, 0)
    if dry_run:
        folder, before = run_folder.read_state(path, lambda run: (run, read_run(run, takes_images=takes_images)))
        made = Made(before, change_of(folder, before))
        for heading, text in made.change.said.items():
            display.say(heading, text)
        for row in made.to_json()["sizes"]:
            name = f" ({one_line(row['name'])})" if row["name"] else ""
            images = f"{plural(row['after'], 'image')}, before {row['before']:,}"
            display.say("Cluster", f"{row['cluster']}{name}: {images}")
        display.say("Dry run", "nothing was written")
        return made
    with run_folder.locked(path) as locked:
        before = read_run(locked, takes_images=takes_images)
        made = Made(before, change_of(locked, before))
        commit(locked, *made, display, source=source, quick=quick)
    return made


def commit(
    folder: run_folder.LockedFolder,
    run: Run,
    change: Change,
    display: Display,
    *,
    source: Source | None = None,
    quick: bool = False,
) -> None:
    """Say a change of ``run``, and write its result, its page and a step back as the next state of the folder.

    ``source``: As for ``report``. ``quick``: As for ``write_page``.
    """
    after = change.run
    for heading, text in change.said.items():
        display.say(heading, text)
    if after is run:
        return
    if change.said and (change.done or change.steps):
        heading = REDO if change.steps > 0 else UNDO
        display.say(heading, command_of(folder, heading.lower()))
    with folder.next_state() as staged:
        known: Mapping[str, float] = {}
        with suppress(DeepClusterError) if change.steps else nullcontext():  # a step needs no metrics
            known = first_metrics(staged.read_json("metrics.json")) if staged.has("metrics.json") else {}
        now = steps.state_of(run.model, run.record, known)
        if change.done:
            moved = sum(preview(run, change).values())
            at = datetime.now(UTC).isoformat(timespec="seconds")
            steps.keep_step(staged, now, change.done, change.example, moved=moved, at=at)
        if change.steps:
            steps.write_states(staged, steps.after_steps(steps.read_states(staged), now, change.steps))
        change.write(staged)
        baseline = change.baseline if change.baseline is not None else known if after.record.cut else {}
        outcome = describe(after, change.placement, recipe_of(staged), baseline)
        write_outcome(staged, outcome, run)
        # Answers that move no image may make centroids, too.
        is_same = after.record.cut == run.record.cut and torch.equal(after.model.cut.centroids, run.model.cut.centroids)
        tree = read_tree(staged) if is_same and after.rows is run.rows else None  # an update adds rows
        shown = shown_of(after.rows, after.model, outcome.centroid, tree)
        write_tree(staged, shown.tree)
        if staged.has("report.html") or staged.has(MAP):
            at_hand = images_at_hand(staged, source, after.rows.paths)
            write_page(staged, at_hand, outcome, shown, display.progress, quick=quick)
    if change.last:
        display.say("Done", change.last(outcome))


def command_of(folder: run_folder.RunFolder, step: str) -> str:
    """Return the command for a step: undo or redo."""
    return f"deepcluster apply {shlex.quote(str(folder.path))} --{step}"


# ---- steps back and forward -----------------------------------------------------------------------------------------


def undo(run: Path, display: Display | None = None, steps: int | None = 1, **options: Any) -> Made:
    """Take back the last ``steps`` (None: all) changes by :func:`apply`, :func:`recut` and ``teach``.

    UsageError if there are not so many. ``options``: Of :func:`carry_out`.
    """
    return carry_out(run, partial(by_steps, steps), Several(display), **options)


def redo(run: Path, display: Display | None = None, steps: int | None = 1, **options: Any) -> Made:
    """Make the last ``steps`` (None: all) changes again that were taken back. As :func:`undo`."""
    return carry_out(run, partial(by_steps, steps, forward=True), Several(display), **options)


def by_steps(count: int | None, folder: run_folder.RunFolder, run: Run, *, forward: bool = False) -> Change:
    """Return the change of :func:`undo`, or of :func:`redo`."""
    found = steps.read_steps(folder, run.rows.reduced.shape[1])[forward]
    what = ("undo", "redo")[forward]
    again = ("taken back", "made again")[forward]
    if not found:
        raise UsageError(f"{folder.path} has nothing to {what}: no change of it can be {again}")
    count = len(found) if count is None else count
    if not 1 <= count <= len(found):
        few = f"{plural(len(found), 'change')} of {folder.path} can be {again}, and not {count}"
        raise UsageError(f"{few}: {command_of(folder, what)} all takes every step")
    return restored(run, found[:count], forward=forward)


def restored(run: Run, walked: Sequence[steps.Step], *, forward: bool = False) -> Change:
    """Return the change by steps back, or ``forward``. Numbers that were given to clusters stay given."""
    state = walked[-1].to
    names = state.annotations.names
    names += ("",) * (len(run.model.names) - len(names))
    model = replace(run.model, cut=state.cut, **{**vars(state.annotations), "names": names})
    after = Run(replace(run.record, **state.about["record"]), model, run.rows)
    again = ("taken back", "made again")[forward]
    said = {"Edits": f"{again}: {plural(len(model.cut.cluster_of.unique()), 'cluster')}{', as before' * (not forward)}"}
    if texts := "; ".join(filter(None, (step.about["done"] for step in walked))):
        said[("Undone", "Redone")[forward]] = texts
    count = -len(walked) if forward else len(walked)
    return Change(after, after.placement, steps=count, said=said, baseline=state.about["baseline"])
