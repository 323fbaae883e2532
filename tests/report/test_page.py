"""The page, read as a browser reads it: what is not a tag there is inert; its parts, and its languages."""

import base64
import hashlib
import json
import os
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

import deepcluster.report
from deepcluster.groups.cut import Cut
from deepcluster.groups.tree import Parts
from deepcluster.images import find
from deepcluster.report import pictures as sheets
from deepcluster.report.hints import above, everyday, hints, weighted_nouns
from deepcluster.report.page import on_page, script_data
from deepcluster.report.pictures import THUMBNAIL, pictures, sprite_sheet, thumbnail, tiny_pictures
from deepcluster.report.sections import MAX_OUTLIERS, problems, representatives
from deepcluster.runs import page as run_page
from deepcluster.runs.page import _near
from deepcluster.runs.recut import recut
from deepcluster.runs.views import report
from deepcluster.storage.content import Facts, Table
from deepcluster.texts import figure, inert
from tests.helpers.report import Page, drawn, page, picture, records, row, summary_of
from tests.helpers.runs import record
from tests.helpers.tiny import run_of, tiny_model

HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "\" onmouseover=\"alert(1)' onfocus='alert(1)' autofocus '.png",
    "</title></style></section><script>alert(1)</script>.png",
    "<!-- ]]> {{ 7 * 7 }}{% raw %} &lt;b&gt;&quot;.png",
    "javascript:alert(1)",
    "new\nline\ttab\x00\x1b[31m\x7f\x9b line\u2028end \u202egnp.exe",
    "日本語 émoji 👩\u200d🔬 caf\udce9 \ud83d.png",
]


def sections(parsed: Page) -> list[str | None]:
    return [attributes["id"] for attributes, _ in parsed.all("section", class_="cluster")]


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d.,]*(?<![.,])", text)


