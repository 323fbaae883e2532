"""The charts of the training: series over the rounds as SVG path data, with their ticks.

Positions are in units of the plot (``PLOT_WIDTH`` x ``PLOT_HEIGHT``, the origin at the top left); the template draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepcluster.report.text import Row, figure, number, percent

PLOT_WIDTH, PLOT_HEIGHT = 264.0, 120.0
SHARES = {"changed", "cluster_weight", "largest_share"}  # columns shown as percentages
# What tells whether the training went well: column of history.csv, title, top of the scale where it is fixed.
SERIES = (
    ("loss", "Loss", None),
    ("nmi_previous", "NMI to the previous round", 1.0),
    ("changed", "Images that changed pseudo-label", None),
    ("cluster_weight", "Share of the loss from pseudo-labels", 1.0),
    ("largest_share", "Largest pseudo-label's share", None),
    ("nmi_labels", "NMI to the labels", 1.0),
)


@dataclass(frozen=True)
class Line:
    """One line of a chart: ``path`` is SVG path data, ``end`` its last point and ``last`` the value there, as text."""

    path: str
    end: tuple[float, float]
    last: str


@dataclass(frozen=True)
class Chart:
    """A series over the rounds; ``chance`` is a second line to compare with. Ticks are (position, text)."""

    title: str
    line: Line
    chance: Line | None
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def charts(history: Sequence[Row]) -> list[Chart]:
    """A chart for every one of ``SERIES`` that has a value."""
    drawn = []
    for name, title, top in SERIES:
        values = [number(row.get(name)) for row in history]
        if all(value is None for value in values):
            continue
        chance = [number(row.get("chance_loss")) for row in history] if name == "loss" else []
        high = top or ceiling(max(value for value in (*values, *chance) if value is not None))
        drawn.append(
            Chart(
                title=title,
                line=_line(values, high, share=name in SHARES),
                chance=_line(chance, high, share=False) if any(chance) else None,
                x_ticks=_round_ticks([row["round"] for row in history]),
                y_ticks=_value_ticks(high, share=name in SHARES),
            )
        )
    return drawn


def curve(values: Sequence[float | None], *, width: float, height: float, high: float) -> str:
    """SVG path data of a series: 0 at the bottom, ``high`` at the top, the values evenly from left to right.

    None interrupts the line; a value between two gaps becomes a line of no length (a dot, with round line caps).
    """
    steps: list[str] = []
    for i, value in enumerate(values):
        if value is None:
            continue
        x, y = _across(i, len(values), width), _down(value, high, height)
        begins = i == 0 or values[i - 1] is None
        ends = i + 1 == len(values) or values[i + 1] is None
        steps.append(f"{'M' if begins else 'L'}{x:g},{y:g}" + (" h0" if begins and ends else ""))
    return " ".join(steps)


def _line(values: Sequence[float | None], high: float, *, share: bool) -> Line:
    i, value = [(i, value) for i, value in enumerate(values) if value is not None][-1]
    return Line(
        path=curve(values, width=PLOT_WIDTH, height=PLOT_HEIGHT, high=high),
        end=(_across(i, len(values), PLOT_WIDTH), _down(value, high, PLOT_HEIGHT)),
        last=percent(value) if share else figure(value),
    )


def _across(i: int, count: int, width: float) -> float:
    return round(width * i / (count - 1) if count > 1 else width / 2, 1)


def _down(value: float, high: float, height: float) -> float:
    return round(height * (1 - value / high), 1)


def _round_ticks(rounds: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """The first, the middle and the last round."""
    places = sorted({0, (len(rounds) - 1) // 2, len(rounds) - 1})
    return tuple((_across(i, len(rounds), PLOT_WIDTH), rounds[i]) for i in places)


def _value_ticks(high: float, *, share: bool) -> tuple[tuple[float, str], ...]:
    """Nothing, half and all of the scale."""
    values = (0.0, high / 2, high)
    return tuple((_down(value, high, PLOT_HEIGHT), f"{100 * value:g}%" if share else f"{value:g}") for value in values)


def ceiling(value: float) -> float:
    """A round number at or above ``value`` whose half is round too."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))
