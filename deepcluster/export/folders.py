"""Images sorted into a folder for each cluster."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deepcluster.errors import UsageError
from deepcluster.export.filenames import cluster_folder, fitting, split
from deepcluster.export.folder_tree import write_folders
from deepcluster.export.metadata import SUFFIXES as STRIPPED
from deepcluster.export.run_images import Row, read_run_images
from deepcluster.images import Images
from deepcluster.runtime.console import Display, Silent

JUNK, APART = "_junk", "_outliers"
OUTLIERS = ("keep", "separate", "leave")  # in their cluster, in a folder of their own, or out


def folders(
    run: Path,
    out: Path,
    *,
    mode: str | None = None,
    images: Images | None = None,
    strip_metadata: bool = False,
    outliers: str = "keep",
    dry_run: bool = False,
    display: Display | None = None,
) -> Sequence[Row]:
    """Sort the images of a run into folders NUMBER-NAME, those of junk clusters below ``_junk``.

    Images that are not files are written as PNG at their own size.

    Args:
        run: The run folder.
        out: The folder to make.
        mode: symlink, hardlink or copy; default: for each file the first of these that works.
        images: Where the images are, if no longer where the run found them.
        outliers: "keep": in their clusters; "separate": below ``_outliers``; "leave": not exported. Those in junk
            clusters are junk.
        strip_metadata: Write copies without EXIF, comments and the like (metadata.py).
        dry_run: Write nothing, only say what would be done.
        display: Where progress and the outcome go.

    Returns:
        The rows of inventory.csv.
    """
    if outliers not in OUTLIERS:
        raise UsageError(f"outliers={outliers!r}: choose {' or '.join(OUTLIERS)}")
    members = read_run_images(run, images)

    def target(row: Row) -> tuple[str, str] | None:
        folder, name = cluster_folder(int(row["cluster"]), row["name"]), PurePosixPath(row["path"]).name
        if row["cluster"] in members.junk:
            folder = f"{JUNK}/{folder}"
        elif row["is_outlier"] == "1" and outliers == "leave":
            return None
        elif row["is_outlier"] == "1" and outliers == "separate":
            folder = f"{APART}/{folder}"
        as_png = not members.is_file(row) or (strip_metadata and split(name)[1].lower() not in STRIPPED)
        return folder, fitting(name, ".png") if as_png else name

    return write_folders(out, members, target, mode, strip=strip_metadata, dry_run=dry_run, display=display or Silent())
