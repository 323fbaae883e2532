"""Answers of a person about a few images of a run, and all other images that follow."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from deepcluster.errors import UsageError
from deepcluster.groups.cut import Cut, move_rows, regrouped
from deepcluster.groups.graph import graph_rows
from deepcluster.groups.spread import Labels, Taught, beliefs, followed, nodes_of, questions
from deepcluster.model import Model
from deepcluster.runs.change import Change, Made, carry_out, decided, preview
from deepcluster.runs.edits import MAX_NEW, moved_rows
from deepcluster.runs.quality import estimated_quality, kinds_of, sampled, unpinned
from deepcluster.runs.run import Run, read_run
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.plain_files import json_sha256
from deepcluster.runtime.tables import PATH_COLUMNS, read_columns
from deepcluster.seeding import derive, generator
from deepcluster.storage import run_folder
from deepcluster.storage.edits_file import Edits, checked_name
from deepcluster.texts import one_line, plural, quality_text, some

COLUMNS = ("path", "now", "name", "likely", "drawn")  # of a table of questions
MARKS = dict.fromkeys(("1", "1.0", "true", "yes", "x"), True) | dict.fromkeys(("", "0", "0.0", "false", "no"), False)
MAX_LIKELY = 9  # clusters: a page has as many digit keys


@dataclass(frozen=True)
class Answer:
    """A person's answer: the cluster of an image, by name or by number. The name wins; with neither, it is right."""

    path: str | int  # or row
    cluster: int | None = None
    name: str = ""
    drawn: bool = False  # the image was drawn at random, so the answer says something about all images
    may_be_new: bool = False  # the number, because the page gives numbers to its new clusters


@dataclass(frozen=True)
class Question:
    """An image for a person to name. No field is an answer by itself, because a table of questions goes to teach."""

    path: str
    now: str  # name of its present cluster
    name: str = ""  # the person's
    likely: tuple[int, ...] = ()  # clusters, the likeliest first
    drawn: bool = False


def ask(run: Path, n: int = 20, *, drawn: bool = False) -> list[Question]:
    """Return up to ``n`` images of a run whose answers would teach most; ``drawn``: images drawn at random instead."""
    return asked(run_folder.read_state(run, read_run), n, drawn=drawn)


def asked(run: Run, n: int, *, drawn: bool = False, answers: Sequence[Answer] = ()) -> list[Question]:
    """Do the work of :func:`ask`; ``answers``: Some that have not been taught yet."""
    model, rows = run.model, run.rows
    cluster = run.placement.cluster.tolist()
    new_answers, names, _ = _understood(run, answers)
    marks = {row: answer.drawn for row, answer in zip(new_answers, answers, strict=True)}
    sample = sampled(model, rows.reduced, run.placement.cluster, marks)
    answered = {row: cluster[row] for row in model.answers if row < len(cluster)} | new_answers
    teachers = {row: group for row, group in answered.items() if row not in sample}
    taught, nodes = _taught(run, teachers, names, sample)
    seed = derive(run.record.seed, "questions", len(answered if drawn else teachers))
    if drawn:
        order = torch.randperm(len(cluster), generator=generator(seed, "drawn")).tolist()
        placed = answered.keys() | dict(model.moves).keys()
        chosen = [row for row in order if row not in placed][:n]
    else:
        first = {int(node): row for row, node in reversed([*enumerate(nodes)])}
        chosen = [first[node] for node in questions(taught, n, seed)]
    believed = np.concatenate([beliefs(taught), np.zeros((1, len(names)))])  # -1 is not in the graph
    likely = {row: np.argsort(-believed[nodes[row]], kind="stable")[:MAX_LIKELY] for row in chosen}
    return [
        Question(
            path=rows.paths[row],
            now=model.names[cluster[row]] or f"cluster {cluster[row]}",
            name=names[answered[row]] if row in answered else "",
            likely=tuple(int(group) for group in likely[row] if believed[nodes[row], group]),
            drawn=drawn,
        )
        for row in chosen
    ]


def _taught(
    run: Run, answers: Mapping[int, int], names: Sequence[str], sample: Mapping[int, int]
) -> tuple[Taught, Labels]:
    """Return the images in the graph, and the index among them of the run's images; -1: not in it.

    ``answers``: Clusters by the answers that teach. ``names``: Of all clusters, the new ones too. ``sample``: Clusters
    of drawn images without their answers.
    """
    rows = run.rows
    graph = rows.sample[graph_rows(rows.sample)]
    nodes = nodes_of(rows.reduced, graph)
    labels = np.zeros(len(graph), np.int64)
    labels[nodes[nodes >= 0]] = run.placement.cluster.numpy()[nodes >= 0]
    for row, group in _in_graph(sample, nodes).items():
        labels[row] = group
    return Taught(graph, rows.embeddings.ties(graph), labels, kinds_of(names), _in_graph(answers, nodes)), nodes


