"""Charts of the training by round, as SVG path data with their ticks.

Positions are in units of the plot, the origin at the top left; the templates draw.
"""

import math
from collections.abc import Callable, Mapping, Sequence

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
    ("reseeded", "Empty pseudo-labels that were reset", None),
    ("nmi_labels", "NMI to the labels", 1.0),
)


def training_charts(history: Sequence[Row]) -> list[Values]:
    """Return charts of those ``SERIES`` that have two values in the rows of history.csv.

    ``chance`` is a second line to compare with. A line has its ``path`` (SVG path data), its last point (``end``) and
    the value there (``last``) as text.
    """
    last = len(history) - 1
    charts = []
    for name, title, top in SERIES:
        values = _series(history, name)
        if len(values) < 2:  # a dot is no line
            continue
        chance = _series(history, "chance_loss") if name == "loss" else {}
        high = top or ceiling(max([*values.values(), *chance.values()]))
        charts.append(
            {
                "title": title,
                "line": _line(values, last, high, percent if name in SHARES else figure),
                "chance": _line(chance, last, high, figure) if chance else None,
                # People count rounds from 1, as the lines of a fit do.
                "x_ticks": [(_point(i, 0.0, last, high)[0], str(i + 1)) for i in sorted({0, last // 2, last})],
                "y_ticks": [
                    (_point(0, value, last, high)[1], f"{100 * value:g}%" if name in SHARES else f"{value:g}")
                    for value in (0.0, high / 2, high)
                ],
            }
        )
    return charts


def _series(history: Sequence[Row], name: str) -> dict[int, float]:
    cells = (number(row.get(name)) for row in history)
    return {i: value for i, value in enumerate(cells) if value is not None}


def _line(values: Mapping[int, float], last: int, high: float, text: Callable[[float], str]) -> Values:
    points = [_point(i, value, last, high) for i, value in values.items()]
    path = " ".join(f"{'L' if i else 'M'}{x:g},{y:g}" for i, (x, y) in enumerate(points))
    return {"path": path, "end": points[-1], "last": text(values[max(values)])}


def _point(i: int, value: float, last: int, high: float) -> tuple[float, float]:
    """Return the place of a value in round ``i``: ``last`` is at the right, 0 at the bottom, ``high`` at the top."""
    return round(WIDTH * i / last, 1), round(HEIGHT * (1 - value / high), 1)


def ceiling(value: float) -> float:
    """Return a round number at or above ``value`` whose half is round too."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))
