"""A data set for Hugging Face's ``datasets``: images, and metadata.csv with what the run says of each."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deepcluster.export.filenames import cluster_folder, fitting, plain, split
from deepcluster.export.folder_tree import show_folders, targets_of, write_folders
from deepcluster.export.metadata import SUFFIXES as STRIPPED
from deepcluster.export.run_images import Row, read_run_images
from deepcluster.images import Images
from deepcluster.images.decode import SUFFIXES as IMAGE_SUFFIXES
from deepcluster.runtime.display import Display, Silent
from deepcluster.storage.atomic import write_whole
from deepcluster.storage.csv_files import write_csv

SPLIT = "train"
METADATA = "metadata.csv"
METADATA_COLUMNS = ("file_name", "cluster", "name", "junk", "distance", "margin", "is_outlier")
# What `datasets` takes for an image, too; another file is written as PNG.
SUFFIXES = IMAGE_SUFFIXES - {".heic", ".heif", ".avif"}


def imagefolder(
    run: Path,
    out: Path,
    *,
    mode: str | None = "copy",
    images: Images | None = None,
    strip_metadata: bool | None = None,
    dry_run: bool = False,
    display: Display | None = None,
) -> Sequence[Row]:
    """Write ``out``/train/NUMBER/*.jpg, .png, ... and ``out``/train/metadata.csv; the options are those of ``folders``.

    Names of files are made plain, and those of clusters stand in the metadata alone: `datasets` takes a folder that is
    called test, or 003-test, for another split. ``strip_metadata``: copies without EXIF, comments and the like
    (metadata.py); None for all but links.
    """
    members = read_run_images(run, images)
    strip = mode in (None, "copy") if strip_metadata is None else strip_metadata
    known_suffixes = SUFFIXES & STRIPPED if strip else SUFFIXES

    def target(row: Row) -> tuple[str, str]:
        name = plain(PurePosixPath(row["path"]).name)
        known = members.source.file is not None and split(name)[1].lower() in known_suffixes
        return f"{SPLIT}/{cluster_folder(int(row['cluster']))}", name if known else fitting(name, ".png")

    def finish(folder: Path, inventory: Sequence[Row]) -> None:
        labelled = any(row["label"] for row in members.rows)
        rows = [
            {
                **row,
                "file_name": found["exported_path"].removeprefix(f"{SPLIT}/"),
                "junk": int(row["cluster"] in members.junk),
            }
            for row, found in zip(members.rows, inventory, strict=True)
            if found["exported_path"]
        ]
        columns = (*METADATA_COLUMNS, "label") if labelled else METADATA_COLUMNS
        kept = [{column: row[column] for column in columns} for row in rows]
        write_whole(folder / SPLIT / METADATA, lambda file: write_csv(file, columns, kept))

    display = display or Silent()
    targets = targets_of(members.rows, target)
    if dry_run:
        show_folders(out, members, targets, mode, strip, display)
        return ()
    inventory = write_folders(out, members, targets, mode, strip, display, finish)
    display.say("Load", f'datasets.load_dataset("imagefolder", data_dir={str(out)!r})')
    return inventory
