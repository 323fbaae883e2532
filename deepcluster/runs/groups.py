"""The groups of a run, and every file of it that depends on them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from deepcluster.clustering.agreement import NMI_AVERAGE
from deepcluster.errors import DataError, DeepClusterError, UsageError
from deepcluster.groups.choose_k import candidates
from deepcluster.groups.confidence import signs, verdict
from deepcluster.groups.cut import Cut, as_groups, cut
from deepcluster.groups.map2d import layout
from deepcluster.groups.merge_tree import merge_tree
from deepcluster.groups.neighbour_graph import Graph
from deepcluster.groups.quality_by_k import levels
from deepcluster.images import Source, find
from deepcluster.images.decode import Undecodable, pillow_limits
from deepcluster.images.named import cache_folder
from deepcluster.records import Clustering
from deepcluster.report.page import RunData, render
from deepcluster.report.sections import MEDOID, Picture
from deepcluster.report.thumbnails import THUMBNAIL
from deepcluster.runtime.display import Display
from deepcluster.seeding import derive
from deepcluster.storage import csv_rows as tables
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.csv_rows import round_to
from deepcluster.storage.model_files import Model
from deepcluster.storage.ownership import OLD_CHARTS
from deepcluster.storage.run_folder import RunFolder

MOST_IN_TREE = 500
MOST_IN_CUT = 1000  # groups, where k-means has made them already: the eigenvectors of more take too long


def check_groups(n_clusters: int | None, count: int) -> None:
    if n_clusters is not None and n_clusters < 1:
        raise UsageError(f"-k {n_clusters}: give a whole number of at least 1, or auto")
    if n_clusters is not None and n_clusters > count:
        raise DataError(f"-k {n_clusters} is more than the {count} images: give at most -k {count}")


def groups_of(reduced: Tensor, fine: Clustering, n_clusters: int, seed: int, graph: Graph | None = None) -> Cut:
    """A cut of the features, or of a ``graph`` of the images. Of very many groups it would take longer than a run: then
    it is the last clustering itself, if that has as many."""
    if n_clusters > MOST_IN_CUT and len(fine.centroids) == n_clusters:
        return as_groups(fine)
    return cut(reduced, n_clusters, seed=derive(seed, "groups"), graph=graph)


def suggested(reduced: Tensor, record: dict[str, Any], display: Display) -> int:
    """The best of the candidates for the number of groups; all of them are said, and kept in run.json."""
    found = candidates(reduced, seed=derive(record["seed"], "number of groups"))
    record["candidates"] = [
        {name: round_to(value, 4) for name, value in asdict(candidate).items()} for candidate in found
    ]
    if not found:
        return 1
    texts = [f"{each.k} (stability {each.stability:.2f}, silhouette {each.silhouette:.2f})" for each in found]
    others = f"; also plausible: {', '.join(texts[1:])}: deepcluster recut RUN -k N" if texts[1:] else ""
    display.say("Groups", f"{texts[0]} is a guess, by the gaps in the graph of neighbours{others}")
    return found[0].k


@dataclass(frozen=True)
class Rows:
    """The images of a run: those that were used, in row order, and those that were not."""

    paths: Sequence[str]
    labels: Sequence[str] | None
    skipped: Sequence[tuple[str, str]]
    reduced: Tensor
    lengths: Tensor | None = None  # of the whitened features; no run of version 0.1 has them


def write_groups(
    folder: RunFolder, model: Model, rows: Rows, record: dict[str, Any], baseline: Mapping[str, float]
) -> None:
    """Everything that depends on the groups: the model, clusters.csv, cluster_summary.csv, metrics.json, tree.json and
    run.json. What can fail is computed before the first file is written."""
    placement = model.place(rows.reduced)
    found = signs(rows.reduced, placement.cluster, seed=derive(record["seed"], "verdict"))
    said = {name: round_to(value, 4) for name, value in asdict(found).items()} if found else {}
    labels = rows.labels if rows.labels is not None else [""] * len(rows.paths)
    used = [
        {"path": path, "status": "ok", "fine_cluster": fine, "label": label, **place_row}
        for path, fine, label, place_row in zip(
            rows.paths,
            placement.fine_cluster.tolist(),
            labels,
            tables.placement_rows(model, placement, rows.lengths),
            strict=True,
        )
    ]
    unused = [{"path": path, "status": "skipped"} for path, _ in rows.skipped]
    rows_written = [*used, *unused]
    folder.write_rows("clusters.csv", files.CLUSTERS, rows_written)
    summary = tables.summary_rows(model, placement, rows.reduced, rows.paths)
    metrics = tables.metrics(rows.labels, placement) if rows.labels is not None and any(rows.labels) else {}
    folder.write_rows("cluster_summary.csv", files.SUMMARY, summary)
    if metrics:
        baseline = baseline or (metrics if record["rounds"] == 0 else {})
        folder.write_json(
            "metrics.json",
            {
                **metrics,
                **{f"baseline_{name}": value for name, value in baseline.items()},
                "nmi_average": NMI_AVERAGE,
                "labelled": sum(1 for label in rows.labels or () if label),
            },
        )
    write_tree(folder, model, rows.reduced, record["seed"])
    # What edits are for: this assignment, and no later one.
    record["cut"] = files.cut_digest(rows_written)
    record["rows"] = files.rows_digest(rows_written)
    record["clusters"] = len(summary)
    record |= {"signs": said, "verdict": verdict(found)}
    folder.write_json("run.json", record)


def write_tree(folder: RunFolder, model: Model, reduced: Tensor, seed: int) -> None:
    """The merge tree of up to ``MOST_IN_TREE`` groups; more are nothing to look at, and would take minutes."""
    if model.groups.count > MOST_IN_TREE:
        folder.remove(drawn.TREE)
        return
    tree, piece = merge_tree(reduced, model.groups)
    drawn.write_tree(folder, tree, levels(reduced, tree, piece, seed=derive(seed, "levels")))


def write_map(folder: RunFolder, reduced: Tensor, seed: int) -> None:
    drawn.write_map(folder, layout(reduced, derive(seed, "map")))


def found_again(folder: RunFolder) -> Source | None:
    """The images of a run, where they are still at hand."""
    location = folder.read_record()["location"]
    with suppress(DeepClusterError, OSError):
        if location in ("-", "python:paths"):  # the list is gone, but its paths are in the table
            return find([row["path"] for row in folder.read_clusters()])
        return find(location) if _is_at_hand(location) else None
    return None


def _is_at_hand(location: str) -> bool:
    """Not passed from Python; nor a data set that would be downloaded: nobody asked for that."""
    scheme, _, name = location.partition(":")
    cached = name.isidentifier() and cache_folder(name).is_dir()
    return cached if scheme == "torchvision" else scheme not in ("python", "hf")


def pictures(source: Source | None, size: int) -> Picture:
    """A function from a path to its image, of at least ``size`` px if it has them; None where it cannot be read."""
    index = {path: i for i, path in enumerate(source.paths)} if source else {}

    def picture(path: str) -> Image.Image | None:
        if source is None or path not in index:
            return None
        try:
            with pillow_limits():
                return source.read(index[path], size)
        except (Undecodable, DataError, OSError):
            return None

    return picture


def write_report(folder: RunFolder, source: Source | None) -> None:
    """Write report.html, without the charts that version 0.1 put beside it: they would be of the report before."""
    record = folder.read_record()
    clusters = folder.read_clusters()
    used = [row for row in clusters if row["status"] == "ok"]
    data = RunData(
        title=str(record["images"]),
        run=record,
        clusters=clusters,
        summary=folder.read_rows("cluster_summary.csv", files.SUMMARY[:-1]),  # version 0.1 knew no junk
        history=folder.read_rows("history.csv", files.HISTORY),
        metrics=folder.read_json("metrics.json") if folder.has("metrics.json") else None,
        skipped=folder.read_rows("skipped.csv", files.SKIPPED),
        duplicates=folder.read_rows("duplicates.csv", files.DUPLICATES) if folder.has("duplicates.csv") else None,
        picture=pictures(source, MEDOID * THUMBNAIL),
        positions=drawn.read_map(folder, len(used)),
        tree=drawn.read_tree(folder, len(used)),
        sheet=drawn.read_sheet(folder),
        filters=drawn.read_filters(folder),
        name=folder.path.resolve().name,
    )
    folder.write_text("report.html", render(data))
    for name in OLD_CHARTS:
        folder.remove(name)
