"""What the page's script works on, and the tables beside it: small cases by hand."""

import base64
import json
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepcluster.groups.tree import Parts
from deepcluster.report import page
from deepcluster.report import pictures as sheets
from deepcluster.report.page import RunData, on_page, script_data
from deepcluster.report.pictures import columns, on_sheet, sprite_sheet, tile, tiny_pictures
from deepcluster.report.sections import MAX_OUTLIERS, confusion, problems
from deepcluster.storage.content import Table
from tests.helpers.report import drawn, picture, row, summary_of


def shorts(text: str) -> list[int]:
    return np.frombuffer(base64.b64decode(text), "<u2").tolist()


def read(clusters: list[dict[str, str]], **changes: Any) -> dict[str, Any]:
    records = {"title": "", "run": {"run": "r", "cut": "c"}, "history": [], "metrics": None, "skipped": []}
    changes = changes if "summary" in changes else {"summary": summary_of(clusters)} | changes
    data: dict[str, Any] = json.loads(
        script_data(RunData(clusters=clusters, picture=picture, name="run", **records | changes))
    )
    return data


# The data


def test_points_by_hand() -> None:
    rows = [
        row("/home/me/a/x.png", 0, "0.5", label="cat"),
        row("a/y.png", 1, "2"),
        row("z.png", 0, "1", is_outlier="1"),
    ]
    summary = [each | {"cluster": str(4 * int(each["cluster"]) + 3)} for each in summary_of(rows)]
    rows = [each | {"cluster": str(4 * int(each["cluster"]) + 3)} for each in rows]  # numbers with gaps: 3 and 7
    positions = np.array([[-1, 0], [3, 1], [1, 2]], dtype=np.float32)
    found = read(rows, summary=summary, positions=positions)
    images, points = found["images"], found["points"]
    assert (images["folders"], images["names"]) == ([".../", "a/", ""], ["x.png", "y.png", "z.png"])
    assert shorts(images["folder"]) == [0, 1, 2] and shorts(images["cluster"]) == [0, 1, 0]
    # The wider side goes from 0 to 65535, the other one with the same scale.
    assert shorts(points["x"]) == [0, 65535, 32768] and shorts(points["y"]) == [0, 16384, 32768]
    assert images["farthest"] == 2 and shorts(images["distance"]) == [16384, 65535, 32768]
    assert images["outlier"] == [2] and images["every"] == images["step"] == 1
    assert images["labels"] == ["", "cat"] and shorts(images["label"]) == [1, 0, 0]
    assert read([row("a.png")], positions=positions[:1])["images"]["label"] is None
    nothing = read([], summary=[], positions=positions[:0])
    assert nothing["points"] is None and nothing["images"] is None
    assert read([row("a.png")])["points"] is None and read([row("a.png")])["images"]["names"] == ["a.png"]


def test_clusters_and_tree_by_hand() -> None:
    rows = [row(f"{i}.png", int(i > 1)) for i in range(4)]
    summary = summary_of(rows, name="beach", junk="1")
    summary[1] |= {"name": "1", "junk": "0", "nearest_cluster": "", "mean_distance": ""}
    found = read(rows, summary=summary, **drawn(4) | {"sheet": b""})
    assert found["clusters"] == [
        {"number": 0, "name": "beach", "size": 2, "distance": 1.5, "nearest": 1, "junk": True, "parts": None},
        {"number": 1, "name": "", "size": 2, "distance": None, "nearest": None, "junk": False, "parts": None},
    ]
    assert found["tree"] == {
        "groups": [0, 0, 1], "merges": [[0, 1], [3, 2]], "sizes": [1, 1, 2, 2, 4], "tiles": [0, 1, 2, 0, 2],
    }  # fmt: skip
    assert (found["cut"], found["recut"], found["sheet"]) == ("c", "deepcluster recut run -k ", None)


def test_what_is_like_an_image_and_what_a_cluster_splits_into_by_hand() -> None:
    rows = [row("a#1/x.png", 0), row("y.png", 1), row("z.png", 0)]
    parts = Parts(of_centroid=torch.tensor([0, 1, -1]), sizes=(1, 1), merges=((0, 1),), images=(1, 1))
    similar = np.array([[2, 1], [0, 2], [0, 1]])
    found = read(rows, similar=similar, parts={0: parts}, part=np.array([1, 0, 0]), originals="../my photos/")
    assert found["images"]["alike"] == 2 and shorts(found["images"]["similar"]) == similar.flatten().tolist()
    assert shorts(found["images"]["part"]) == [1, 0, 0]
    assert [each["parts"] for each in found["clusters"]] == [
        {"sizes": [1, 1], "images": [1, 1], "merges": [[0, 1]]},
        None,
    ]
    assert found["originals"] == "../my%20photos/" and read(rows)["originals"] is None
    assert read(rows, originals="../caf\udce9 #1/")["originals"] == "../caf%E9%20%231/"


