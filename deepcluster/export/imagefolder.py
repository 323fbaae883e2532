"""A data set for Hugging Face's ``datasets``: images, and metadata.csv with the results for each."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deepcluster.errors import UsageError
from deepcluster.export.filenames import cluster_folder, fitting, plain, split
from deepcluster.export.folder_tree import write_folders
from deepcluster.export.metadata import SUFFIXES as STRIPPED
from deepcluster.export.run_images import Row, read_run_images
from deepcluster.images import Images
from deepcluster.images.csv_files import write_csv
from deepcluster.images.decode import SUFFIXES as IMAGE_SUFFIXES
from deepcluster.runtime.console import Display, Silent
from deepcluster.storage.files import write_whole

SPLIT = "train"
METADATA = "metadata.csv"
METADATA_COLUMNS = ("file_name", "cluster", "name", "junk", "distance", "margin", "is_outlier")
# What `datasets` recognises as an image; other files are written as PNG.
SUFFIXES = IMAGE_SUFFIXES - {".heic", ".heif", ".hif", ".avif"}


def imagefolder(
    run: Path,
    out: Path,
    *,
    mode: str | None = "copy",
    images: Images | None = None,
    strip_metadata: bool | None = None,
    outliers: str = "keep",
    dry_run: bool = False,
    display: Display | None = None,
) -> Sequence[Row]:
    """Write ``out``/train/NUMBER/*.jpg, .png, ... and ``out``/train/metadata.csv.

    Names of files are made plain, and those of clusters are in the metadata only: `datasets` takes a folder called
    test, or 003-test, for another split. Arguments and result are those of ``folders``, except that
    ``strip_metadata`` is the default for copies, and that ``outliers`` cannot be separate: every folder is a class.
    """
    if outliers not in ("keep", "leave"):
        raise UsageError(
            f"outliers={outliers!r}: choose keep or leave. Every folder of an image folder is a class, and is_outlier"
            " is a column of its metadata.csv"
        )
    members = read_run_images(run, images)
    strip = mode in (None, "copy") if strip_metadata is None else strip_metadata
    suffixes = SUFFIXES & STRIPPED if strip else SUFFIXES

    def target(row: Row) -> tuple[str, str] | None:
        if outliers == "leave" and row["is_outlier"] == "1":
            return None
        name = plain(PurePosixPath(row["path"]).name)
        as_png = not members.is_file(row) or split(name)[1].lower() not in suffixes
        return f"{SPLIT}/{cluster_folder(int(row['cluster']))}", fitting(name, ".png") if as_png else name

    def finish(folder: Path, inventory: Sequence[Row]) -> None:
        labelled = any(row["label"] for row in members.rows)
        columns = (*METADATA_COLUMNS, "label") if labelled else METADATA_COLUMNS
        rows = []
        for row, entry in zip(members.rows, inventory, strict=True):
            if entry["exported_path"]:
                file_name = entry["exported_path"].removeprefix(f"{SPLIT}/")
                cells = {**row, "file_name": file_name, "junk": int(row["cluster"] in members.junk)}
                rows.append({column: cells[column] for column in columns})
        write_whole(folder / SPLIT / METADATA, lambda file: write_csv(file, columns, rows))

    display = display or Silent()
    inventory = write_folders(out, members, target, mode, strip=strip, dry_run=dry_run, display=display, finish=finish)
    if not dry_run:
        display.say("Load", f'datasets.load_dataset("imagefolder", data_dir={str(out)!r})')
    return inventory
