"""The page is read as a browser reads it, with html.parser: what is not a tag there is inert."""

import base64
import hashlib
import json
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from deepcluster.errors import DiskError
from deepcluster.groups.tree import Tree
from deepcluster.report import pictures
from deepcluster.report.hints import above, hints, weighted_nouns
from deepcluster.report.page import on_page
from deepcluster.report.sections import suggestions
from deepcluster.storage.content import Table
from deepcluster.texts import inert
from tests.helpers.report import Page, drawn, page, picture, row, summary_of

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


def test_charts_of_the_page() -> None:
    _, parsed = page()
    assert len(parsed.all("path", class_="reference")) == 1  # the loss of chance
    assert parsed.all("figcaption")[-4][1] == "Loss 0"
    assert not page(history=[])[1].all("section", id="training")


@pytest.mark.parametrize(
    ("images", "length", "in_page", "size"), [(10_000, 150, 3334, 2_300_000), (20_000, 25, 20_000, 3_000_000)]
)
def test_a_full_page_stays_below_five_megabytes(monkeypatch, images, length, in_page, size):
    """The worst cases: every picture takes all the bytes that it may, with long names or with many."""
    monkeypatch.setattr(pictures, "thumbnail", lambda image, side, limit: bytes(limit))
    more = {"is_outlier": "1"}
    rows = [row(f"{'n' * length}{i:05}", i % 100, str(i), label=str(i % 100), **more) for i in range(images)]
    count = len(on_page(rows)[0])
    beside = {"similar": np.zeros((count, min(8, 80_000 // count)), np.int64), "part": np.zeros(count, np.int64)}
    text, parsed = page(clusters=rows, **drawn(images) | {"sheet": bytes(pictures.MAX_SHEET_BYTES)} | beside)
    assert (len(parsed.all("img")), count) == (1100, in_page)
    of_script = json.loads(parsed.all("script", id="data")[0][1])["images"]
    assert of_script["every"] == of_script["step"] == int(of_script["names"][1][-5:]) == -(-images // in_page)
    assert size < len(text.encode()) <= 5_000_000


def test_every_cluster_has_its_section_with_the_medoid_first_and_twice_as_large() -> None:
    _, parsed = page(picture=lambda path: Image.new("RGB", (300, 200)))
    assert sections(parsed) == ["cluster-0", "cluster-1"]
    items = [attributes["class"] for attributes, _ in parsed.all("li") if "class" in attributes]
    assert items == 2 * (["medoid"] + 8 * ["diverse"] + 4 * ["borderline"] + 4 * ["outlying"])
    images = [attributes for attributes, _ in parsed.all("img")]
    alts = [attributes["alt"] for attributes in images]
    assert alts[0] == "0/00.png" and alts[17] == "1/00.png" and len(set(alts)) == 34
    assert "cluster 1" in [text for _, text in parsed.all("a", href="#cluster-1")]
    data = [base64.b64decode(str(attributes["src"]).removeprefix("data:image/webp;base64,")) for attributes in images]
    assert Image.open(BytesIO(data[0])).width == 2 * Image.open(BytesIO(data[1])).width


def test_the_header_is_one_line_and_the_facts_stand_in_a_part_of_their_own() -> None:
    run = {"verdict": "Look.", "hostname": "canary", "command": "deepcluster fit 'my photos'"}
    for stability, shown in ((0.824, "0.82"), (-0.004, "0.00")):
        text, parsed = page(run=run | {"stability": stability})
        assert numbers(parsed.all("header")[0][1]) == ["40", "2"]  # no figure that reads as a grade
        assert parsed.all("a", class_="term", href="#word-stability")[0][1] == "2 clusters"
        assert shown in numbers(parsed.all("div", id="word-stability")[0][1])
        assert "Look." in parsed.all("ul", class_="told")[0][1]
        assert parsed.all("code")[1][1] == run["command"] and "canary" not in text  # known keys alone are shown
    _, parsed = page()
    assert numbers(parsed.all("dl", class_="facts")[0][1]) == ["1,797", "2", "62", "12345"]
    assert "3" in numbers(parsed.all("ul", class_="told")[0][1])  # rounds
    assert [text for _, text in parsed.all("title")] == ["Holidays · RUN"]


def test_metrics_stand_beside_the_untrained_network_and_every_word_that_is_underlined_is_explained() -> None:
    labelled = [row(f"{i}.png", i % 2, label="cat", is_outlier="1") for i in range(40)]
    metrics = {"nmi": 0.5, "acc": 0.8, "ari": 0.1, "ami": 0.2, "baseline_acc": 0.9, "nmi_average": "arithmetic"}
    _, parsed = page(clusters=labelled, metrics=metrics, **drawn(40))
    table = [text for _, text in parsed.all("tr")]
    assert {"Accuracy0.8000.900\u22120.100", "NMI (arithmetic mean)0.500\u2013\u2013"} < {*table}
    used = {str(attributes["href"]) for attributes, _ in parsed.all("a", class_="term")}
    explained = {f"#{attributes['id']}" for attributes, _ in parsed.all("div") if "id" in attributes}
    assert len(used) > 10 and used <= explained
    # Of many equal cards only the first one's words are stops of the Tab key.
    stops = [a["href"] for a, _ in parsed.all("a", class_="term") if "tabindex" not in a]
    assert stops.count("#word-medoid") == 1


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
    assert parsed.all("header")[0][1].split(" ", 1)[1] == "1 image · 1 cluster RUN"
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
    _, parsed = page(skipped=[{"path": f"s{i}.jpg", "reason": "truncated"} for i in range(1234)], history=[])
    assert len(parsed.all("tr")) == 201 and re.search(r"1,034 .*skipped\.csv", parsed.text())
    assert not parsed.all("path", class_="line") and "No round was trained" in parsed.text()


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
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|fetch|XMLHttp|sessionStorage", script
    )
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def named(name: str) -> tuple[str, Page]:
    """A page in which everything that may have a name has this one."""
    rows = [row(name, 0, label=name, name=name, is_outlier="1"), row(name + "2", 0, label=name), row("b.png", 1)]
    return page(
        run={"images": name, "command": name, "stopped_because": name, "cut": name},
        clusters=rows,
        summary=summary_of(rows, name=name, nearest_cluster=name),
        history=[{"round": name, "loss": "1", "chance_loss": name, name: name}],
        metrics={"acc": 0.5, name: 0.5, "nmi": 0.5, "nmi_average": name},
        skipped=[{"path": name, "reason": name}],
        duplicates=[{"group": name, "path": name, "distance": name}],
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


def test_files_of_different_runs_are_refused() -> None:
    with pytest.raises(DiskError, match=r"'b\.png'.*'7'.*cluster_summary"):
        page(clusters=[row("a.png"), row("b.png", 7)], summary=summary_of([row("a.png")]))
    with pytest.raises(DiskError, match="size 'many'"):
        page(clusters=[row("a.png")], summary=summary_of([row("a.png")], size="many"))


def test_largest_groups_first_by_the_image_in_their_middle() -> None:
    # Four pieces: 0 and 2 merge into node 4, 1 and 3 into 5, and both into 6.
    tree = Tree((0, 1, 0, 1), ((0, 2), (1, 3), (4, 5)), (5, 1, 3, 2, 8, 3, 11), (0, 6, 7, 9, 3, 10, 4))
    three, two = {"k": 3, "silhouette": 0.5, "stability": -0.01}, {"k": 2, "silhouette": 0.3}
    candidates = [three, two, {"k": 9}]  # the tree has no nine groups
    best, other = suggestions(candidates, tree, 11)
    assert (best["about"], best["groups"]) == ("silhouette 0.500, stability 0.00", [(8, 3), (2, 9), (1, 6)])
    assert (other["about"], other["groups"]) == ("silhouette 0.300", [(8, 3), (3, 10)])
    many = 2 * pictures.MAX_PICTURES
    assert suggestions([two], tree, many)[0]["groups"] == [(8, -1), (3, 5)]  # every second image has a picture


def test_the_page_shows_them_only_where_no_number_was_asked_for() -> None:
    run = {"candidates": [{"k": 3, "silhouette": 0.5}, {"k": 2, "silhouette": 0.25}]}
    both = ["3 clusters", "2 clusters"]
    for shown, groups in ((run, both), ({}, []), (run | {"edits": "0123"}, both)):
        text, parsed = page(run=shown, **drawn(40))
        assert text.count('<details class="plausible" open>') == (shown == run)  # folded after edits
        assert [text for _, text in parsed.all("b") if "clusters" in text] == groups
        assert "silhouette" not in parsed.all("section", id="clusters")[0][1]
        about = [text for _, text in parsed.all("div", id="word-plausible")]
        assert [text.count("clusters: silhouette") for text in about] == ([2] if groups else [])
        commands = [text for _, text in parsed.all("code")]
        assert ("deepcluster recut RUN -k 3" in commands) is bool(groups)
        assert "deepcluster recut RUN -k 2" not in commands  # it has two


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
    assert hinted(*[("tabby", 0.5)] * 5, *[("tiger cat", 0.4)] * 5, *[flat] * 10) == ["cat"]  # one plain word


def test_a_network_that_is_unsure_of_a_collection_hints_only_what_is_clear() -> None:
    nouns = [{"path": str(i), "noun": "daisy", "probability": str(p)} for i, p in enumerate([0.8, 0.0, 0.1])]
    assert weighted_nouns(nouns)["0"] == ("daisy", pytest.approx(0.24))
    assert weighted_nouns(nouns[:1])["0"] == ("daisy", pytest.approx(0.64))


def test_general_words_have_one_meaning() -> None:
    assert above("wine bottle") == ["bottle", "container"] and above("crane") == []
    assert above("moving van")[-1] == "vehicle" and above("no noun") == []
