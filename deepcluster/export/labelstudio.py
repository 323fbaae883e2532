"""Tasks for Label Studio: each image with its cluster as the prediction, those near a border first."""

import json
import os
import shlex
from pathlib import Path
from urllib.parse import quote

from deepcluster.errors import DataError
from deepcluster.export.folders import read_run_images
from deepcluster.export.replace import Unavailable
from deepcluster.export.split import balanced
from deepcluster.images import Images
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.log import warn
from deepcluster.storage.files import check_no_file, new_file
from deepcluster.storage.run_folder import open_run
from deepcluster.texts import one_line, plural, some

# A column "name" in Label Studio's CSV export, which `teach` reads with the column "path".
INTERFACE = (
    '<View><Image name="image" value="$image"/>'
    '<Choices name="name" toName="image" value="$clusters" layout="inline"/></View>'
)


def labelstudio(
    run: Path,
    out: Path,
    *,
    images: Images | None = None,
    n: int | None = None,
    seed: int = 0,
    display: Display | None = None,
) -> None:
    """Write a JSON file of tasks with predictions; Label Studio reads the images from this machine.

    Args:
        images: The place of the images, if it is no longer the run's.
        n: Number of images, drawn uniformly over the clusters; None: all.
        seed: Of ``n``.
        display: For the outcome, and how to start Label Studio.

    Raises:
        DataError: No image of the run is a file.
    """
    display = display or Silent()
    check_no_file(out)
    members = read_run_images(run, images)
    used = {row["path"]: row for row in members.rows if row["status"] == "ok"}
    with open_run(run).as_disk_errors("clusters.csv"):
        margin_of = {path: float(row["margin"]) for path, row in used.items()}
    files: dict[str, Path] = {}
    missing = []
    for path in balanced({path: row["cluster"] for path, row in used.items()}, len(used) if n is None else n, seed):
        try:
            if file := members.file(path):
                files[path] = Path(os.path.abspath(file))  # noqa: PTH100 (resolve would follow links)
        except Unavailable as error:
            missing.append(f"{one_line(path)} ({error})")
    if not files:
        why = some(missing) or "they are not files: export --to folders writes them, and a run on these can be exported"
        raise DataError(f"no image of {run} can be exported: {why}")
    try:
        home = Path(os.path.commonpath([file.parent for file in files.values()]))
    except ValueError:  # several drives of Windows
        raise DataError(f"the images of {run} are on several drives: give copies on one by --images") from None
    label_of = {row["cluster"]: members.name(row) or f"cluster {row['cluster']}" for row in used.values()}
    clusters = [{"value": label} for label in dict.fromkeys(label_of[key] for key in sorted(label_of, key=int))]

    def task(path: str) -> dict[str, object]:
        row = used[path]
        address = "/data/local-files/?d=" + quote(os.fsencode(files[path].relative_to(home.parent).as_posix()))
        name = os.fsencode(path).decode(errors="backslashreplace")
        choice = {"from_name": "name", "to_name": "image", "type": "choices"}
        return {
            "data": {"image": address, "path": name, "clusters": clusters},
            "predictions": [
                {
                    "model_version": "deepcluster",
                    "score": margin_of[path],
                    "result": [{**choice, "value": {"choices": [label_of[row["cluster"]]]}}],
                }
            ],
        }

    tasks = [task(path) for path in sorted(files, key=lambda path: (margin_of[path], path))]
    new_file(out, lambda file: file.write(json.dumps(tasks).encode()))
    if missing:
        warn(f"{len(missing):,} images are missing or cannot be used, and are left out: {some(missing)}")
    display.say("Exported", f"{plural(len(tasks), 'task')} to {out}, those near a border first")
    served = f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(str(home.parent))}"
    display.say("Start", f"LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true {served} label-studio")
    display.say("Storage", f"{home}, as local source storage of the project")
    display.say("Labels", INTERFACE)
