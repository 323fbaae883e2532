"""The curves over the number of groups, silhouette and stability, as SVG path data."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepcluster.groups.quality_by_k import Level
from deepcluster.report.charts import ceiling, curve

WIDTH, HEIGHT = 400.0, 110.0
MOST_TICKS = 8


@dataclass(frozen=True)
class Curve:
    """One curve from ``first`` to ``last`` groups, evenly from left to right. Ticks are (position, text)."""

    title: str
    first: int
    last: int
    path: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def curves(levels: Sequence[Level]) -> list[Curve]:
    """Silhouette and stability; none where fewer than two numbers of groups are possible."""
    if len(levels) < 2:
        return []
    return [
        _curve("Silhouette", levels, [level.silhouette for level in levels]),
        _curve("Stability", levels, [level.stability for level in levels]),
    ]


def _curve(title: str, levels: Sequence[Level], values: Sequence[float | None]) -> Curve:
    known = [value for value in values if value is not None]
    high = min(1.0, ceiling(max(known, default=1.0)))
    low = -ceiling(-min(known)) if min(known, default=0.0) < 0 else 0.0
    return Curve(
        title=title,
        first=levels[0].k,
        last=levels[-1].k,
        path=curve(
            [None if value is None else value - low for value in values], width=WIDTH, height=HEIGHT, high=high - low
        ),
        x_ticks=_ticks(levels[0].k, levels[-1].k),
        y_ticks=tuple(
            (round(HEIGHT * (high - value) / (high - low), 1), f"{value:.3g}".replace("-", "\u2212"))
            for value in sorted({low, 0.0, high / 2, high})
        ),
    )


def _ticks(first: int, last: int) -> tuple[tuple[float, str], ...]:
    """The ends, and round numbers between them that are not too near."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if (last - first) <= MOST_TICKS * step)
    between = [k for k in range(step, last, step) if first + step / 2 < k < last - step / 2]
    return tuple((round(WIDTH * (k - first) / (last - first), 1), str(k)) for k in (first, *between, last))