def _in_graph(groups: Mapping[int, int], nodes: Labels) -> dict[int, int]:
    """Return groups of images by their rows in the graph."""
    return {int(nodes[row]): group for row, group in groups.items() if nodes[row] >= 0}


# ---- answers --------------------------------------------------------------------------------------------------------


def read_answers(path: Path, display: Display | None = None) -> list[Answer]:
    """Read a table of answers, and say how many rows have neither a name nor a cluster. UsageError names the fault."""
    names = {"path": PATH_COLUMNS} | {column: (column,) for column in ("cluster", "name", "drawn")}
    answers = []
    empty = 0
    try:
        for line, row in read_columns(path, names, optional=("cluster", "name", "drawn")):
            number, name = row["cluster"].strip(), checked_name(row["name"])
            if number and not re.fullmatch("[0-9]{1,9}", number):
                raise ValueError(f"{number[:80]!a} in line {line} is not the number of a cluster")
            mark = row["drawn"].strip().lower()
            if mark not in MARKS:
                raise ValueError(f"{mark[:80]!a} in line {line} is no mark: the column drawn has 1 or 0")
            if number or name:
                answers.append(Answer(row["path"], int(number) if number else None, name, drawn=MARKS[mark]))
            else:
                empty += 1
        if not answers:
            raise ValueError("it has no answers: the column name is empty")
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        way_out = (
            f"write the right names into the column name of a table that `deepcluster ask RUN -o {path.name}` makes, or"
            " make one of path,name or path,cluster"
        )
        raise UsageError(f"{path} cannot be used ({reason}): {way_out}") from None
    if empty and display:
        display.say("Answers", f"{plural(empty, 'row')} of {path.name} without an answer")
    return answers


def lesson(run: Run, answers: Sequence[Answer], within: int | None = None) -> Change:
    """Let images follow these answers and all earlier ones. UsageError if there are none, or if one does not fit.

    Images drawn at random teach nothing, so they tell how good the clusters of all others are. ``within``: A cluster,
    whose images alone follow, and only these answers: it is split by examples. The estimate then begins anew, because
    the drawn images were asked about the cluster as it was; their answers teach from then on.
    """
    model, remarks = _taught_model(run, answers, within)
    after = replace(run, model=model)
    cluster = after.placement.cluster
    marked = dict(model.sample)
    digest = json_sha256(sorted((row, int(cluster[row]), row in marked) for row in model.answers))
    done = plural(len(model.answers), "answer")
    changes = preview(run, after)
    said = {"Answers": "; ".join([done, *remarks]), "Changed": changes_text(changes, model)}
    if quality := estimated_quality(model, cluster, run.rows.fitted):
        said["Quality"] = quality_text(quality)
    return decided(after, digest, bool(changes), done=done, example=next(reversed(model.answers), 0), said=said)


def _taught_model(run: Run, answers: Sequence[Answer], within: int | None) -> tuple[Model, list[str]]:
    """Return the model of a :func:`lesson`, and remarks."""
    model, rows, placed = run.model, run.rows, run.placement
    cluster = placed.cluster.tolist()
    new_answers, names, remarks = _understood(run, answers)
    outside = {row: group for row, group in enumerate(cluster) if group != within}
    kept = {row: outside[row] for row in model.answers if row in outside}
    answered = {row: group for row, group in kept.items() if row not in new_answers} | new_answers
    if not answered:
        raise UsageError("there are no answers yet: give some")
    groups = [*answered.values()]
    equal = nodes_of(rows.reduced, rows.reduced[[*answered]]).tolist()  # equal images go together, by the last answer
    targets = {row: groups[place] for row, place in enumerate(equal) if place >= 0}
    if within is not None and len({targets[row] for row in new_answers if cluster[row] == within}) < 2:
        raise UsageError(f"cluster {within} is split by examples of two kinds or more: tick some of each kind")
    if dropped := [row for row, group in answered.items() if targets[row] != group]:
        paths = some([one_line(rows.paths[row]) for row in dropped])
        remarks.append(f"answers about equal images contradict each other, so those about {paths} do not count")
    answered = {row: group for row, group in answered.items() if targets[row] == group}
    moved = {row: outside[row] for row, _ in model.moves if row in outside and row not in targets}
    before = model if within is None else replace(model, sample=())
    marks = {row: answer.drawn for row, answer in zip(new_answers, answers, strict=True)}
    sample = sampled(before, rows.reduced, placed.cluster, marks)
    teachers = {row: group for row, group in answered.items() if row not in sample}
    taught, nodes = _taught(run, teachers, names, sample)
    labels = taught.labels.copy()
    part, inside = taught.inside(within) if within is not None else (slice(None), taught)
    labels[part] = followed(inside)
    for row, group in _in_graph(moved, nodes).items():
        labels[row] = group
    cut = regrouped(model.cut, taught.rows, torch.from_numpy(taught.labels), torch.from_numpy(labels))
    clusters = replace(model, cut=cut).placement(rows.reduced).cluster
    if within is not None:
        parts = torch.isin(cut.group_of, torch.tensor([*new_answers.values()]))
        alone = [row for row, group in new_answers.items() if group not in cut.group_of]  # none of them in the graph
        centroids = torch.cat([cut.centroids[parts], rows.reduced[alone]])
        group_of = torch.cat([cut.group_of[parts], torch.tensor([new_answers[row] for row in alone]).long()])
        split = replace(model, cut=Cut(centroids, group_of)).placement(rows.reduced).cluster
        clusters = torch.where(placed.cluster == within, split, placed.cluster)
    if not np.array_equal(labels, taught.labels):
        pinned = [row for row, group in sample.items() if group != cluster[row]]
        without_pins = unpinned(replace(model, cut=cut), rows.reduced, pinned)
        sample = {row: int(clusters[row]) for row in sample} | without_pins
    cut = move_rows(cut, moved | targets, rows.reduced, clusters)
    new = replace(
        replace(model, names=tuple(names)).with_cut(cut),
        moves=tuple((row, origin) for row, origin in model.moves if row not in targets),
        answers=tuple(answered),
        sample=tuple((row, group) for row, group in sample.items() if row in answered),
    )
    return new, remarks


