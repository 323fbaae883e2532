"""Answers of a person about a few images of a run, and all other images that follow."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from deepcluster.errors import UsageError
from deepcluster.groups.cut import move_rows, recentred
from deepcluster.groups.spread import Labels, Taught, beliefs, followed, nodes_of, questions
from deepcluster.model import WORDS, Model, Said
from deepcluster.runs.apply import MAX_NEW, rows_of
from deepcluster.runs.change import Carried, Change, carry_out, decided, preview
from deepcluster.runs.quality import kinds_of, sampled, unpinned
from deepcluster.runs.run import Run, read_run
from deepcluster.runtime.bounded import json_sha256
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.tables import PATH_COLUMNS, read_columns
from deepcluster.seeding import derive, generator
from deepcluster.storage import run_folder
from deepcluster.storage.edits_file import checked_name
from deepcluster.texts import a_few, one_line, plural, quality_text

COLUMNS = ("path", "now", "name", "likely", "drawn")  # of a table of questions
MARKS = dict.fromkeys(("1", "1.0", "true", "yes", "x"), True) | dict.fromkeys(("", "0", "0.0", "false", "no"), False)
MAX_LIKELY = 9  # clusters: a page has as many digit keys


@dataclass(frozen=True)
class Answer:
    """A person's answer: the cluster of an image, by name or by number (the name wins); with neither it is right."""

    path: str | int  # or row
    cluster: int | None = None
    name: str = ""
    by: str = WORDS[0]  # one of ``WORDS``; drawn: at random, so the answer says something about all images
    may_be_new: bool = False  # the number, because the page gives numbers to its new clusters
    apart: bool = False  # the name is not that of the other images of its cluster


@dataclass(frozen=True)
class Question:
    """An image for a person to name. A table of questions goes to teach, so nothing but her own names is an answer."""

    path: str
    now: str  # name of its present cluster
    name: str = ""  # the person's; only a drawn image that she has answered about begins with one
    likely: tuple[int, ...] = ()  # clusters, the likeliest first
    drawn: bool = False


def ask(run: Path, n: int = 20, *, drawn: bool = False) -> list[Question]:
    """Return up to ``n`` images of a run whose answers would teach most; ``drawn``: images drawn at random instead."""
    return asked(read_run(run_folder.open_run(run)), n)[drawn]


def asked(run: Run, n: int, answers: Sequence[Answer] = ()) -> tuple[list[Question], list[Question]]:
    """Return both lists of :func:`ask`; ``answers``: Some that have not been taught yet."""
    model, rows = run.model, run.rows
    cluster = run.placement.cluster.tolist()
    new = _understood(run, answers)
    names = new.names
    sample = sampled(model, rows.reduced, run.placement.cluster, new.words)
    answered = {row: cluster[row] for row in model.placed} | new.clusters
    teachers = {row: number for row, number in answered.items() if row not in sample}
    graph, nodes = _graph_taught(run, teachers, names, sample)
    seed, seed_of_drawn = (derive(run.record.seed, "questions", len(known)) for known in (teachers, answered))
    first = {int(node): row for row, node in reversed([*enumerate(nodes)])}
    nameless = [number for number, _ in Counter(cluster).most_common() if not names[number]]
    chosen = [first[node] for node in questions(graph, n, seed, nameless)]
    order = torch.randperm(len(cluster), generator=generator(seed_of_drawn, "drawn")).tolist()
    drawn = list(islice((row for row in order if row not in answered and run.clusters[row] >= 0), n))
    believed = np.concatenate([beliefs(graph), np.zeros((1, len(names)))])  # -1 is not in the graph

    def question(row: int, is_drawn: bool) -> Question:
        likely = np.argsort(-believed[nodes[row]], kind="stable")[:MAX_LIKELY]
        return Question(
            path=rows.paths[row],
            now=model.names[cluster[row]] or f"cluster {cluster[row]}",
            name=names[answered[row]] if row in answered else "",
            likely=tuple(int(number) for number in likely if believed[nodes[row], number]),
            drawn=is_drawn,
        )

    return [question(row, False) for row in chosen], [question(row, True) for row in drawn]


def _graph_taught(
    run: Run,
    answers: Mapping[int, int],
    names: Sequence[str],
    sample: Mapping[int, int],
) -> tuple[Taught, Labels]:
    """Return the images in the graph, and the index among them of the run's images; -1: not in it.

    ``answers``: That teach. ``names``: Of all clusters. ``sample``: Clusters of drawn images without their answers.
    """
    rows = run.rows
    graph, nodes = rows.graph
    labels = np.zeros(len(graph), np.int64)
    labels[nodes[nodes >= 0]] = run.placement.cluster.numpy()[nodes >= 0]
    for row, number in _in_graph(sample, nodes).items():
        labels[row] = number
    return Taught(graph, rows.layouts.ties(graph), labels, kinds_of(names), _in_graph(answers, nodes)), nodes


