"""A change of a run: a value until :func:`commit` writes it. All changes go one road, :func:`carry_out`."""

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deepcluster.errors import UsageError
from deepcluster.images import Source
from deepcluster.runs.result import Outcome
from deepcluster.runs.run import Run, read_run
from deepcluster.runs.views import refresh
from deepcluster.runtime.compute import CUT_PHASE
from deepcluster.runtime.console import Display, Several
from deepcluster.storage import former, run_folder
from deepcluster.storage.clusters_file import Made, encoded, read_clusters
from deepcluster.texts import one_line, plural

# Headings of the commands that take a change back, or make it again.
UNDO, REDO = "Undo", "Redo"


@dataclass(frozen=True)
class Change:
    """The next state of a run. If ``run`` is the very run that it was, nothing changes."""

    run: Run
    clusters: Literal["same", "other"] = "same"  # other ones get another ``cut``, and edits of before do not fit them
    text: str = ""  # the change in words, for the list of changes to undo
    example: int = 0  # row of an image that shows it
    state: int | None = None  # number of the earlier or later state to which it goes
    lines: Mapping[str, str] = field(default_factory=dict)  # about it, by their headings
    write: Callable[[run_folder.LockedFolder], object] = lambda folder: None  # writes the images that it adds
    last: Callable[[Outcome], str] | None = None  # gives the last line


ChangeOf = Callable[[run_folder.RunFolder, Run], Change]  # reads the folder, and writes nothing


class Carried(NamedTuple):
    """A change that was written, or would be."""

    before: Run
    change: Change

    def to_json(self) -> dict[str, Any]:
        """Return the images that change their cluster, and the numbers of images of all clusters before and after."""
        moves = preview(self.before, self.change.run)
        was, now = (Counter(run.clusters.tolist()) for run in (self.before, self.change.run))
        names = self.change.run.model.names
        return {
            "clusters": len(self.change.run.model.cut.cluster_of.unique()),
            "changed": sum(moves.values()),
            "changes": [{"before": a, "after": b, "images": images} for (a, b), images in moves.items()],
            "sizes": [
                {"cluster": number, "name": names[number], "before": was[number], "after": now[number]}
                for number in sorted({*was, *now} - {-1})
            ],
        }


def decided(after: Run, digest: str, changes_clusters: bool, **described: Any) -> Change:
    """Return the change by a person's decisions (of this digest), which the model of ``after`` has."""
    facts = replace(after.facts, edits=digest)
    if changes_clusters:
        facts = replace(facts, cut_k=len(after.model.cut.cluster_of.unique()))
    return Change(replace(after, facts=facts), "other" if changes_clusters else "same", **described)


def preview(before: Run, after: Run) -> dict[tuple[int, int], int]:
    """Return numbers of images by their clusters before and after a change, if these differ; the largest first."""
    if after.model.cut is before.model.cut and len(after.rows.reduced) == len(before.rows.reduced):
        return {}  # a name or a mark: no image is placed
    pairs = zip(before.clusters.tolist(), after.clusters.tolist(), strict=False)
    return dict(Counter(pair for pair in pairs if pair[0] != pair[1]).most_common())


def carry_out(
    path: Path,
    change_of: ChangeOf,
    display: Display,
    *,
    dry_run: bool = False,
    source: Source | None = None,
    takes_images: bool = False,
) -> Carried:
    """Change the run at ``path``, or with ``dry_run`` say what would change.

    ``source``: As for ``refresh``. ``takes_images``: As for ``read_run``.
    """
    display.progress(CUT_PHASE, 0, 0)
    with nullcontext(run_folder.open_run(path)) if dry_run else run_folder.locked(path) as folder:
        before = read_run(folder, takes_images=takes_images)
        made = Carried(before, change_of(folder, before))
        if isinstance(folder, run_folder.LockedFolder):
            commit(folder, *made, display, partial(refresh, source=source))
            return made
    for heading, text in made.change.lines.items():
        display.say(heading, text)
    for row in made.to_json()["sizes"]:
        name = f" ({one_line(row['name'])})" if row["name"] else ""
        images = f"{plural(row['after'], 'image')}, before {row['before']:,}"
        display.say("Cluster", f"{row['cluster']}{name}: {images}")
    display.say("Dry run", "nothing was written")
    return made


