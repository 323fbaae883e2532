"""The images of a finished run, located again."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepcluster.errors import DataError
from deepcluster.images import Images, Source, find
from deepcluster.images.decode import one_line
from deepcluster.runs.page import found_again
from deepcluster.storage import run_folder as files
from deepcluster.storage.run_folder import RunFolder

Row = Mapping[str, str]


@dataclass(frozen=True)
class RunImages:
    """The images of a run.

    Attributes:
        rows: Of clusters.csv.
        source: The images.
        index: By path, the number of an image in the source.
        junk: Clusters that a person marked as junk.
        roots: Real paths of the files that the run may name, or of folders above them; empty: any image.
    """

    rows: tuple[Row, ...]
    source: Source
    index: Mapping[str, int]
    junk: frozenset[str]
    roots: frozenset[str]

    def is_file(self, row: Row) -> bool:
        """Whether the image of a row is a file, and not written as PNG."""
        i = self.index.get(row["path"])
        return self.source.file is not None and (i is None or self.source.file(i) is not None)


def read_run_images(run: Path, images: Images | None) -> RunImages:
    """The images of a run.

    Args:
        run: The run folder.
        images: Where they are now, under the same paths; None: where the run found them. Images of an update from
            elsewhere are still there.

    Raises:
        DiskError: There is no finished run.
        DataError: None of its images exists any more.
    """
    folder = files.open_run(run)
    rows, summary = files.read_state(
        run, lambda state: (state.read_clusters(), state.read_rows("cluster_summary.csv", ("cluster",)))
    )
    source = found_again(folder, None if images is None else find(images))
    index = {path: i for i, path in enumerate(source.paths)} if source else {}
    used = [row for row in rows if row["status"] == "ok"]
    with folder.as_disk_errors():
        for row in used:
            int(row["cluster"])
    if source is None or not any(row["path"] in index for row in used):
        where = source.location if source else folder.read_record().location
        raise DataError(
            f"none of the {len(used):,} images of {run} is at hand (they were in {one_line(where)}): say where they are"
            " now with --images IMAGES"
        )
    junk = frozenset(row["cluster"] for row in summary if row.get("junk") == "1")
    return RunImages(tuple(rows), source, index, junk, _roots(folder, source))


def _roots(folder: RunFolder, source: Source) -> frozenset[str]:
    """Real paths of the folder of the images and of the origins of added ones. Empty without such a folder: a list, a
    pipe or a call from Python may name any file."""
    if not Path(source.location).is_dir():
        return frozenset()
    added = {row["path"] for row in folder.read_added()}
    origins = (source.origin(i).source for i, path in enumerate(source.paths) if path in added)
    return frozenset(map(os.path.realpath, (source.location, *origins)))
