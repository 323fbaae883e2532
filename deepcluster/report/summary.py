"""The main facts of a run, one plain sentence each, the good and the bad in the same tone."""

from collections.abc import Mapping, Sequence

from deepcluster.report.text import Row, count, figure, number, percent
from deepcluster.storage.table import Table


def statements(
    clusters: Sequence[Row],
    summary: Sequence[Row],
    history: Sequence[Row],
    metrics: Mapping[str, float | str],
    skipped: Sequence[Row],
    verdict: str = "",
) -> list[str]:
    """Return the sentences in the order of the page, among them the run's ``verdict``; no value, no sentence."""
    sizes = [int(row["size"]) for row in summary]
    outliers = len(Table.of(clusters).where("is_outlier", "1"))
    return [
        _division(sizes),
        *([verdict] if verdict else []),
        *_training(history),
        *_outliers(outliers, sum(sizes)),
        *_against_labels(metrics, trained=bool(history)),
        _skipped(len(skipped)),
    ]


def _division(sizes: Sequence[int]) -> str:
    totals = f"{count(sum(sizes), 'image')} in {count(len(sizes), 'cluster')}"
    if len(sizes) < 2 or not any(sizes):
        return f"{totals}."
    largest, smallest = (percent(size / sum(sizes)) for size in (max(sizes), min(sizes)))
    return f"{totals}; the largest holds {largest} of them, the smallest {smallest}."


def _training(history: Sequence[Row]) -> list[str]:
    if not history:
        return ["No round was trained: the clusters are those of the network as it was given."]
    rounds = f"{count(len(history), 'round')} of clustering and training"
    changed, loss, chance = (number(history[-1].get(name)) for name in ("changed", "loss", "chance_loss"))
    if changed is not None:
        rounds += f"; in the last, {percent(changed)} of the images changed pseudo-label"
    if loss is None or chance is None:
        return [f"{rounds}."]
    return [f"{rounds}.", f"The last round's loss is {figure(loss)}; guessing would give {figure(chance)}."]


def _outliers(outliers: int, images: int) -> list[str]:
    if not outliers:
        return []
    are = "is an outlier" if outliers == 1 else "are outliers"
    return [f"{count(outliers, 'image')} ({percent(outliers / max(1, images))}) {are}, unlike the images of the fit."]


def _against_labels(metrics: Mapping[str, float | str], *, trained: bool) -> list[str]:
    reached, start = number(metrics.get("acc")), number(metrics.get("baseline_acc"))
    if reached is None:
        return []
    accuracy = f"Against the labels the clusters reach an accuracy of {reached:.3f}"
    if start is None or not trained:
        return [f"{accuracy}."]
    outcome = "training helped" if reached > start else "training did not help"
    return [f"{accuracy}, those of the network at the start {start:.3f}: by this measure {outcome} in this run."]


def _skipped(files: int) -> str:
    if not files:
        return "Every file could be used."
    return f"{count(files, 'file')} could not be used and {'was' if files == 1 else 'were'} skipped."