def _in_graph(clusters: Mapping[int, int], nodes: Labels) -> dict[int, int]:
    """Return clusters of images by their rows in the graph."""
    return {int(nodes[row]): cluster for row, cluster in clusters.items() if nodes[row] >= 0}


# ---- answers --------------------------------------------------------------------------------------------------------


def read_answers(path: Path, display: Display | None = None) -> list[Answer]:
    """Read a table of answers, and say how many rows have neither a name nor a cluster. UsageError names the fault."""
    names = {"path": PATH_COLUMNS} | {column: (column,) for column in ("cluster", "name", "drawn")}
    answers = []
    empty = 0
    try:
        for line, row in read_columns(path, names, optional=("cluster", "name", "drawn")):
            number = row["cluster"].strip()
            name = checked_name(row["name"])
            if number and not re.fullmatch("[0-9]{1,9}", number):
                raise ValueError(f"{number[:80]!a} in line {line} is not the number of a cluster")
            mark = row["drawn"].strip().lower()
            if mark not in MARKS:
                raise ValueError(f"{mark[:80]!a} in line {line} is no mark: the column drawn has 1 or 0")
            if number or name:
                answers.append(
                    Answer(row["path"], int(number) if number else None, name, WORDS[2 if MARKS[mark] else 0])
                )
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


def taught_by(run: Run, answers: Sequence[Answer]) -> Change:
    """Let images follow these answers and all earlier ones. UsageError if there are none, or if one does not fit.

    Images drawn at random teach nothing (but the first that names a cluster), so they tell how good the clusters of all
    others are.
    """
    model, remarks = taught_model(run, answers)
    after = replace(run, model=model)
    cluster = after.placement.cluster
    said_of = sorted((row, int(cluster[row]), model.names[cluster[row]], by) for row, by in model.placed.items())
    digest = json_sha256(said_of)
    if digest == run.facts.edits:
        return Change(run, lines={"Answers": "the run has them already"})
    text = plural(len(model.said), "answer")
    changes = preview(run, after)
    lines = {"Answers": "; ".join([text, *remarks]), "Changed": changes_text(changes, model)}
    if quality := after.quality:
        lines["Quality"] = quality_text(quality)
    if unnamed := [str(number) for number in cluster.unique().tolist() if not model.names[number]]:
        have = "has" if len(unnamed) == 1 else "have"
        lines["Names"] = f"{plural(len(unnamed), 'cluster')} {have} no name: {a_few(unnamed, 20)}"
    return decided(after, digest, bool(changes), text=text, example=next(reversed(model.placed), 0), lines=lines)


def taught_model(run: Run, answers: Sequence[Answer]) -> tuple[Model, list[str]]:
    """Return the model of a :func:`taught_by`, and remarks."""
    model, rows, placed = run.model, run.rows, run.placement
    cluster = placed.cluster.tolist()
    new = _understood(run, answers)
    remarks = new.remarks
    answered = {row: cluster[row] for row in model.placed if row not in new.clusters} | new.clusters
    if not answered:
        raise UsageError("there are no answers yet: give some")
    numbers = [*answered.values()]
    equal = nodes_of(rows.reduced, rows.reduced[[*answered]]).tolist()  # equal images go together, by the last answer
    targets = {row: numbers[place] for row, place in enumerate(equal) if place >= 0}
    if dropped := [row for row, number in answered.items() if targets[row] != number]:
        paths = a_few([one_line(rows.paths[row]) for row in dropped])
        remarks.append(f"answers about equal images contradict each other, so those about {paths} do not count")
    answered = {row: number for row, number in answered.items() if targets[row] == number}
    sample = sampled(model, rows.reduced, placed.cluster, new.words)
    teachers = {row: number for row, number in answered.items() if row not in sample}
    graph, _ = _graph_taught(run, teachers, new.names, sample)
    labels = followed(graph)
    cut = recentred(model.cut, graph.rows, torch.from_numpy(graph.labels), torch.from_numpy(labels))
    before = rows.placement(replace(model, cut=cut))
    if not np.array_equal(labels, graph.labels):
        pinned = [row for row, number in sample.items() if number != cluster[row]]
        without_pins = unpinned(replace(model, cut=cut), rows.reduced, pinned)
        sample = {row: int(before.cluster[row]) for row in sample} | without_pins
    cut = move_rows(cut, targets, rows.reduced, before)
    words = model.placed | new.words
    said = tuple(
        Said(row, "drawn", sample[row]) if row in sample else Said(row, _teaching(words[row])) for row in answered
    )
    return replace(replace(model, names=tuple(new.names)).with_cut(cut), said=said), remarks


def _teaching(word: str) -> str:
    """Return the word about an image that left the sample: its answer teaches from then on."""
    return WORDS[0] if word == "drawn" else word


@dataclass(frozen=True)
class _Understood:
    """The meaning of answers."""

    clusters: dict[int, int]  # of answered rows
    names: list[str]  # of all clusters, with new ones and first names
    words: dict[int, str]  # of ``WORDS``, by answered rows
    remarks: list[str]


