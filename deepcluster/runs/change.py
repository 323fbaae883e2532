"""A change of a run: a value until :func:`commit` writes it."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deepcluster.errors import UsageError
from deepcluster.groups.cut import Placement
from deepcluster.images import Source
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.page import MAP, shown_of, write_page, write_tree
from deepcluster.runs.result import Outcome, describe, first_metrics, write_outcome
from deepcluster.runs.run import Run, read_run, recipe_of
from deepcluster.runtime.console import Display, Several
from deepcluster.storage import model_files, run_folder
from deepcluster.storage import model_files as models
from deepcluster.storage.content import RunRecord
from deepcluster.texts import plural

UNDO = "Undo"  # heading of the command that takes a change back


@dataclass(frozen=True)
class Change:
    """The next result of a run."""

    run: Run  # run.json without the entries that describe its clusters
    placement: Placement  # of all images
    done: str = ""  # the change in words, for the list of steps back; "": it is no such step
    example: int = 0  # row of an image that shows it
    undone: int = 0  # number of steps back that it takes
    said: Mapping[str, str] = field(default_factory=dict)  # lines about it, by their headings
    baseline: Mapping[str, float] | None = None  # metrics before the rounds; None: the run's, if its clusters stay


def new_clusters(record: RunRecord, cut_k: int | None, **entries: Any) -> RunRecord:
    """Return run.json without the entries on former clusters. ``cut_k``: Number of the new ones; None: a guess."""
    return replace(record, cut=None, cut_k=cut_k, stability=None, verdict=None, **entries)


def decided(after: Run, digest: str, changes_clusters: bool, **described: Any) -> Change:
    """Return the change by decisions of a person with this digest, which the model of ``after`` has."""
    record = replace(after.record, edits=digest)
    if changes_clusters:
        record = new_clusters(record, len(after.model.cut.group_of.unique()))
    return Change(replace(after, record=record), after.placement, **described)


def preview(before: Run, after: Run | Change) -> dict[tuple[int, int], int]:
    """Return numbers of images by their clusters before and after a change, if these differ; the largest first."""
    pairs = zip(before.placement.cluster.tolist(), after.placement.cluster.tolist(), strict=False)
    return dict(Counter(pair for pair in pairs if pair[0] != pair[1]).most_common())


def commit(
    folder: run_folder.LockedFolder,
    run: Run,
    change: Change,
    display: Display,
    *,
    source: Source | None = None,
    also: Callable[[run_folder.NextState], None] = lambda staged: None,
) -> Outcome:
    """Say a change of ``run``, and write its result, its page and a step back as the next state of the folder.

    ``source``: As for ``report``. ``also``: Writes the files that only this change has.
    """
    after = change.run
    for heading, text in change.said.items():
        display.say(heading, text)
    if change.said and change.done:
        display.say(UNDO, undo_command(folder))
    with folder.next_state() as staged:
        has_metrics = staged.has("metrics.json") and not change.undone  # an undo needs none, which may be damaged
        before = first_metrics(staged.read_json("metrics.json")) if has_metrics else {}
        if change.done:
            model_files.keep_former(staged, run.model, run.record, before, change.done, change.example)
        if change.undone:
            model_files.drop_steps(staged, change.undone)
        also(staged)
        known = before if after.record.cut else {}
        baseline = known if change.baseline is None else change.baseline
        outcome = describe(after, change.placement, recipe_of(staged), baseline)
        write_outcome(staged, outcome, run)
        shown = shown_of(after.rows, after.model, outcome.centroid)
        write_tree(staged, shown.tree)
        if staged.has("report.html") or staged.has(MAP):
            at_hand = images_at_hand(staged, source, after.rows.paths)
            write_page(staged, at_hand, outcome, shown, display.progress)
    return outcome


def undo_command(folder: run_folder.RunFolder) -> str:
    """Return the command that takes back the last change."""
    return f"deepcluster apply {shlex.quote(str(folder.path))} --undo"


def undo(run: Path, display: Display | None = None, steps: int | None = 1) -> None:
    """Take back the last ``steps`` (None: all) changes by :func:`apply`, :func:`recut` and ``teach``.

    Raises UsageError if there are not so many.
    """
    with run_folder.locked(run) as folder:
        before = read_run(folder)
        formers = models.read_former(folder, before.rows.reduced.shape[1])
        steps = len(formers) if steps is None else steps
        if not 1 <= steps <= len(formers):
            few = f"{plural(len(formers), 'change')} of {run} can be taken back, and not {steps}"
            raise UsageError(f"{few}: {undo_command(folder)} all takes back every one")
        commit(folder, before, taken_back(before, formers[:steps]), Several(display))


def taken_back(run: Run, formers: Sequence[models.Groups]) -> Change:
    """Return the change that takes back steps, the newest first.

    Numbers given by edits stay given; numbers of a recut are forgotten.
    """
    model, record = run.model, run.record
    for former in formers:
        is_recut = record.edits is None
        given = 0 if is_recut else len(model.names) - len(former.annotations.names)
        model = replace(model, cut=former.cut, **vars(former.annotations))
        model = replace(model, names=model.names + ("",) * given)
        record = replace(record, **former.about["record"])
    said = {"Edits": f"taken back: {len(model.cut.group_of.unique())} clusters, as before"}
    if undone := "; ".join(filter(None, (former.about["done"] for former in formers))):
        said["Undone"] = undone
    after = Run(record, model, run.rows)
    baseline = formers[-1].about["baseline"]
    return Change(after, after.placement, undone=len(formers), said=said, baseline=baseline)
