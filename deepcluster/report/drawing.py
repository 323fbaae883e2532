"""The charts of the report as PNG pictures, for slides and papers: the same SVG path data, drawn by Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from deepcluster.report.charts import PLOT_HEIGHT, PLOT_WIDTH, Chart
from deepcluster.report.sizes import Histogram

SCALE = 2  # px of a unit
PANEL, ORIGIN = (336, 200), (48, 32)  # of a chart and its plot, in units
ACROSS = 3  # charts beside each other
INK, QUIET, GRID, LINE = "#222222", "#666666", "#dddddd", "#234f75"

Point = tuple[float, float]


@dataclass(frozen=True)
class _Panel:
    title: str
    below: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[tuple[str, str], ...] = ()  # path, colour
    bars: str = ""


def curves_png(charts: Sequence[Chart]) -> bytes:
    """The charts over the rounds; the loss with its chance level in grey."""
    return _png(
        [
            _Panel(
                f"{chart.title}: {chart.line.last}" + (f" (chance {chart.chance.last})" if chart.chance else ""),
                "round",
                chart.x_ticks,
                chart.y_ticks,
                lines=(*([(chart.chance.path, QUIET)] if chart.chance else []), (chart.line.path, LINE)),
            )
            for chart in charts
        ]
    )


def sizes_png(histograms: Sequence[Histogram]) -> bytes:
    """The histograms, their means in grey."""
    return _png(
        [
            _Panel(
                f"{each.title}: {each.count:,}, mean {each.even[1]}",
                "images",
                each.x_ticks,
                each.y_ticks,
                lines=((f"M{each.even[0]},0 L{each.even[0]},{PLOT_HEIGHT:g}", QUIET),),
                bars=each.path,
            )
            for each in histograms
        ]
    )


def figures(path: str) -> list[list[Point]]:
    """The points of each figure of SVG path data, of the commands that the charts use (M, L, H, V, h0, Z)."""
    found: list[list[Point]] = []
    for step in path.split():
        kind, numbers = step[0], [float(each) for each in step[1:].split(",") if each]
        x, y = found[-1][-1] if found else (0.0, 0.0)
        if kind == "M":
            found.append([(numbers[0], numbers[1])])
        elif kind == "Z":
            found[-1].append(found[-1][0])
        elif kind == "L":
            found[-1].append((numbers[0], numbers[1]))
        elif kind == "V":
            found[-1].append((x, numbers[0]))
        else:
            found[-1].append((numbers[0] + (x if kind == "h" else 0), y))
    return found


def _png(panels: Sequence[_Panel]) -> bytes:
    across = max(1, min(ACROSS, len(panels)))
    width, height = (SCALE * side for side in PANEL)
    image = Image.new("RGB", (across * width, -(-len(panels) // across) * height), "white")
    draw = ImageDraw.Draw(image)
    for i, panel in enumerate(panels):
        _draw(draw, panel, i % across * width, i // across * height)
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw(draw: ImageDraw.ImageDraw, panel: _Panel, left: int, top: int) -> None:
    font, title = (ImageFont.load_default(size * SCALE) for size in (10, 12))

    def at(x: float, y: float) -> Point:
        return left + SCALE * (ORIGIN[0] + x), top + SCALE * (ORIGIN[1] + y)

    draw.text(at(0, -10), panel.title, INK, title, anchor="ls")
    for y, text in panel.y_ticks:
        draw.line([at(0, y), at(PLOT_WIDTH, y)], GRID, SCALE)
        draw.text(at(-6, y), text, QUIET, font, anchor="rm")
    for x, text in panel.x_ticks:
        draw.text(at(x, PLOT_HEIGHT + 14), text, QUIET, font, anchor="ms")
    draw.text(at(PLOT_WIDTH / 2, PLOT_HEIGHT + 28), panel.below, QUIET, font, anchor="ms")
    for bar in figures(panel.bars):
        draw.polygon([at(*point) for point in bar], LINE, "white")
    for path, colour in panel.lines:
        for points in figures(path):
            places = [at(*point) for point in points]
            draw.line(places, colour, 2 * SCALE, joint="curve")
            if len(set(places)) == 1:  # a dot
                draw.circle(places[0], 2 * SCALE, colour)