def _understood(run: Run, answers: Sequence[Answer]) -> _Understood:
    """Return the meaning of answers, or raise UsageError if one has none."""
    model = run.model
    paths = run.rows.paths
    cluster = run.placement.cluster.tolist()
    sizes = Counter(cluster)
    present = sorted({*model.cut.cluster_of.tolist()}, key=lambda number: (sizes[number], -number))
    free = len(model.names)
    numbers = [answer.cluster for answer in answers if answer.cluster is not None and answer.may_be_new]
    new = range(free, max([free, *(number + 1 for number in numbers if number < free + len(answers))]))
    names = [*model.names, *("" for _ in new)]
    before = {one: names[one] or f"cluster {one}" for one in present}
    answer_of = dict(zip(rows_of([one.path for one in answers], paths), answers, strict=True))
    first = _first_names(cluster, names, before, answer_of)
    names = [first.get(one, name) for one, name in enumerate(names)]
    called = {one: names[one] or text for one, text in before.items()}
    largest = {name: one for one, name in called.items()} | {names[one]: one for one in present if names[one]}
    times = Counter(called.values())
    cluster_of: dict[int, int] = {}
    remarks: list[str] = []
    for row, answer in answer_of.items():
        name = answer.name
        current = cluster[row]
        number = current if answer.cluster is None else answer.cluster
        if not name and number not in present and not (answer.may_be_new and number in new):
            raise UsageError(f"there is no cluster {number}: see cluster_summary.csv; a new name makes a new cluster")
        if name and name == before[current] and before.get(number, name) != name:
            image = one_line(paths[row])
            raise UsageError(
                f"{image} has the name {name!a} and the number {number} of another cluster: give one alone"
            )
        if name and name not in largest:
            largest[name] = len(names)
            names.append(name)
        if len(names) - free > MAX_NEW:
            raise UsageError(f"the answers make more than {MAX_NEW:,} new clusters: name kinds of images")
        same_name = (one for one in (current, number) if called.get(one) == name)
        cluster_of[row] = next(same_name, largest[name]) if name else number
        if name and cluster_of[row] not in (current, number) and times[name] > 1:
            largest_of = f"the largest of {times[name]} with this name"
            remarks.append(f"answers {name!a} mean cluster {cluster_of[row]}, {largest_of}")
    # The first of the answers that named a cluster decided its name, so it tells nothing about the name's quality.
    others_first = sorted(answer_of, key=lambda row: answer_of[row].by == "drawn")
    naming = {cluster[row]: row for row in reversed(others_first) if first.get(cluster[row]) == answer_of[row].name}
    words = {row: _teaching(one.by) if naming.get(cluster[row]) == row else one.by for row, one in answer_of.items()}
    if drawn := sum(answer_of[row].by == "drawn" for row in naming.values()):
        remarks.append(f"{plural(drawn, 'answer')} about drawn images named a cluster each, and therefore teach")
    return _Understood(cluster_of, names, words, [*dict.fromkeys(remarks)])


def _first_names(
    cluster: Sequence[int], names: Sequence[str], called: Mapping[int, str], answer_of: Mapping[int, Answer]
) -> dict[int, str]:
    """Return the first names said of images of clusters without one.

    The commonest name of a cluster counts, and of equally frequent ones the first. A cluster that is answered by its
    number gets none, because its other images are told apart from it.
    """
    number_of = {text: number for number, text in called.items() if not names[number]}
    by_number: set[int | None] = set()
    votes: Counter[tuple[int, str]] = Counter()
    for row, one in answer_of.items():
        number = cluster[row]
        if not one.name or one.name in number_of:
            by_number.add(number_of.get(one.name, number if one.cluster is None else one.cluster))
        elif not (names[number] or one.apart) and (one.cluster is None or called.get(one.cluster) != one.name):
            votes[number, one.name] += 1
    first: dict[int, str] = {}
    for (number, name), _ in votes.most_common():
        if number not in by_number:
            first.setdefault(number, name)
    return first


def teach(
    run: Path, answers: Sequence[Answer] = (), display: Display | None = None, *, dry_run: bool = False
) -> Carried:
    """Keep the answers with a run, and let its other images follow, as in :func:`taught_by`."""
    return carry_out(run, lambda _, before: taught_by(before, answers), Several(display), dry_run=dry_run)


def changes_text(changes: Mapping[tuple[int, int], int], model: Model) -> str:
    """Describe the changes in words: ``5 images changed their cluster: 3 from 0 to 4 (owl), 2 from 1 to 4 (owl)``."""
    called = {
        number: f"{number} ({one_line(name)})" if name else str(number) for number, name in enumerate(model.names)
    }
    called[-1] = "none"
    pairs = [f"{images:,} from {called[a]} to {called[b]}" for (a, b), images in changes.items()]
    return f"{plural(sum(changes.values()), 'image')} changed their cluster{': ' * bool(pairs)}{a_few(pairs, 10)}"
