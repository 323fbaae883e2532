"""Draw figures of a run for a paper: the map, images of each cluster, and the curves of the rounds, as SVG files.

python examples/research/figures.py runs/photos -o figures
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from PIL import ImageOps

from deepcluster.runs.images import images_at_hand
from deepcluster.storage.run_folder import open_run

CLUSTERS, IMAGES, SIDE = 50, 10, 128  # the largest clusters, the images nearest to the centroid of each, px
CURVES = ("loss", "nmi_previous", "changed", "cluster_weight", "largest_share", "reseeded", "nmi_labels")
pyplot.rcParams |= {"svg.fonttype": "none", "text.parse_math": False, "font.size": 8}  # a name may have a dollar sign


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [*csv.DictReader(lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", help="place of the images, if they moved")
    parser.add_argument("-o", "--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    rows = [row for row in table(options.run / "clusters.csv") if row["status"] == "ok"]
    summary = sorted(table(options.run / "cluster_summary.csv"), key=lambda row: -int(row["size"]))[:CLUSTERS]
    positions = np.load(options.run / "map.npy")  # of every n-th image
    on_map = np.array([row["cluster"] for row in rows[:: -(-len(rows) // len(positions))]])
    figure, axis = pyplot.subplots(figsize=(8, 8), layout="tight")
    for row in summary:
        x, y = positions[on_map == row["cluster"]].T
        axis.scatter(x, -y, s=4, alpha=0.7)
        if len(x):
            axis.text(np.median(x), np.median(-y), row["name"] or row["cluster"], ha="center", weight="bold")
    axis.set(aspect="equal", xticks=[], yticks=[])
    figure.savefig(options.out / "map.svg")

    folder = open_run(options.run)
    source = images_at_hand(folder.read_images(), Path(options.images or folder.read_record().base))
    number = {path: i for i, path in enumerate(source.paths)} if source else {}
    size = (IMAGES, len(summary))
    figure, axes = pyplot.subplots(size[1], size[0], figsize=size, squeeze=False, layout="constrained")
    for row, line in zip(summary, axes, strict=True):
        members = [member for member in rows if member["cluster"] == row["cluster"] and member["path"] in number]
        members.sort(key=lambda member: float(member["distance"]))
        line[0].set_title(f"{row['name'] or row['cluster']} ({row['size']})", loc="left")
        for axis, member in zip(line, members, strict=False):
            axis.imshow(ImageOps.fit(source.read(number[member["path"]], SIDE), (SIDE, SIDE)))
        for axis in line:
            axis.axis("off")
    figure.savefig(options.out / "clusters.svg")

    history = table(options.run / "history.csv")
    curves = {name: [float(row[name] or "nan") for row in history] for name in CURVES if history and name in history[0]}
    curves = {name: values for name, values in curves.items() if np.isfinite(values).sum() > 1}
    if curves:
        figure, axes = pyplot.subplots(1, len(curves), figsize=(3 * len(curves), 2.5), squeeze=False, layout="tight")
        for axis, (name, values) in zip(axes[0], curves.items(), strict=True):
            axis.plot(range(1, len(values) + 1), values)
            axis.set(title=name, xlabel="round")
        figure.savefig(options.out / "training.svg")
    print(f"{options.out}: {', '.join(sorted(file.name for file in options.out.glob('*.svg')))}")


if __name__ == "__main__":
    main()
