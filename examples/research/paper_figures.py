"""Draw the paper's figures 2, 3 and 4 from a run: what the rounds change, the first filters, and what excites the last.

Figure 2 needs ``history.csv``: (a) the NMI of the pseudo-labels with the true labels, if the run had ``--labels``;
(b) their NMI with those of the round before; (c) with ``--clusters``, a CSV of K and a quality, quality against K.
Figure 3: the filters of the first convolution. Figure 4: for some channels of the last feature maps, the images
with the largest mean response. The paper's figures also have synthetic images.

python examples/research/paper_figures.py RUN cifar10/train -o docs/figures --clusters docs/figures/clusters.csv
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib
import torch
from linear import layers_of, maps_at
from matplotlib import pyplot
from PIL import Image
from torch import Tensor, nn

import deepcluster
from deepcluster.images import find, read_once

IMAGES = 3  # figure 4 shows IMAGES x IMAGES of a channel, as the paper does
FILTER_SIDE, IMAGE_SIDE = 48, 64  # px of the pictures
GAP = 6  # px between filters, and between the images of two channels


def column(file: Path, name: str) -> dict[float, float]:
    """Return a column of a CSV by the values of its first column: the mean of the rows with the same one.

    Empty cells are left out, and a missing column has no values.
    """
    values = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row.get(name):
                values[float(next(iter(row.values())))].append(float(row[name]))
    return {key: sum(numbers) / len(numbers) for key, numbers in sorted(values.items())}


def figure_2(history: Path, clusters: Path | None, file: Path) -> None:
    """Draw the NMI of each round, with the labels and with the round before, and the quality against K."""
    rounds = "rounds of training"
    panels = [
        ("(a) NMI with the labels", rounds, column(history, "nmi_labels")),
        ("(b) NMI with the round before", rounds, column(history, "nmi_previous")),
    ]
    if clusters:
        name = clusters.read_text(encoding="utf-8").splitlines()[0].split(",")[1]
        panels.append((f"(c) {name}", "number of pseudo-labels K", column(clusters, name)))
    panels = [panel for panel in panels if panel[2]]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.6), squeeze=False, layout="tight")
    for axis, (title, label, values) in zip(axes[0], panels, strict=True):
        axis.plot([*values], [*values.values()], ".-")
        axis.set(title=title, xlabel=label, xscale="linear" if label == rounds else "log")
        axis.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})


def tiled(pictures: Tensor, columns: int, gap: int) -> Tensor:
    """Return N x 3 x H x W pictures side by side, row by row, on white: 3 x height x width."""
    rows = -(-len(pictures) // columns)
    _, _, height, width = pictures.shape
    sheet = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def save(picture: Tensor, file: Path) -> None:
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, quality=80)


def first_filters(network: nn.Module) -> Tensor:
    """Return the filters of the first convolution that learns, each from black to white: N x 3 x S x S, uint8.

    Filters of other than three channels, as after the Sobel filter, are shown in grey by their mean.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    filters = next(module.weight for module in convolutions if module.weight.requires_grad).detach()
    if filters.shape[1] != 3:
        filters = filters.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = filters.amin((1, 2, 3), keepdim=True), filters.amax((1, 2, 3), keepdim=True)
    return (255 * (filters - low) / (high - low).clamp(min=1e-12)).round().to(torch.uint8)


def most_exciting(network: nn.Module, images: Tensor, channels: int, batch_size: int) -> Tensor:
    """Return the numbers of the images with the largest mean response of evenly spaced channels: channels x 9."""
    last = [*layers_of(network).values()][-1]
    table = torch.cat([maps_at(network, last, batch / 255).mean((2, 3)) for batch in images.split(batch_size)])
    chosen = torch.linspace(0, table.shape[1] - 1, channels).round().long()
    return table[:, chosen].topk(IMAGES**2, 0).indices.T


def enlarged(pictures: Tensor, side: int, mode: str) -> Tensor:
    """Return N x 3 x S x S uint8 pictures at another side."""
    return nn.functional.interpolate(pictures.float(), (side, side), mode=mode).round().clamp(0, 255).to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", help="images of figure 4, usually those of the fit")
    parser.add_argument("--clusters", type=Path, help="CSV for figure 2c: K, then the quality that its header names")
    parser.add_argument("--channels", type=int, default=8, help="number of channels in figure 4")
    parser.add_argument("-o", "--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    small = {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Arial"]}  # text in place of its outlines
    matplotlib.rcParams |= small | {"svg.hashsalt": "deepcluster", "font.size": 9, "axes.titlesize": 9}

    figure_2(options.run / "history.csv", options.clusters, options.out / "figure-2.svg")

    model = deepcluster.load(options.run)
    network = model.network.eval()
    filters = enlarged(first_filters(network), FILTER_SIDE, "nearest")
    save(tiled(filters, max(8, round(len(filters) ** 0.5)), GAP), options.out / "figure-3.png")

    images = read_once(find(options.images), model.store_size).images
    chosen = most_exciting(network, images, options.channels, model.batch_size)
    blocks = [tiled(enlarged(images[numbers], IMAGE_SIDE, "bicubic"), IMAGES, 0) for numbers in chosen]
    save(tiled(torch.stack(blocks), 4, GAP), options.out / "figure-4.webp")
    print(f"{options.out}: figures 2, 3 and 4 of {len(images)} images")


if __name__ == "__main__":
    main()
