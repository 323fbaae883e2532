"""From a folder of photographs to groups, in Python: fit, look at each group, place an image, cut again.

python examples/photographs.py photos/ [GROUPS] [ROUNDS]     makes runs/photographs
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import deepcluster
from deepcluster import results, run
from deepcluster.images.source import find
from deepcluster.images.store import read_once

RUN = Path("runs/photographs")


def main(photos: str, groups: int | None, rounds: int | None) -> None:
    # A pretrained network learns more from few photographs: {"backbone": "timm:resnet18", "weights": FILE}.
    options = {} if rounds is None else {"rounds": rounds}
    run.fit(photos, run.Request(out=RUN, n_clusters=groups, options=options, overwrite=True))

    # The tables of a run are for any tool; the report for a browser.
    with (RUN / "clusters.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    members = defaultdict(list)
    for row in sorted(rows, key=lambda row: float(row["margin"]), reverse=True):
        members[int(row["cluster"])].append(row)
    for cluster, found in sorted(members.items()):
        print(f"cluster {cluster}: {len(found)} images, the clearest is {found[0]['path']!a}")

    # The model places any image; for those that it was trained on it gives what clusters.csv says.
    model = deepcluster.load(RUN)
    first = rows[0]
    store = read_once(find([Path(photos) / first["path"]]), model.store_size)
    placed = model.place(model.transform(store.images))
    print(f"{first['path']!a} is in cluster {int(placed.cluster)}, and was in {first['cluster']}")

    results.recut(RUN, 2)
    print("clusters after a recut:", deepcluster.load(RUN).groups.count)


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[2:]]
    main(sys.argv[1], *numbers, *[None] * (2 - len(numbers)))
