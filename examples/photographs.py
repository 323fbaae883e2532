"""From a folder of photographs to groups, in Python: fit, look at each group, place an image, cut again.

python examples/photographs.py photos/ [RUN] [ROUNDS]
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import deepcluster
from deepcluster import run
from deepcluster.images.source import find
from deepcluster.images.store import read_once


def main(photos: str, folder: str, rounds: str | None) -> None:
    # A pretrained network learns more from few photographs: options={"backbone": "timm:resnet18", "weights": FILE}.
    options = {} if rounds is None else {"rounds": int(rounds)}
    made = run.fit(photos, run.Request(out=Path(folder), n_clusters=3, options=options, overwrite=True))

    with (made.path / "clusters.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: float(row["margin"]), reverse=True):
        groups[int(row["cluster"])].append(row)
    for number, members in sorted(groups.items()):
        print(f"cluster {number}: {len(members)} images, most typical {members[0]['path']!a}")

    # The model places any image; for those it was trained on it gives what clusters.csv says.
    model = deepcluster.load(folder)
    one = [Path(photos) / rows[0]["path"]]
    placed = model.place(model.transform(read_once(find(one), model.store_size).images))
    print(f"{rows[0]['path']!a} is in cluster {int(placed.cluster[0])}, and was in {rows[0]['cluster']}")

    run.recut(made.path, 2)
    print("two groups instead:", (made.path / "cluster_summary.csv").read_text(encoding="utf-8").count("\n") - 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "runs/photographs", (sys.argv[3:] or [None])[0])
