"""The data of the page's script, as one JSON text that may be put inside HTML."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from deepcluster.groups.merge_tree import Tree
from deepcluster.groups.split import Parts
from deepcluster.report.sprite import columns, on_sheet, tile
from deepcluster.report.text import Row, bare, inert, number

NAMES = 600_000  # characters of file names, above which fewer images are in the page
STEPS = 65_535  # between the least and the greatest coordinate or distance


def script_data(
    *,
    run: str,
    cut: str,
    recut: str,
    clusters: Sequence[Row],
    summary: Sequence[Row],
    positions: npt.NDArray[np.float32] | None,
    tree: Tree | None,
    sheet: bytes = b"",
    similar: npt.NDArray[np.int64] | None = None,
    parts: Mapping[int, Parts] | None = None,
    part: npt.NDArray[np.int64] | None = None,
    originals: str = "",
) -> str:
    """The JSON. ``clusters`` are the usable rows, the ``positions`` those of the sheet; the rest as in ``RunData``."""
    across = columns(len(on_sheet(len(clusters))))
    chosen, every = on_page(clusters)
    value = {
        "run": run,
        "cut": cut,
        "recut": recut,
        "columns": across,
        "sheet": "data:image/webp;base64," + base64.b64encode(sheet).decode("ascii") if sheet else None,
        "originals": quote(originals, errors="surrogateescape") or None,
        "clusters": [_cluster(row, (parts or {}).get(int(row["cluster"]))) for row in summary],
        "images": {
            **_images(clusters, summary, chosen, every),
            "alike": 0 if similar is None else similar.shape[1],
            "similar": None if similar is None else _shorts(similar),
            "part": None if part is None else _shorts(part),
        }
        if chosen
        else None,
        "points": _points(positions[::every]) if positions is not None and chosen else None,
        "tree": _tree(tree, len(clusters)) if tree else None,
    }
    return harmless(json.dumps(value, separators=(",", ":"), allow_nan=False))


def harmless(text: str) -> str:
    """JSON in ASCII without HTML's special characters, so that no text in it can end the element around it."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _cluster(row: Row, parts: Parts | None) -> dict[str, Any]:
    return {
        "number": int(row["cluster"]),
        "name": inert(row["name"]) if row["name"] != row["cluster"] else "",
        "size": int(row["size"]),
        "distance": number(row["mean_distance"]),
        "nearest": int(row["nearest_cluster"]) if row["nearest_cluster"].isdecimal() else None,
        "junk": row.get("junk") == "1",
        "parts": {"sizes": parts.sizes, "images": parts.images, "merges": parts.merges} if parts else None,
    }


def on_page(clusters: Sequence[Row]) -> tuple[list[int], int]:
    """The rows whose images are in the page, every n-th of those with a picture on the sheet, and n."""
    rows = on_sheet(len(clusters))
    every = max(1, -(-sum(len(clusters[i]["path"]) for i in rows) // NAMES))
    return rows[::every], every


def _images(clusters: Sequence[Row], summary: Sequence[Row], chosen: Sequence[int], every: int) -> dict[str, Any]:
    """Columns of the images in the page, which are ``every`` pictures of the sheet, or ``step`` rows, apart."""
    rows = [clusters[i] for i in chosen]
    paths = [inert(bare(row["path"])).rpartition("/") for row in rows]
    folders = {folder: i for i, folder in enumerate(dict.fromkeys(folder + slash for folder, slash, _ in paths))}
    labels = {label: i for i, label in enumerate(sorted({row["label"] for row in rows}))}
    numbers = {row["cluster"]: i for i, row in enumerate(summary)}
    distances = np.array([number(row["distance"]) or 0.0 for row in rows])
    margins = np.array([number(row["margin"]) or 0.0 for row in rows])
    farthest = max(1e-9, float(distances.max()))
    return {
        "every": every,
        "step": chosen[1] if len(chosen) > 1 else 1,
        "distance": _packed(distances / farthest),
        "farthest": farthest,
        "margin": _packed(margins),
        "cluster": _shorts([numbers[row["cluster"]] for row in rows]),
        "outlier": [i for i, row in enumerate(rows) if row["is_outlier"] == "1"],
        "folder": _shorts([min(STEPS, folders[folder + slash]) for folder, slash, _ in paths]),
        "folders": list(folders),
        "names": [name for _, _, name in paths],
        "label": _shorts([min(STEPS, labels[row["label"]]) for row in rows]) if any(labels) else None,
        "labels": [inert(label) for label in labels],
    }


def _points(positions: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Where the images in the page are on the map."""
    corner, width = positions.min(0), max(1e-9, float(np.ptp(positions, axis=0).max()))
    x, y = ((positions - corner) / width).T
    return {"x": _packed(x), "y": _packed(y)}


def _tree(tree: Tree, images: int) -> Mapping[str, Any]:
    """``tiles`` are the positions of the nodes' medoids on the sheet, or -1."""
    return {
        "groups": tree.groups,
        "merges": tree.merges,
        "sizes": tree.sizes,
        "tiles": [tile(row, images) for row in tree.medoids],
    }


def _packed(shares: npt.NDArray[Any]) -> str:
    """Numbers from 0 to 1 as base64 of 16 bits each."""
    return _shorts(np.rint(np.clip(shares, 0, 1) * STEPS))


def _shorts(values: Any) -> str:
    return base64.b64encode(np.asarray(values).astype("<u2").tobytes()).decode("ascii")
