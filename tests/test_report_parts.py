"""What the report page is made of: the choice of images, curves and charts, thumbnails, and names that do no harm."""

import base64
import json
import os
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.cli import run_command
from deepcluster.groups.cut import Cut
from deepcluster.groups.tree import Parts
from deepcluster.images import find
from deepcluster.report import pictures as sheets
from deepcluster.report.charts import training_charts
from deepcluster.report.figures import figures
from deepcluster.report.page import RunData, script_data
from deepcluster.report.pictures import THUMBNAIL, pictures, sprite_sheet, thumbnail, tiny_pictures
from deepcluster.report.sections import MAX_OUTLIERS, MEDOID, confusion, problems, representatives
from deepcluster.runs.page import Shown, _near, report
from deepcluster.storage.content import RunRecord, Table
from deepcluster.texts import figure, inert
from tests.drawings import drawings
from tests.helpers.report import drawn, picture, records, row, summary_of
from tests.tiny import tiny_model


def test_representatives_by_hand() -> None:
    # Distances 0..11; the margins make rows 3, 8 and 5 doubtful, in this order.
    margins = {3: "0.1", 8: "0.2", 5: "0.3"}
    rows = [row(str(i), 0, str(i), margins.get(i, "9")) for i in range(12)]
    chosen = [(r["path"], kind) for r, kind in representatives(rows[::-1], 8)]
    # 8 // 4 = 2 borderline (3, 8) and 2 outlying (11, 10); of the rest, 1 2 4 5 6 7 9, three: ranks 0, 2 and 4.
    assert chosen == [
        ("0", "medoid"), ("1", "diverse"), ("4", "diverse"), ("6", "diverse"), ("3", "borderline"), ("8", "borderline"),
        ("11", "outlying"), ("10", "outlying"),
    ]  # fmt: skip
    # An outlier by its residual may lie near a centroid: of the least distance, it is neither medoid nor diverse.
    outlier = [row(str(i), 0, str(i), is_outlier=str(int(i == 0))) for i in range(12)]
    kinds = {r["path"]: kind for r, kind in representatives(outlier, 8)}
    assert (kinds["0"], kinds["1"]) == ("outlying", "medoid")
    # Without margins none is borderline, and a row without a distance is the farthest.
    kinds = {r["path"]: kind for r, kind in representatives([row(str(i), 0, str(i or ""), "nan") for i in range(8)], 8)}
    assert "borderline" not in kinds.values()
    assert (kinds["1"], kinds["0"], kinds["7"]) == ("medoid", "outlying", "outlying")
    assert representatives([], 4) == [] == representatives(rows, 0)
    two = [row("a", 0, "1"), row("b", 0, "2")]
    for medoid, order in (("b", ["b", "a"]), ("gone", ["a", "b"])):
        assert [r["path"] for r, _ in representatives(two, 5, medoid=medoid)] == order


def test_a_chart_for_every_series_that_is_a_line() -> None:
    history = [
        {"round": "0", "loss": "nan", "chance_loss": "", "changed": "", "largest_share": "0.5", "nmi_labels": "0.25"},
        {"round": "1", "loss": "inf", "chance_loss": "2", "changed": "1", "largest_share": "", "nmi_labels": "0.5"},
        {"round": "2", "loss": "inf", "chance_loss": "2", "changed": "", "largest_share": "0.25", "nmi_labels": ""},
    ]
    share, nmi = training_charts(history)
    assert (share["line"]["last"], nmi["line"]["last"]) == ("25.0%", "0.500")
    # A line over a gap, and one that ends: from left to right, 0 at the bottom.
    assert (share["line"]["path"], nmi["line"]["path"]) == ("M0,0 L264,60", "M0,90 L132,60")
    assert [text for _, text in share["y_ticks"]] == ["0%", "25%", "50%"]
    assert [text for _, text in nmi["x_ticks"]] == ["1", "2", "3"]
    assert training_charts([]) == []