def test_odd_distances_are_none() -> None:
    rows = [row("a", distance="nan"), row("b", distance="")]
    found = read(rows, summary=summary_of([row("a")]), positions=np.zeros((2, 2), np.float32))
    assert shorts(found["images"]["distance"]) == [0, 0] and shorts(found["points"]["x"]) == [0, 0]


def test_long_names_make_the_images_fewer(monkeypatch: Any) -> None:
    monkeypatch.setattr(page, "MAX_NAMES", 100)
    rows = [row("n" * 20 + str(i)) for i in range(10)]  # 210 characters: every third
    assert on_page(rows) == ([0, 3, 6, 9], 3)
    images = read(rows)["images"]
    assert [name[-1] for name in images["names"]] == ["0", "3", "6", "9"]
    assert images["every"] == images["step"] == 3


# The sheet


def test_a_sheet_by_hand() -> None:
    colours = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 0, 0]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(-1, -1, 20, 20)
    with Image.open(BytesIO(sprite_sheet(tiny_pictures(images, 0, len(images))))) as picture:
        assert (picture.format, picture.size) == ("WEBP", (60, 40))  # 3 beside each other
        assert not picture.info.keys() & {"exif", "icc_profile", "xmp"}
        seen = picture.convert("RGB")
    for i, colour in enumerate(colours.tolist()):
        found = seen.getpixel((i % 3 * 20 + 10, i // 3 * 20 + 10))
        assert max(abs(a - b) for a, b in zip(found, colour, strict=True)) < 16


def test_a_sheet_has_a_place_for_each_of_many(monkeypatch: Any) -> None:
    monkeypatch.setattr(sheets, "MAX_PICTURES", 10)
    assert on_sheet(10) == list(range(10)) and on_sheet(25) == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert [tile(i, 25) for i in (0, 1, 3, 24)] == [0, -1, 1, 8] and columns(9) == 3 and columns(10) == 4
    noise = torch.randint(256, (10, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    monkeypatch.setattr(sheets, "BYTES", 5000)
    assert len(sprite_sheet(tiny_pictures(noise, 0, len(noise)))) <= 5000


# Confusion


def test_confusion_by_hand() -> None:
    pairs = [("cat", 1)] * 3 + [("cat", 0)] + [("dog", 0)] * 3 + [("", 0)] * 9
    found = confusion(Table.of([row(str(i), cluster, label=label) for i, (label, cluster) in enumerate(pairs)]))
    assert found is not None and found["clusters"] == ["1", "0"] and found["hidden"] == 0
    assert found["rows"] == [("cat", 4, ((3, 0.75), (1, 0.25))), ("dog", 3, ((0, 0.0), (3, 1.0)))]
    assert confusion(Table.of([row("a")])) is None


def test_confusion_of_many_labels_and_clusters() -> None:
    rows = [row(f"{i}", i % 40, label=f"{i % 50:02}") for i in range(2000)]
    found = confusion(Table.of(rows))
    assert found is not None and len(found["rows"]) == len(found["clusters"]) == 30
    shown = sum(count for _, _, cells in found["rows"] for count, _ in cells)
    assert found["hidden"] == 2000 - shown > 0


# Problems


def test_outliers_come_by_distance() -> None:
    rows = [row("a", 0, "1", is_outlier="1"), row("b"), row("c", 2, "3", is_outlier="1")]
    found = problems([], Table.of(rows), None)
    assert [(it["path"], it["tile"], it["cluster"]) for it in found["outliers"]] == [("c", 2, "2"), ("a", 0, "0")]
    assert found["outliers"][0]["about"] == "distance 3" and found["count"] == 2 and found["duplicates"] is None
    many = problems([], Table.of([row(str(i), is_outlier="1") for i in range(500)]), None)
    assert (len(many["outliers"]), many["outliers_count"]) == (MAX_OUTLIERS, 500)


def test_duplicates_by_hand() -> None:
    pairs = [("0", "b", "0"), ("0", "a", "0.02"), ("1", "c", "0"), ("1", "gone", "0.1")]
    alike = [dict(zip(("group", "path", "distance"), cells, strict=True)) for cells in pairs]
    found = problems([], Table.of([row("a", 4), row("b", 5), row("c", 6)]), alike)
    assert (found["groups_count"], found["duplicates_count"], found["count"]) == (2, 4, 2)
    assert [[(it["path"], it["tile"], it["cluster"]) for it in group] for group, _ in found["duplicates"]] == [
        [("b", 1, "5"), ("a", 0, "4")],
        [("c", 2, "6"), ("gone", -1, "")],
    ]
