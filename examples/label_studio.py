"""Correct the clusters of a run in Label Studio, and teach them to the run.

python examples/label_studio.py tasks runs/photos photos/ tasks.json
python examples/label_studio.py answers project.json answers.csv    # from Label Studio's export as JSON
deepcluster teach runs/photos answers.csv

The first command says how to start Label Studio, and what to type into a project there before you import the tasks: a
labeling interface, and a storage that is not to be synchronised. It was tested with Label Studio's SDK, not its page.
"""

import csv
import json
import os
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

INTERFACE = (
    '<View><Image name="image" value="$image"/>'
    '<Choices name="name" toName="image" value="$clusters" layout="inline"/></View>'
)


def tasks(run: str, images: str, out: str) -> None:
    """Write a task for each image of a run in the folder ``images``, those near a border of clusters first."""
    home = Path(images).resolve(strict=True)
    root = home.parent  # Label Studio refuses a storage that is its document root itself
    if root == Path(root.anchor):
        sys.exit(f"Label Studio would serve files of {root}: move {home} into a folder of its own")
    with (Path(run) / "clusters.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["status"] == "ok"]
    label_of = {row["cluster"]: row["name"] or f"cluster {row['cluster']}" for row in rows}
    labels = dict.fromkeys(label_of[cluster] for cluster in sorted(label_of, key=int))
    choice = {"from_name": "name", "to_name": "image", "type": "choices"}
    made = []
    for row in sorted(rows, key=lambda row: float(row["margin"])):
        file = (home / row["path"]).resolve()
        if not (file.is_relative_to(home) and file.is_file()):  # a run of somebody else may name any file
            print(f"left out, because it is no file in {home}: {row['path']!a}")
            continue
        data = {
            "image": "/data/local-files/?d=" + quote(os.fsencode(file.relative_to(root).as_posix())),
            "path": quote(os.fsencode(row["path"])),  # its bytes may be no text
            "clusters": [{"value": label} for label in labels],
        }
        result = {**choice, "value": {"choices": [label_of[row["cluster"]]]}}
        prediction = {"model_version": "deepcluster", "score": float(row["margin"]), "result": [result]}
        made.append({"data": data, "predictions": [prediction]})
    with Path(out).open("x") as file_of_tasks:
        json.dump(made, file_of_tasks)
    served = f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(str(root))}"
    print(f"{len(made)} tasks. Start: LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true {served} label-studio")
    print(f"Its users may see other files in {root}, depending on its version: keep nothing else there.")
    print(f"Local storage: {home}\nLabeling interface: {INTERFACE}")


def answers(export: str, out: str) -> None:
    """Write a table of path,name for `deepcluster teach` of all images about which the annotators agree."""
    names_of = defaultdict(set)
    for task in json.loads(Path(export).read_bytes()):
        path = os.fsdecode(unquote_to_bytes(task["data"]["path"]))
        for annotation in task["annotations"]:
            if not annotation.get("was_cancelled"):
                choices = (one["value"]["choices"] for one in annotation["result"] if one["from_name"] == "name")
                names_of[path].update(*choices)
    with Path(out).open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "name"])
        for path, names in names_of.items():
            if len(names) == 1:
                table.writerow([path, *names])
            elif names:
                print(f"left out, because its annotations differ: {path!a}")


if __name__ == "__main__":
    {"tasks": tasks, "answers": answers}[sys.argv[1]](*sys.argv[2:])
