"""The report page of a run."""

from contextlib import suppress
from pathlib import Path

from PIL import Image

from deepcluster.errors import DataError, DeepClusterError
from deepcluster.images import Source, find
from deepcluster.images.decode import Undecodable, pillow_limits
from deepcluster.images.named import cache_folder
from deepcluster.report.page import RunData, render
from deepcluster.report.sections import MEDOID, Picture
from deepcluster.report.thumbnails import THUMBNAIL
from deepcluster.runs.results import read_run, write_map, write_tree
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.ownership import OLD_CHARTS
from deepcluster.storage.run_folder import RunFolder


def report(run: Path, source: Source | None = None) -> Path:
    """Write report.html of a run again, with the pictures of ``source``, or where the images are still at hand."""
    files.open_run(run)
    with files.locked(run) as folder, folder.next_state() as staged:
        rewrite_report(staged, source)
    return run / "report.html"


def rewrite_report(folder: RunFolder, source: Source | None) -> None:
    """Write the report of a run that has ended, with the map and the tree where they are missing."""
    with folder.as_disk_errors():
        if not (folder.has(drawn.MAP) and folder.has(drawn.TREE)):
            _draw(folder)
        write_report(folder, source or found_again(folder))


def _draw(folder: RunFolder) -> None:
    """Map and tree, where a fit left them out or the run is of version 0.1; the report can do without them."""
    with suppress(DeepClusterError):
        record, model, rows = read_run(folder)
        if not folder.has(drawn.MAP):
            write_map(folder, rows.reduced, record.seed)
        write_tree(folder, model, rows.reduced, record.seed)


def write_report(folder: RunFolder, source: Source | None) -> None:
    """Write report.html, without the charts that version 0.1 put beside it: they would be of the report before."""
    record = folder.read_record()
    clusters = folder.read_clusters()
    used = [row for row in clusters if row["status"] == "ok"]
    data = RunData(
        title=record.images,
        run=record.to_json(),
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


def found_again(folder: RunFolder) -> Source | None:
    """The images of a run, where they are still at hand."""
    location = folder.read_record().location
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
