"""Figures of a run as SVG files, for papers: map, pictures of the clusters, curves of the rounds."""

import base64
import colorsys
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from deepcluster import texts
from deepcluster.report import sections
from deepcluster.report.charts import HEIGHT, WIDTH, training_charts
from deepcluster.report.page import RunData, templates
from deepcluster.report.pictures import on_sheet
from deepcluster.report.sections import Values

MAP_WIDTH = 640
MAX_CLUSTERS = 50  # with pictures, or with a name on the map
PICTURES = 10  # of a cluster
SIDE = 64  # of a picture, half of the pixels that it has


def figures(data: RunData) -> dict[str, str]:
    """Return the SVG texts of ``map``, ``clusters`` and ``training``, if the run has data for them."""
    parts: dict[str, Values] = {"clusters": {"rows": [*_rows(data)], "pictures": PICTURES, "side": SIDE}}
    if charts := training_charts(data.history):
        parts["training"] = {"charts": charts, "width": WIDTH, "height": HEIGHT}
    if data.positions is not None and len(data.positions):
        width = max(1e-9, float(np.ptp(data.positions, axis=0).max()))
        points = (data.positions - data.positions.min(0)) * (MAP_WIDTH / width)
        dot = min(8, max(2, 160 / len(points) ** 0.5))
        parts["map"] = {
            "layers": [*_layers(data, points)],
            "width": MAP_WIDTH,
            "height": points[:, 1].max(),
            "dot": dot,
        }
    template = templates().get_template("figures.svg.j2")
    empty = dict.fromkeys(("map", "clusters"))
    return {f"{name}.svg": template.render(**empty | {name: part}) for name, part in parts.items()}


def _layers(data: RunData, points: npt.NDArray[np.float32]) -> Iterator[Values]:
    """Yield the points of each cluster on the map as SVG path data, with a colour and a place for the name."""
    on_map = data.usable.column("cluster")[on_sheet(len(data.usable))]
    for rank, row in enumerate(sections.by_size(data.summary)):
        mine = points[on_map == row["cluster"]]
        red, green, blue = colorsys.hls_to_rgb(rank * 0.618 % 1, (0.42, 0.6)[rank // 13 % 2], 0.6)  # 0.618: far apart
        yield {
            "name": row["name"] or row["cluster"],
            "colour": "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue)),
            "path": "".join(f"M{x:.1f},{y:.1f}h0" for x, y in mine),
            "place": np.median(mine, axis=0).round(1).tolist() if len(mine) > 0 and rank < MAX_CLUSTERS else None,
        }


def _rows(data: RunData) -> Iterator[Values]:
    """Yield the largest clusters, each with its representative images: (path, JPEG or "")."""
    largest = sections.by_size(data.summary)[:MAX_CLUSTERS]
    members = sections.members_of(largest, data.usable)
    for row in largest:
        chosen = sections.representatives(members[row["cluster"]], PICTURES, medoid=row["medoid_path"])
        images = ((texts.short(member["path"], texts.MAX_NAME), data.picture(member["path"])) for member, _ in chosen)
        yield {
            "number": row["cluster"],
            "name": row["name"],
            "size": texts.plural(int(row["size"]), "image"),
            "tiles": [(path, "" if image is None else _jpeg(image)) for path, image in images],
        }


def _jpeg(image: Image.Image) -> str:
    """Return the central square as the address of a JPEG, which programs for drawings know, unlike WebP."""
    square = ImageOps.fit(image.convert("RGB"), (2 * SIDE, 2 * SIDE))
    Image.frombytes("RGB", square.size, square.tobytes()).save(file := BytesIO(), "JPEG", quality=85)  # pixels alone
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
