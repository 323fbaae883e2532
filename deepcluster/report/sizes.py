"""Histograms of the sizes of clusters, in the units of ``curves.py``: a collapse shows as one bar far from the rest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deepcluster.report.charts import PLOT_HEIGHT, PLOT_WIDTH, ceiling
from deepcluster.report.text import Row, figure

BARS = 20  # at most
# Column of clusters.csv, title.
COUNTED = (("fine_cluster", "Sizes of the fine clusters"), ("cluster", "Sizes of the clusters"))


@dataclass(frozen=True)
class Histogram:
    """How many clusters (up) have how many images (across). ``path`` is SVG path data, a closed figure for each bar;
    ``even``: where the mean of all sizes is, and what it is. Ticks are (position, text)."""

    title: str
    count: int
    path: str
    even: tuple[float, str]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def histograms(clusters: Sequence[Row]) -> list[Histogram]:
    """Those of the fine clusters and of the clusters that have images, from the usable rows of clusters.csv."""
    sizes = {title: [*Counter(row[column] for row in clusters).values()] for column, title in COUNTED}
    return [histogram(title, each) for title, each in sizes.items() if len(each) > 1]


def histogram(title: str, sizes: Sequence[int]) -> Histogram:
    """Bars of one whole width, the first from 0 on; at most ``BARS`` of them."""
    width = next(w for i in range(10) for w in (10**i, 2 * 10**i, 5 * 10**i) if max(sizes) < BARS * w)
    counts = Counter(size // width for size in sizes)
    bars = max(counts) + 1
    high = int(max(2, ceiling(max(counts.values()))))
    bottom = f"{PLOT_HEIGHT:g}"
    path = " ".join(
        f"M{_across(bar, bars)},{bottom} V{_down(counts[bar], high)} H{_across(bar + 1, bars)} V{bottom} Z"
        for bar in range(bars)
        if counts[bar]
    )
    levels = (0, high // 2, high) if high % 2 == 0 else (0, high)
    mean = sum(sizes) / len(sizes)
    return Histogram(
        title=title,
        count=len(sizes),
        path=path,
        even=(_across(mean / width, bars), figure(mean)),
        x_ticks=tuple((_across(bar, bars), f"{bar * width:,}") for bar in sorted({0, bars // 2, bars})),
        y_ticks=tuple((_down(value, high), f"{value:,}") for value in levels),
    )


def _across(bar: float, bars: int) -> float:
    return round(PLOT_WIDTH * bar / bars, 1)


def _down(count: int, high: int) -> float:
    return round(PLOT_HEIGHT * (1 - count / high), 1)