def commit(
    folder: run_folder.LockedFolder,
    run: Run,
    change: Change,
    display: Display,
    show: Callable[..., Outcome] = refresh,
) -> None:
    """Write a change of ``run``: first the images that it adds, then its clusters, then the views. Then say it.

    The clusters are one file, which is replaced at once, so a kill leaves the state before or after the change.

    ``show``: Makes the views, or what the caller shows in their place.
    """
    after = change.run
    goes_back = change.state is not None and change.state < folder.read_header().made.number
    if after is not run:
        change.write(folder)
        if change.state is not None:
            former.go_to(folder, change.state)
        elif after.model is not run.model or after.facts != run.facts:
            after = _written(folder, run, change)
    for heading, text in change.lines.items():
        display.say(heading, text)
    if after is run:
        return
    if change.lines and (change.text or change.state is not None):
        heading = REDO if goes_back else UNDO
        display.say(heading, command_of(folder, heading.lower()))
    outcome = show(folder, after, progress=display.progress)
    if change.last:
        display.say("Done", change.last(outcome))


def _written(folder: run_folder.LockedFolder, run: Run, change: Change) -> Run:
    """Keep the clusters of ``run`` for an undo, write those after a change of it, and return the run with these."""
    after = change.run
    if change.clusters == "other":
        after = replace(after, facts=replace(after.facts, cut=cut_of(after)))
    moved = sum(preview(run, after).values())
    at = datetime.now(UTC).isoformat(timespec="seconds")
    made = Made(former.keep(folder), change.text, change.example, moved, at)
    former.put(folder, encoded(after.model, after.facts, made))
    return after


def cut_of(run: Run) -> str:
    """Return an identifier of the clusters of all images."""
    digest = hashlib.sha256("\0".join(run.rows.paths).encode(errors="surrogateescape"))
    digest.update(run.placement.cluster.numpy().tobytes())
    return digest.hexdigest()[:16]


def command_of(folder: run_folder.RunFolder, verb: str) -> str:
    """Return the command for undo or redo."""
    return f"deepcluster apply {shlex.quote(str(folder.path))} --{verb}"


# ---- undo and redo ---------------------------------------------------------------------------------------------------


def undo(
    run: Path, display: Display | None = None, changes: int | None = 1, *, forward: bool = False, **options: Any
) -> Carried:
    """Take back the last ``changes`` (None: all) by ``apply``, ``recut`` and ``teach``.

    ``forward``: Make the last changes again that were taken back. ``options``: Of :func:`carry_out`.

    UsageError if there are not so many.
    """
    return carry_out(run, partial(by_history, changes, forward=forward), Several(display), **options)


redo = partial(undo, forward=True)


def by_history(count: int | None, folder: run_folder.RunFolder, run: Run, *, forward: bool = False) -> Change:
    """Return the change of :func:`undo`."""
    made = former.history(folder)[forward]
    what = ("undo", "redo")[forward]
    again = ("taken back", "made again")[forward]
    if not made:
        raise UsageError(f"{folder.path} has nothing to {what}: no change of it can be {again}")
    count = len(made) if count is None else count
    if not 1 <= count <= len(made):
        few = f"{plural(len(made), 'change')} of {folder.path} can be {again}, and not {count}"
        raise UsageError(f"{few}: {command_of(folder, what)} all takes every change")
    earlier = [number for number in former.numbers_of(folder) if number < made[0].number]
    state = made[count - 1].number if forward else earlier[-count]
    with folder.as_disk_errors(former.name_of(state)):
        header, cut, annotations = read_clusters(folder.file(former.name_of(state)), run.rows.reduced.shape[1])
    names = annotations.names + ("",) * (len(run.model.names) - len(annotations.names))
    model = replace(run.model, cut=cut, **{**vars(annotations), "names": names})
    clusters = plural(header.clusters, "cluster")
    lines = {"Edits": f"{again}: {clusters}{', as before' * (not forward)}"}
    if texts := "; ".join(filter(None, (one.text for one in made[:count]))):
        lines[("Undone", "Redone")[forward]] = texts
    return Change(replace(run, model=model, facts=header.facts), "other", state=state, lines=lines)
