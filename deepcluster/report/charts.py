"""Charts of the training by round, as SVG path data with their ticks.

Positions are in units of the plot, the origin at the top left; the templates draw.
"""

import math
from collections.abc import Sequence

from deepcluster.report.sections import Values
from deepcluster.storage.content import Row
from deepcluster.texts import figure, number, percent

WIDTH, HEIGHT = 264.0, 120.0
SHARES = {"changed", "cluster_weight", "largest_share"}  # columns shown as percentages
# Signs of how the training went: column of history.csv, title, top of the scale if it is fixed.
SERIES = (
    ("loss", "Loss", None),
    ("nmi_previous", "NMI to the previous round", 1.0),
    ("changed", "Images that changed pseudo-label", None),
    ("cluster_weight", "Share of the loss from pseudo-labels", 1.0),
    ("largest_share", "Largest pseudo-label's share", None),
    ("nmi_labels", "NMI to the labels", 1.0),
)


def training_charts(history: Sequence[Row]) -> list[Values]:
    """Return charts of those ``SERIES`` that have two values in the rows of history.csv.

    ``chance`` is a second line to compare with. A line has its ``path`` (SVG path data), its last point (``end``) and
    the value there (``last``) as text.
    """
    charts = []
    for name, title, top in SERIES:
        values = [number(row.get(name)) for row in history]
        if sum(value is not None for value in values) < 2:  # a dot is no line: the table has the number
            continue
        chance = [number(row.get("chance_loss")) for row in history] if name == "loss" else []
        high = top or ceiling(max(value for value in (*values, *chance) if value is not None))
        rounds = [round_for_people(row["round"]) for row in history]
        charts.append(
            {
                "title": title,
                "line": _line(values, high, share=name in SHARES),
                "chance": _line(chance, high, share=False) if any(chance) else None,
                "x_ticks": [
                    (_across(i, len(rounds)), rounds[i]) for i in sorted({0, (len(rounds) - 1) // 2, len(rounds) - 1})
                ],
                "y_ticks": [
                    (_down(value, high), f"{100 * value:g}%" if name in SHARES else f"{value:g}")
                    for value in (0.0, high / 2, high)
                ],
            }
        )
    return charts


def round_for_people(index: str) -> str:
    """Return a round's number for people, who count from 1 as the lines of a fit do; history.csv counts from 0."""
    return str(int(index) + 1) if index.isdecimal() else index


def _line(values: Sequence[float | None], high: float, *, share: bool) -> Values:
    i, value = [(i, value) for i, value in enumerate(values) if value is not None][-1]
    return {
        "path": curve(values, high),
        "end": (_across(i, len(values)), _down(value, high)),
        "last": percent(value) if share else figure(value),
    }


def curve(values: Sequence[float | None], high: float) -> str:
    """Return SVG path data of a series: 0 at the bottom, ``high`` at the top, the values evenly from left to right.

    None interrupts the line; a value between two gaps becomes a line of no length (a dot, with round line caps).
    """
    commands: list[str] = []
    for i, value in enumerate(values):
        if value is None:
            continue
        x, y = _across(i, len(values)), _down(value, high)
        begins = i == 0 or values[i - 1] is None
        ends = i + 1 == len(values) or values[i + 1] is None
        commands.append(f"{'M' if begins else 'L'}{x:g},{y:g}" + (" h0" if begins and ends else ""))
    return " ".join(commands)


def _across(i: float, count: int) -> float:
    """Return the i-th of ``count`` positions from the left end to the right one; a single one is in the middle."""
    return round(WIDTH * i / (count - 1) if count > 1 else WIDTH / 2, 1)


def _down(value: float, high: float) -> float:
    return round(HEIGHT * (1 - value / high), 1)


def ceiling(value: float) -> float:
    """Return a round number at or above ``value`` whose half is round too."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))