@pytest.mark.parametrize(
    ("images", "length", "in_page", "size"), [(10_000, 150, 3334, 2_300_000), (20_000, 25, 20_000, 3_000_000)]
)
def test_a_full_page_stays_below_five_megabytes(monkeypatch, images, length, in_page, size):
    """The worst cases: every picture takes all the bytes that it may, with long names or with many."""
    monkeypatch.setattr(sheets, "thumbnail", lambda image, side, limit: bytes(limit))
    more = {"is_outlier": "1"}
    rows = [row(f"{'n' * length}{i:05}", i % 100, str(i), label=str(i % 100), **more) for i in range(images)]
    count = len(on_page(rows)[0])
    beside = {"similar": np.zeros((count, min(8, 80_000 // count)), np.int64), "part": np.zeros(count, np.int64)}
    text, parsed = page(clusters=rows, **drawn(images) | {"sheet": bytes(sheets.MAX_SHEET_BYTES)} | beside)
    assert (len(parsed.all("img")), count) == (1200, in_page)
    of_script = json.loads(parsed.all("script", id="data")[0][1])["images"]
    assert of_script["step"] == int(of_script["names"][1][-5:]) == -(-images // in_page)
    assert size < len(text.encode()) <= 5_000_000


def test_every_cluster_has_its_section_with_one_row_of_pictures_by_typicality() -> None:
    _, parsed = page(picture=lambda path: Image.new("RGB", (300, 200)))
    assert sections(parsed) == ["cluster-0", "cluster-1"]
    items = [attributes["class"] for attributes, _ in parsed.all("li") if attributes.get("translate") == "no"]
    assert items == 2 * (9 * [""] + 3 * ["border"])
    alts = [attributes["alt"] for attributes, _ in parsed.all("img")]
    assert alts[:12] == [f"0/{i:02}.png" for i in (0, 1, 3, 5, 7, 10, 12, 14, 16, 17, 18, 19)]
    assert "cluster 1" in [text for _, text in parsed.all("a", href="#cluster-1")]


def test_the_header_is_one_line_and_the_facts_stand_in_a_part_of_their_own() -> None:
    run = {"base": "/home/canary", "command": "deepcluster fit 'my photos'"}
    text, parsed = page(run=run)
    assert numbers(parsed.all("header")[0][1]) == ["40", "2"]  # no figure that reads as a grade
    assert parsed.all("code")[1][1] == run["command"] and "canary" not in text  # known keys alone are shown
    _, parsed = page()
    assert numbers(parsed.all("dl", class_="facts")[0][1]) == ["40", "2", "62"]
    assert "3" in numbers(parsed.all("p", class_="told")[0][1])  # rounds
    assert [text for _, text in parsed.all("title")] == ["Holidays · RUN"]


def test_every_word_that_is_underlined_is_explained() -> None:
    _, parsed = page(clusters=[row(f"{i}.png", i % 2, is_outlier="1") for i in range(40)], **drawn(40))
    used = {str(attributes["href"]) for attributes, _ in parsed.all("a") if "#word-" in str(attributes.get("href"))}
    assert used == {"#word-borderline", "#word-map", "#word-outlier"}
    assert used <= {f"#{attributes['id']}" for attributes, _ in parsed.all("div") if "id" in attributes}


def test_clusters_of_one_name_are_one_kind() -> None:
    rows = [row(f"{i}.png", i) for i in range(3)]
    for names, head in (("abc", "3 kinds"), ("aab", "2 kinds · 3 clusters"), (["a", "1", "2"], "1 kind · 3 clusters")):
        summary = [cluster | {"name": name} for cluster, name in zip(summary_of(rows), names, strict=True)]
        assert page(clusters=rows, summary=summary)[1].all("p", id="counts")[0][1] == f"3 images · {head}"


def test_labels_and_outliers_of_a_cluster() -> None:
    labels = ["cat"] * 16 + ["dog"] * 3 + ["owl"] + ["", "", "", "", ""]
    rows = [row(f"{i}.png", label=label, is_outlier=str(int(i < 3))) for i, label in enumerate(labels)]
    skipped = row("bad.png") | {"status": "skipped", "cluster": "", "distance": "", "is_outlier": ""}
    _, parsed = page(clusters=[*rows, skipped], summary=summary_of(rows))
    # Of the 20 labelled ones; the owl is below a tenth.
    assert parsed.all("li", class_="labels")[0][1].endswith(" cat 80.0%, dog 15.0%")
    about = parsed.all("div", class_="about")[0][1]
    assert "25 images · 100.0%" in about and "3 outliers" in about and "nearest" not in about


def test_one_cluster_an_empty_one_and_none() -> None:
    _, parsed = page(clusters=[row("start" + "x" * 4000 + "end.png", margin="")])
    assert parsed.all("header")[0][1].split(" ", 1)[1].startswith("1 image · 1 cluster ")
    ((attributes, _),) = parsed.all("img")
    alt = str(attributes["alt"])
    assert len(alt) < 200 and alt.startswith("start") and alt.endswith("end.png") and " ... " in alt
    summary = [*summary_of([row("a.png")]), summary_of([row("b.png", 1)])[0] | {"size": "0", "medoid_path": ""}]
    _, parsed = page(clusters=[row("a.png")], summary=summary)
    assert sections(parsed) == ["cluster-0", "cluster-1"] and "No image." in parsed.text()
    assert sections(page(clusters=[], summary=[])[1]) == []


def test_the_largest_clusters_are_shown_in_order_of_their_numbers() -> None:
    # Of 102 clusters two have two images; of the others, all of one image, the first 98 are shown.
    sizes = [2 if c in (50, 101) else 1 for c in range(102)]
    rows = [row(f"{c}/{i}.png", c) for c, size in enumerate(sizes) for i in range(size)]
    _, parsed = page(clusters=rows, picture=lambda path: None)
    assert sections(parsed) == [f"cluster-{c}" for c in range(102) if c not in (99, 100)]
    assert numbers(parsed.all("p", class_="hidden-clusters")[0][1]) == ["100", "2", "2"]
    # Every link leads somewhere: the cluster nearest to 101, 100, is only named.
    targets = {attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes}
    assert {str(attributes["href"])[1:] for attributes, _ in parsed.all("a") if "href" in attributes} <= targets
    assert "cluster 100 " in parsed.text()


def test_the_page_lists_200_skipped_files_and_counts_the_rest() -> None:
    _, parsed = page(skipped=[{"path": f"s{i}.jpg", "reason": "truncated"} for i in range(1234)], run={"rounds": 0})
    assert len(parsed.all("tr")) == 201 and re.search(r"1,034 .*skipped\.csv", parsed.text())
    assert "not trained on these images" in parsed.text()


def test_the_page_is_self_contained() -> None:
    text, parsed = page(metrics={"acc": 1.0}, skipped=[{"path": "a", "reason": "b"}], **drawn(40))
    ((policy, _),) = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sources = f"default-src 'none'; img-src data: file:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    assert policy["content"] == sources
    assert [a for a, _ in parsed.all("script")] == [{}, {"type": "application/json", "id": "data"}]
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe", text.replace(allowed, ""))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|fetch|XMLHttp|Storage|cookie", script
    )
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def named(name: str) -> tuple[str, Page]:
    """A page in which everything that may have a name has this one."""
    rows = [row(name, 0, label=name, name=name, is_outlier="1"), row(name + "2", 0, label=name), row("b.png", 1)]
    return page(
        run={"images": name, "command": name, "stopped_because": name},
        facts=Facts(cut=name),
        clusters=rows,
        summary=summary_of(rows, name=name, nearest_cluster=name),
        metrics={"acc": 0.5, name: 0.5, "nmi": 0.5, "nmi_average": name},
        skipped=[{"path": name, "reason": name}],
        duplicates=[{"set": name, "path": name, "distance": name}],
        picture=lambda path: None if path == name else picture(path),
        name=name,
        **drawn(3),
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_inert(name: str) -> None:
    text, parsed = named(name)
    text.encode("utf-8")
    for _, attributes, _ in parsed.elements:
        assert str(attributes.get("href", "#")).startswith("#")
        assert re.fullmatch(r"data:image/webp;base64,[\w+/]+=*", attributes.get("src") or "data:image/webp;base64,AA==")
    # The very same elements as with a harmless name; and the name is there, to be read.
    elements, harmless = ([(tag, {*a}) for tag, a, _ in one.elements] for one in (parsed, named("plain.png")[1]))
    assert elements == harmless
    assert parsed.all("h1")[0][1] == " ".join(inert(name).split())
    skipped = parsed.all("table", class_="skipped")[0][1]
    assert skipped.removeprefix("FileReason ") == " ".join(f"{inert(name)}{inert(name)}".split())
    assert inert(name + "2") in [attributes["alt"] for attributes, _ in parsed.all("img")]
    assert [text for _, text in parsed.all("span", class_="tile")] == [" ".join(inert(name).split())]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
    # In what the script reads, too.
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert text.isascii() and not set("<>&") & set(text)
    data = json.loads(text)
    assert data["images"]["folders"][0] + data["images"]["names"][0] == data["clusters"][0]["name"] == inert(name)
    assert inert(name) in data["images"]["labels"]


def test_hints_are_of_the_typical_images_of_a_cluster() -> None:
    def hinted(*nouns: tuple[str, float], others: int = 0) -> list[str]:
        images = Table.of(row(str(i), distance=str(i)) for i in range(len(nouns) + others))
        return hints(images, {str(i): noun for i, noun in enumerate(nouns)})

    sure, other, third, flat = ("daisy", 0.9), ("bee", 1.0), ("vase", 0.1), ("daisy", 0.1)
    assert hinted(*[sure] * 20) == ["daisy", "flower"]
    assert hinted(*[sure] * 9, others=9) == []  # too few with a noun
    assert hinted(*[sure] * 10, *[other] * 10) == ["daisy", "flower"]  # the nearer half counts
    assert hinted(*[other] * 10, *[sure] * 10) == ["bee", "insect"]
    assert hinted(*[sure] * 5, *[other] * 5, *[third] * 10) == ["bee", "daisy"]  # nothing in common
    assert hinted(*[sure] * 8, *[third] * 2, *[third] * 10) == ["daisy", "flower"]
    pets = [*[("beagle", 0.2)] * 5, *[("Siamese cat", 0.2)] * 5]  # neither is clear, and the word above both is
    assert hinted(*pets, *[flat] * 10) == ["carnivore", "mammal"]
    assert hinted(*[flat] * 20) == []
    assert hinted(*[("tabby", 0.5)] * 5, *[("tiger cat", 0.4)] * 5, *[flat] * 10) == ["cat"]  # one everyday word


def test_a_network_that_is_unsure_of_a_collection_hints_only_what_is_clear() -> None:
    nouns = [{"path": str(i), "noun": "daisy", "probability": str(p)} for i, p in enumerate([0.8, 0.0, 0.1])]
    assert weighted_nouns(nouns)["0"] == ("daisy", pytest.approx(0.24))
    assert weighted_nouns(nouns[:1])["0"] == ("daisy", pytest.approx(0.64))


def test_general_words_have_one_meaning() -> None:
    assert above("wine bottle") == ["bottle", "container"] and above("crane") == []
    assert above("moving van")[-1] == "vehicle" and above("no noun") == []


# ---- the parts of the page: choice of images, curves and charts, thumbnails, data of the script ----------------------


def test_representatives_by_hand() -> None:
    # Distances 0..11; the margins make rows 3, 8 and 5 doubtful, in this order.
    margins = {3: "0.1", 8: "0.2", 5: "0.3"}
    rows = [row(str(i), 0, str(i), margins.get(i, "9")) for i in range(12)]
    chosen = [(r["path"], on_border) for r, on_border in representatives(rows[::-1], 8)]
    # 8 // 4 = 2 on the border (3, 8); of the others, 1 2 4 5 6 7 9 10 11, five: ranks 0, 2, 4, 6 and 8.
    assert chosen == [(path, path in "38") for path in ("0", "1", "3", "4", "6", "8", "9", "11")]
    # An outlier by its residual may lie near a centroid: of the least distance, it is the last one.
    outlier = [row(str(i), 0, str(i), is_outlier=str(int(i == 0))) for i in range(12)]
    assert [r["path"] for r, _ in representatives(outlier, 8)][::7] == ["1", "0"]
    # Without margins none is on the border, and a row without a distance is the farthest.
    chosen = [
        (r["path"], on_border)
        for r, on_border in representatives([row(str(i), 0, str(i or ""), "nan") for i in range(8)], 8)
    ]
    assert chosen == [(path, False) for path in "12345670"]
    assert representatives([], 4) == [] == representatives(rows, 0)
    two = [row("a", 0, "1"), row("b", 0, "2")]
    for medoid, order in (("b", ["b", "a"]), ("gone", ["a", "b"])):
        assert [r["path"] for r, _ in representatives(two, 5, medoid=medoid)] == order
    # An image that a person answered about is the face; one that she only saw is not.
    by_person = [row(path, 0, path, by=by) for path, by in (("1", ""), ("2", "checked"), ("3", "answer"))]
    assert [r["path"] for r, _ in representatives(by_person, 5, medoid="1")] == ["3", "1", "2"]


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
    picture = pictures(find(tmp_path), 2 * THUMBNAIL)
    read = picture("a.jpg")
    assert read is not None and read.size == (640, 480) and picture("b.jpg") is None
    shown, whole = (Image.open(BytesIO(thumbnail(one, 176, 10**6))).convert("RGB") for one in (read, image))
    assert shown.size == (176, 176) and np.abs(np.asarray(shown, int) - np.asarray(whole, int)).mean() < 2


def test_commands_and_links_of_a_page_are_relative(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is passed on: it says nothing of the folders above."""
    images = Path(record(run)["base"])
    monkeypatch.chdir(run.parent.parent)
    for folder, name in ((run.relative_to(run.parent.parent), f"{run.parent.name}/run"), (run, "run")):
        report(folder)
        text = (run / "report.html").read_text()
        (data,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
        assert f">deepcluster report {name} --serve --open<" in text
        assert json.loads(data)["originals"] == f"{os.path.relpath(images, run)}/"


def test_pictures_of_noise_keep_to_their_limits(monkeypatch: Any) -> None:
    """Nothing compresses worse; the limits are those of a full page."""
    noise = torch.randint(256, (10, 3, 200, 200), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise[0].permute(1, 2, 0).numpy())
    for side, limit in ((32, 1500), (88, 1500), (176, 6000)):
        assert len(thumbnail(image, side, limit)) <= limit < len(thumbnail(image, side, 10**6))
    monkeypatch.setattr(sheets, "MAX_SHEET_BYTES", 5000)
    assert len(sprite_sheet(tiny_pictures(noise[..., :40, :40], 0, len(noise)), len(noise))) <= 5000


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
    data: dict[str, Any] = json.loads(script_data(records(facts=Facts(cut="c"), clusters=clusters, **changes)))
    return data


def test_points_by_hand() -> None:
    # Cluster numbers may have gaps.
    rows = [row("/home/me/a/x.png", 3, "0.5", label="cat"), row("a/y.png", 7, "2"), row("z.png", 3, is_outlier="1")]
    rows[2]["distance"] = "nan"
    positions = np.array([[-1, 0], [3, 1], [1, 2]], dtype=np.float32)
    data = read(rows, positions=positions)
    images, points = data["images"], data["points"]
    assert (images["folders"], images["names"]) == ([".../", "a/", ""], ["x.png", "y.png", "z.png"])
    assert shorts(images["folder"]) == [0, 1, 2] and shorts(images["cluster"]) == [0, 1, 0]
    # The wider side goes from 0 to 65535, the other one with the same scale.
    assert shorts(points["x"]) == [0, 65535, 32768] and shorts(points["y"]) == [0, 16384, 32768]
    assert images["farthest"] == 2 and shorts(images["distance"]) == [16384, 65535, 0]
    assert images["outlier"] == [2] and images["step"] == 1
    assert images["labels"] == ["", "cat"] and shorts(images["label"]) == [1, 0, 0]
    nothing = read([], summary=[], positions=positions[:0])
    assert nothing["points"] is None and nothing["images"] is None
    alone = read([row("a.png")])
    assert alone["points"] is None and alone["images"]["names"] == ["a.png"] and alone["images"]["label"] is None


def test_clusters_and_links_by_hand() -> None:
    rows = [row(f"{i}.png", int(i > 1)) for i in range(4)]
    summary = summary_of(rows, name="beach", junk="1")
    summary[1] |= {"name": "1", "junk": "0", "nearest_cluster": "", "mean_distance": ""}
    parts = Parts(of_centroid=torch.tensor([0, 1, -1]), sizes=(1, 1), merges=((0, 1),), images=(1, 1))
    similar = np.array([[2, 1], [0, 2], [0, 1], [0, 1]])
    more = {"similar": similar, "part": np.array([1, 0, 0, 0]), "parts": {0: parts}, "near": {0: [1]}}
    more["originals"] = "../my photos/"
    data = read(rows, summary=summary, **drawn(4) | {"sheet": b""} | more)
    split = {"sizes": [1, 1], "images": [1, 1], "merges": [[0, 1]]}
    first = {"number": 0, "name": "beach", "size": 2, "near": [1], "junk": True, "parts": split}
    other = {"number": 1, "name": "", "near": [], "junk": False, "parts": None}
    assert data["clusters"] == [first, first | other]
    assert (data["cut"], data["sheet"]) == ("c", None)
    assert data["images"]["alike"] == 2 and shorts(data["images"]["similar"]) == similar.flatten().tolist()
    assert shorts(data["images"]["part"]) == [1, 0, 0, 0]
    assert data["originals"] == "../my%20photos/" and read(rows)["originals"] is None
    assert read(rows, originals="../caf\udce9 #1/")["originals"] == "../caf%E9%20%231/"


def test_the_most_alike_clusters_come_first() -> None:
    """At 0, 10 and 80 degrees, the first in two halves; numbers have gaps."""
    angles = torch.tensor([-5.0, 5.0, 10.0, 80.0]).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], 1)
    model = replace(tiny_model(("",) * 7, dims=2), cut=Cut(points, torch.tensor([0, 0, 5, 2])))
    assert _near(run_of(model, points)) == {0: [5, 2], 2: [5, 0], 5: [0, 2]}


def test_outliers_by_distance_and_duplicates_by_hand() -> None:
    rows = [row("a", 4, "1", is_outlier="1"), row("b", 5), row("c", 6, "3", is_outlier="1")]
    pairs = [("0", "b", "0"), ("0", "a", "0.02"), ("1", "c", "0"), ("1", "gone", "0.1")]
    alike = [dict(zip(("set", "path", "distance"), cells, strict=True)) for cells in pairs]
    shown = problems([], Table.of(rows), alike)
    assert [(it["path"], it["row"], it["cluster"]) for it in shown["outliers"]] == [("c", 2, "6"), ("a", 0, "4")]
    assert shown["outliers"][0]["about"] == "distance 3" and shown["count"] == 4
    assert (shown["sets_count"], shown["duplicates_count"]) == (2, 4)
    groups = [[(it["path"], it["row"], it["cluster"]) for it in group] for group, _ in shown["duplicates"]]
    assert groups == [[("b", 1, "5"), ("a", 0, "4")], [("c", 2, "6"), ("gone", -1, "")]]
    many = problems([], Table.of([row(str(i), is_outlier="1") for i in range(500)]), None)
    assert (len(many["outliers"]), many["outliers_count"]) == (MAX_OUTLIERS, 500) and many["duplicates"] is None


# ---- map, tree and thumbnails in the run folder: made when missing ---------------------------------------------------


def parts(run: Path) -> set[str]:
    return set(re.findall('class="part" id="(clusters|map|problems)"', (run / "report.html").read_text()))


def test_the_report_makes_map_and_tree_if_a_run_has_none(run: Path) -> None:
    before = {name: (run / name).read_bytes() for name in ("map.npy", "tree.json")}
    for name in (*before, "thumbnails.webp", "duplicates.csv"):
        (run / name).unlink()
    report(run)
    assert {name: (run / name).read_bytes() for name in before} == before  # made as the fit would have
    assert parts(run) == {"clusters", "map", "problems"}


def test_recut_draws_another_tree_and_keeps_the_map(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "map.npy").read_bytes()
    recut(run, 2)
    assert {*json.loads((run / "tree.json").read_text())["clusters"]} == {0, 1}
    assert (run / "map.npy").read_bytes() == before
    monkeypatch.setattr(run_page, "MAX_IN_TREE", 1)
    recut(run, 3)  # of very many groups there is no tree, nor the old one
    assert not (run / "tree.json").exists() and parts(run) == {"clusters", "map", "problems"}


# ---- languages: every phrase is in one file, in English and in Chinese -----------------------------------------------


TEMPLATES = Path(deepcluster.report.__file__).parent / "templates"
LANGUAGES = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (TEMPLATES / "phrases").glob("*.json")}
PHRASES = LANGUAGES["zh"]
HOLE = re.compile(r"\{\d\}")
SCRIPTS = "".join(re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL) for path in TEMPLATES.glob("*.js"))


def test_every_phrase_has_its_translation():
    script = (TEMPLATES / "report.js").read_text()
    for language, phrases in LANGUAGES.items():
        assert phrases.keys() >= PHRASES.keys() and f"{language}:\n//= phrases/{language}.json\n" in script
        for english, words in phrases.items():
            assert words.strip() and sorted(HOLE.findall(english)) == sorted(HOLE.findall(words)), english


def test_every_text_of_the_scripts_is_a_phrase():
    """A call of ``t`` names its phrase, and no other literal reads like a sentence."""
    calls = re.findall(r"""\bt\((?:[\w.= ]+ \? )?"([^"]+)"(?: : "([^"]+)")?""", SCRIPTS)
    said = {text for pair in calls for text in pair if text}
    several = {
        text: re.sub(r"(image|cluster|edit|file|answer)\b", r"\1s", text) for text in said
    }  # Chinese has no plural
    assert len(said) > 60 and all({one, many} & PHRASES.keys() for one, many in several.items())
    literals = [text for before, text in re.findall(r'(t\(|[?:] )?"([^"\n]*)"', SCRIPTS) if not before]
    sentences = [text for text in literals if re.search(r"[A-Za-z]{2,} [a-z]{2,}|^[A-Z][a-z]+[ …:.]", text)]
    assert [
        text
        for text in sentences
        if text not in PHRASES and not re.fullmatch(r"use strict|cluster made|quiet ends|[#.\[].*", text)
    ] == []


def test_each_file_of_the_script_says_what_it_takes_from_others():
    """A name is declared in the file that is named, and used."""
    files = {path.name: path.read_text() for path in TEMPLATES.glob("*.js")}
    for name, text in files.items():
        head = " ".join(re.findall(r"^//(?: takes:|  ) (.*)$", text, re.MULTILINE))
        taken = [
            (word, other) for words, other in re.findall(r"([^();]+) \((\w+\.js)\)", head) for word in words.split(",")
        ]
        assert taken or name == "report.js"
        for word, other in taken:
            word = re.escape(word.strip())
            declared = rf"^(?:(?:const|let) (?:.*, )?|(?:async )?function ){word}(?![\w$])"
            assert re.search(declared, files[other], re.MULTILINE), (name, word, other)
            assert len(re.findall(rf"(?<![\w$])(?<![\w)\]]\.){word}(?![\w$])", text)) > 1, (name, word)
    included = re.findall(r"^//[=+] (\w+\.js)$", files["report.js"], re.MULTILINE)
    assert sorted([*included, "report.js"]) == sorted(files)


def test_every_word_of_the_tables_can_be_a_hint():
    nouns = [str(label).split(",")[0] for label in ImageNetInfo().label_descriptions()]
    words = {word for noun in nouns for word in [noun, *above(noun)]}
    rare, chinese = (json.loads((TEMPLATES.parent / f"{name}_words.json").read_text()) for name in ("plain", "chinese"))
    assert rare.keys() <= words and chinese.keys() <= {everyday(word) for word in words}