@pytest.mark.parametrize("size", [(60, 20), (1, 1), (1, 3000), (88, 89)])
def test_thumbnail_is_the_central_square_and_pixels_alone(size: tuple[int, int]) -> None:
    side = min(88, *size)
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    across, down = (size[0] - side) // 2, (size[1] - side) // 2
    pixels[down : down + side, across : across + side] = (0, 255, 0)
    whole = Image.fromarray(pixels)
    whole.info |= {"icc_profile": b"canary", "exif": b"canary", "xmp": b"canary"}
    made = thumbnail(whole, 88, 10**6)
    image = Image.open(BytesIO(made))
    assert image.size == (side, side) and b"canary" not in made
    inside = np.asarray(image.convert("RGB"), int)[2:-2, 2:-2]
    assert np.abs(inside - (0, 255, 0)).max(initial=0) < 16


def test_pictures_are_read_no_larger_than_the_page_shows_them(tmp_path: Path) -> None:
    y, x = np.mgrid[:960, :1280] // 5
    image = Image.fromarray(np.stack([x, y, (x + y) // 2], 2).astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=95)
    picture = pictures(find(tmp_path), MEDOID * THUMBNAIL)
    read = picture("a.jpg")
    assert read is not None and read.size == (640, 480) and picture("b.jpg") is None
    shown, whole = (Image.open(BytesIO(thumbnail(one, 176, 10**6))).convert("RGB") for one in (read, image))
    assert shown.size == (176, 176) and np.abs(np.asarray(shown, int) - np.asarray(whole, int)).mean() < 2


def elements(svg: str) -> list[ElementTree.Element]:
    return [*ElementTree.fromstring(svg).iter()]


def tagged(svg: str, tag: str) -> list[ElementTree.Element]:
    return [element for element in elements(svg) if element.tag.endswith(f"}}{tag}")]


def test_figures_by_hand() -> None:
    name = "<b>&\"\x00\u202e'\udcff"
    rows = [row(f"{i}.png", min(i, 1)) for i in range(15)]
    about = {"clusters": rows, "summary": summary_of(rows, name=name)}
    about["picture"] = lambda path: None if path == "0.png" else picture(path)
    drawn = figures(records(**about, positions=np.array([[i, i % 3] for i in range(15)], np.float32)))
    assert {*drawn} == {"map.svg", "clusters.svg", "training.svg"}
    large, small = (path.attrib["d"] for path in tagged(drawn["map.svg"], "path"))
    assert large.count("M") == 14 and small == "M0.0,0.0h0"
    assert [text.text for text in tagged(drawn["map.svg"], "text")] == [inert(name)] * 2
    assert [text.text for text in tagged(drawn["clusters.svg"], "text")] == [
        inert(name),
        "14 images",
        inert(name),
        "1 image",
    ]
    assert len(tagged(drawn["clusters.svg"], "image")) == 10  # of 10 + 1, one is not at hand
    assert len(tagged(drawn["training.svg"], "circle")) == 4
    one = [row("a.png")]
    summary = [*summary_of(one), *summary_of([row("b.png", 1)], size="0")]  # a cluster without images
    drawn = figures(records(clusters=one, summary=summary, history=[], positions=np.zeros((1, 2), np.float32)))
    assert {*drawn} == {"map.svg", "clusters.svg"} and all(map(elements, drawn.values()))


def test_figures_of_a_run(run: Path, tmp_path: Path, ends: Any) -> None:
    assert run_command(["report", str(run), "--figures", str(tmp_path / "figures")]) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"map.svg", "clusters.svg"}
    assert ends(["report", run, "--figures", tmp_path / "figures"], 5).endswith("give another --figures\n")
    jpeg = tagged((tmp_path / "figures/clusters.svg").read_text(), "image")[0].attrib["href"].partition("base64,")[2]
    assert Image.open(BytesIO(base64.b64decode(jpeg))).size == (128, 128)


def test_commands_and_links_of_a_page_are_relative(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is passed on: it says nothing of the folders above."""
    images = Path(json.loads((run / "run.json").read_text())["location"])
    monkeypatch.chdir(run.parent.parent)
    for folder, name in ((run.relative_to(run.parent.parent), f"{run.parent.name}/run"), (run, "run")):
        report(folder)
        (data,) = re.findall(r'id="data">(.*?)</script>', (run / "report.html").read_text(), re.DOTALL)
        assert json.loads(data)["recut"] == f"deepcluster recut {name} -k "
        assert json.loads(data)["originals"] == f"{os.path.relpath(images, run)}/"


def test_pictures_of_noise_keep_to_their_limits(monkeypatch: Any) -> None:
    """Nothing compresses worse; the limits are those of a full page."""
    noise = torch.randint(256, (10, 3, 200, 200), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise[0].permute(1, 2, 0).numpy())
    assert all(len(thumbnail(image, side, limit)) <= limit for side, limit in ((32, 1500), (88, 1500), (176, 6000)))
    monkeypatch.setattr(sheets, "MAX_SHEET_BYTES", 5000)
    assert len(sprite_sheet(tiny_pictures(noise[..., :40, :40], 0, len(noise)))) <= 5000


def test_inert_names_and_figures() -> None:
    names = {"caf\udce9": r"caf\udce9", "\ud83d": r"\ud83d", "a\nb\x00\x9b": r"a\nb\x00\x9b"}
    names |= {"\u202ea": r"\u202ea", "a\U000e0041": r"a\U000e0041"}
    assert {name: inert(name) for name in names} == names
    fine = "Bildschirmfoto 10.15\u202fPM\u3000é 👩\u200d🔬"
    assert inert(fine) == fine
    shown = {2.0: "2", 1234567.8: "1,234,568", 0.123456: "0.123", 0.00001234: "1.2e-05", -0.5: "-0.500"}
    assert {value: figure(value) for value in shown} == shown


def shorts(text: str) -> list[int]:
    return np.frombuffer(base64.b64decode(text), "<u2").tolist()


def read(clusters: list[dict[str, str]], **changes: Any) -> dict[str, Any]:
    record = RunRecord(run="r", cut="c", images="", location="", seed=0)
    records = {"record": record, "history": [], "metrics": {}, "skipped": []}
    changes = changes if "summary" in changes else {"summary": summary_of(clusters)} | changes
    data: dict[str, Any] = json.loads(
        script_data(RunData(clusters=clusters, picture=picture, name="run", **records | changes))
    )
    return data


def test_points_by_hand() -> None:
    # Cluster numbers may have gaps.
    rows = [row("/home/me/a/x.png", 3, "0.5", label="cat"), row("a/y.png", 7, "2"), row("z.png", 3, is_outlier="1")]
    rows[2]["distance"] = "nan"
    positions = np.array([[-1, 0], [3, 1], [1, 2]], dtype=np.float32)
    found = read(rows, positions=positions)
    images, points = found["images"], found["points"]
    assert (images["folders"], images["names"]) == ([".../", "a/", ""], ["x.png", "y.png", "z.png"])
    assert shorts(images["folder"]) == [0, 1, 2] and shorts(images["cluster"]) == [0, 1, 0]
    # The wider side goes from 0 to 65535, the other one with the same scale.
    assert shorts(points["x"]) == [0, 65535, 32768] and shorts(points["y"]) == [0, 16384, 32768]
    assert images["farthest"] == 2 and shorts(images["distance"]) == [16384, 65535, 0]
    assert images["outlier"] == [2] and images["every"] == images["step"] == 1
    assert images["labels"] == ["", "cat"] and shorts(images["label"]) == [1, 0, 0]
    nothing = read([], summary=[], positions=positions[:0])
    assert nothing["points"] is None and nothing["images"] is None
    alone = read([row("a.png")])
    assert alone["points"] is None and alone["images"]["names"] == ["a.png"] and alone["images"]["label"] is None


def test_clusters_tree_and_links_by_hand() -> None:
    rows = [row(f"{i}.png", int(i > 1)) for i in range(4)]
    summary = summary_of(rows, name="beach", junk="1")
    summary[1] |= {"name": "1", "junk": "0", "nearest_cluster": "", "mean_distance": ""}
    parts = Parts(of_centroid=torch.tensor([0, 1, -1]), sizes=(1, 1), merges=((0, 1),), images=(1, 1))
    similar = np.array([[2, 1], [0, 2], [0, 1], [0, 1]])
    more = {"similar": similar, "part": np.array([1, 0, 0, 0]), "parts": {0: parts}, "near": {0: [1]}}
    more["originals"] = "../my photos/"
    found = read(rows, summary=summary, **drawn(4) | {"sheet": b""} | more)
    split = {"sizes": [1, 1], "images": [1, 1], "merges": [[0, 1]]}
    first = {"number": 0, "name": "beach", "size": 2, "distance": 1.5, "near": [1], "junk": True, "parts": split}
    other = {"number": 1, "name": "", "distance": None, "near": [], "junk": False, "parts": None}
    assert found["clusters"] == [first, first | other]
    assert found["tree"] == {
        "groups": [0, 0, 1], "merges": [[0, 1], [3, 2]], "sizes": [1, 1, 2, 2, 4], "medoids": [0, 1, 2, 0, 2],
    }  # fmt: skip
    assert (found["cut"], found["recut"], found["sheet"]) == ("c", "deepcluster recut run -k ", None)
    assert found["images"]["alike"] == 2 and shorts(found["images"]["similar"]) == similar.flatten().tolist()
    assert shorts(found["images"]["part"]) == [1, 0, 0, 0]
    assert found["originals"] == "../my%20photos/" and read(rows)["originals"] is None
    assert read(rows, originals="../caf\udce9 #1/")["originals"] == "../caf%E9%20%231/"


def test_the_most_alike_clusters_come_first() -> None:
    """At 0, 10 and 80 degrees, the first in two halves; numbers have gaps."""
    angles = torch.tensor([-5.0, 5.0, 10.0, 80.0]).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], 1)
    model = replace(tiny_model(("",) * 7), cut=Cut(points, torch.tensor([0, 0, 5, 2])))
    counts = torch.ones(4, dtype=torch.int64)
    assert _near(Shown(model, points, torch.arange(4), counts, counts)) == {0: [5, 2], 2: [5, 0], 5: [0, 2]}


def test_a_sheet_is_pixels_alone() -> None:
    with Image.open(BytesIO(sprite_sheet(tiny_pictures(drawings(2)[0][:5], 0, 5)))) as picture:
        assert (picture.format, picture.size) == ("WEBP", (72, 48))  # 3 beside each other
        assert not picture.info.keys() & {"exif", "icc_profile", "xmp"}


def test_confusion_by_hand() -> None:
    pairs = [("cat", 1)] * 3 + [("cat", 0)] + [("dog", 0)] * 3 + [("", 0)] * 9
    found = confusion(Table.of([row(str(i), cluster, label=label) for i, (label, cluster) in enumerate(pairs)]))
    assert found is not None and found["clusters"] == ["1", "0"] and found["hidden"] == 0
    assert found["rows"] == [("cat", 4, [3, 1]), ("dog", 3, [0, 3])]
    assert confusion(Table.of([row("a")])) is None
    many = confusion(Table.of([row(f"{i}", i % 40, label=f"{i % 50:02}") for i in range(2000)]))
    assert many is not None and len(many["rows"]) == len(many["clusters"]) == 30
    assert many["hidden"] == 2000 - sum(sum(counts) for _, _, counts in many["rows"]) > 0


def test_outliers_by_distance_and_duplicates_by_hand() -> None:
    rows = [row("a", 4, "1", is_outlier="1"), row("b", 5), row("c", 6, "3", is_outlier="1")]
    pairs = [("0", "b", "0"), ("0", "a", "0.02"), ("1", "c", "0"), ("1", "gone", "0.1")]
    alike = [dict(zip(("group", "path", "distance"), cells, strict=True)) for cells in pairs]
    found = problems([], Table.of(rows), alike)
    assert [(it["path"], it["tile"], it["cluster"]) for it in found["outliers"]] == [("c", 2, "6"), ("a", 0, "4")]
    assert found["outliers"][0]["about"] == "distance 3" and found["count"] == 4
    assert (found["groups_count"], found["duplicates_count"]) == (2, 4)
    groups = [[(it["path"], it["tile"], it["cluster"]) for it in group] for group, _ in found["duplicates"]]
    assert groups == [[("b", 1, "5"), ("a", 0, "4")], [("c", 2, "6"), ("gone", -1, "")]]
    many = problems([], Table.of([row(str(i), is_outlier="1") for i in range(500)]), None)
    assert (len(many["outliers"]), many["outliers_count"]) == (MAX_OUTLIERS, 500) and many["duplicates"] is None