def _understood(run: Run, answers: Sequence[Answer]) -> tuple[dict[int, int], list[str], list[str]]:
    """Return the clusters of answered rows, the names of all clusters with the new ones, and remarks."""
    model, paths = run.model, run.rows.paths
    cluster = run.placement.cluster.tolist()
    sizes = Counter(cluster)
    present = sorted({*model.cut.group_of.tolist()}, key=lambda group: (sizes[group], -group))
    free = len(model.names)
    numbers = [answer.cluster for answer in answers if answer.cluster is not None and answer.may_be_new]
    new = range(free, max([free, *(number + 1 for number in numbers if number < free + len(answers))]))
    names = [*model.names, *("" for _ in new)]
    called = {group: names[group] or f"cluster {group}" for group in present}
    largest = {name: group for group, name in called.items()}
    times = Counter(called.values())
    cluster_of: dict[int, int] = {}
    said: dict[str, None] = {}
    rows = moved_rows(Edits(move=tuple((answer.path, 0) for answer in answers)), paths)
    for row, answer in zip(rows, answers, strict=True):
        name, current = answer.name, cluster[row]
        number = current if answer.cluster is None else answer.cluster
        if not name and number not in present and not (answer.may_be_new and number in new):
            raise UsageError(f"there is no cluster {number}: see cluster_summary.csv; a new name makes a new cluster")
        if name and name == called[current] and called.get(number, name) != name:
            image = one_line(paths[row])
            raise UsageError(
                f"{image} has the name {name!a} and the number {number} of another cluster: give one alone"
            )
        if name and name not in largest:
            largest[name] = len(names)
            names.append(name)
        if len(names) - free > MAX_NEW:
            raise UsageError(f"the answers make more than {MAX_NEW:,} new clusters: name kinds of images")
        fitting = (group for group in (current, number) if called.get(group) == name)
        cluster_of[row] = next(fitting, largest[name]) if name else number
        if name and cluster_of[row] not in (current, number) and times[name] > 1:
            said[f"answers {name!a} mean cluster {cluster_of[row]}, the largest of {times[name]} with this name"] = None
    return cluster_of, names, [*said]


def teach(
    run: Path,
    answers: Sequence[Answer] = (),
    display: Display | None = None,
    *,
    within: int | None = None,
    names: Sequence[str] = (),
    dry_run: bool = False,
) -> Made:
    """Keep the answers with a run, and let its other images follow.

    The answers that the run has count again. ``within``: As in :func:`lesson`. ``names``: New names of all clusters.

    Raises UsageError if there are no answers, or if an image or a cluster does not exist.
    """
    change_of = partial(by_answers, answers, within=within, names=names)
    return carry_out(run, change_of, Several(display), dry_run=dry_run)


def by_answers(
    answers: Sequence[Answer],
    folder: run_folder.RunFolder,
    run: Run,
    *,
    within: int | None = None,
    names: Sequence[str] = (),
) -> Change:
    """Return the change of :func:`teach`."""
    change = lesson(replace(run, model=replace(run.model, names=tuple(names) or run.model.names)), answers, within)
    if change.run.record.edits == run.record.edits:
        return Change(run, run.placement, said={"Answers": "the run has them already"})
    return change


def changes_text(changes: Mapping[tuple[int, int], int], model: Model) -> str:
    """Describe the changes in words: ``5 images changed their cluster: 3 from 0 to 4 (owl), 2 from 1 to 4 (owl)``."""
    called = [f"{group} ({one_line(name)})" if name else str(group) for group, name in enumerate(model.names)]
    pairs = [f"{images:,} from {called[a]} to {called[b]}" for (a, b), images in changes.items()]
    return f"{plural(sum(changes.values()), 'image')} changed their cluster{': ' * bool(pairs)}{some(pairs, 10)}"
