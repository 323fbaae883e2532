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
from deepcluster.report import pictures
from deepcluster.report.page import on_page
from deepcluster.report.text import inert
from tests.helpers.report import VOID, Page, drawn, page, picture, row, summary_of

TAGS = VOID | {
    *("html", "head", "title", "style", "body", "header", "main", "nav", "section", "h1", "h2", "h3", "p", "ul", "li"),
    *("dl", "dt", "dd", "div", "span", "strong", "a", "code", "figure", "figcaption", "details", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "svg", "g", "line", "path", "text", "circle"),
    *("script", "noscript", "button", "label", "select", "option", "fieldset", "legend", "canvas", "output", "ol"),
    *("dialog", "form", "kbd", "h4"),
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "id", "class", "href", "src", "alt", "title", "decoding"),
    *("style", "scope", "open", "aria-label", "role", "viewbox", "transform", "x", "y", "x1", "x2", "y1", "y2"),
    *("d", "cx", "cy", "r", "text-anchor", "hidden", "type", "value", "for", "min", "max", "step", "checked"),
    *("placeholder", "autocomplete", "method", "visibility", "aria-hidden", "aria-pressed", "aria-labelledby"),
    *("data-number", "data-act", "data-tile", "data-image", "data-ticked", "tabindex", "target", "rel"),
}
HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    '" onmouseover="alert(1).png',
    "' onfocus='alert(1)' autofocus '.png",
    "</title></style></section><script>alert(1)</script>.png",
    "<!--.png",
    "]]>.png",
    "{{ 7 * 7 }}{% raw %}.png",
    "&lt;b&gt;&quot;.png",
    "javascript:alert(1)",
    "https://example.org/x.png",
    "caf\udce9.png",
    "\ud83d.png",
    "new\nline\ttab\x00\x1b[31m\x7f\x9b.png",
    "\u202egnp.exe",
    "line\u2028end.png",
    "日本語 émoji 👩\u200d🔬.png",
]


def sections(parsed: Page) -> list[str | None]:
    return [attributes["id"] for attributes, _ in parsed.all("section", class_="cluster")]


def images_of(parsed: Page) -> list[Image.Image]:
    found: list[Image.Image] = []
    for attributes, _ in parsed.all("img"):
        head, data = str(attributes["src"]).split(",")
        assert head == "data:image/webp;base64"
        found.append(Image.open(BytesIO(base64.b64decode(data, validate=True))))
    return found


def test_charts_of_the_page() -> None:
    _, parsed = page()
    assert [attributes["d"] for attributes, _ in parsed.all("path", class_="reference")] == ["M0,28 L132,28 L264,28"]
    labels = [str(attributes["aria-label"]) for attributes, _ in parsed.all("svg")]
    assert labels[0] == "Loss by round, 0 in the last; chance, ln K = 2.30"
    assert labels[2] == "Images that changed pseudo-label by round, 20.0% in the last"
    assert labels[4:] == [
        f"Sizes of the {kind}: 2 with images, 20 each in the mean" for kind in ("fine clusters", "clusters")
    ]
    texts = [text for _, text in parsed.all("text")]
    assert texts[:7] == ["0", "1.5", "3", "1", "2", "3", "round"]


@pytest.mark.parametrize(
    ("images", "length", "in_page", "size"), [(10_000, 150, 3334, 2_300_000), (20_000, 25, 20_000, 3_000_000)]
)
def test_a_full_page_stays_below_five_megabytes(
    monkeypatch: pytest.MonkeyPatch, images: int, length: int, in_page: int, size: int
) -> None:
    """The worst cases: every picture takes all the bytes that it may, with long names or with many."""
    monkeypatch.setattr(pictures, "thumbnail", lambda image, side, limit: bytes(limit))
    rows = [
        row(f"{'n' * length}{i:05}", i % 100, distance=str(i), label=str(i % 100), is_outlier="1")
        for i in range(images)
    ]
    count = len(on_page(rows)[0])
    beside = {"similar": np.zeros((count, min(8, 80_000 // count)), np.int64), "part": np.zeros(count, np.int64)}
    text, parsed = page(clusters=rows, **drawn(images) | {"sheet": bytes(pictures.BYTES)} | beside)
    assert (len(parsed.all("img")), count) == (1100, in_page)
    assert size < len(text.encode()) <= 5_000_000


# The page


def test_every_cluster_has_its_section_with_the_medoid_first() -> None:
    _, parsed = page(picture=lambda path: Image.new("RGB", (300, 200)))
    assert sections(parsed) == ["cluster-0", "cluster-1"]
    items = [attributes["class"] for attributes, _ in parsed.all("li") if "class" in attributes]
    assert items == 2 * (["medoid"] + 8 * ["diverse"] + 4 * ["borderline"] + 4 * ["outlying"])
    alts = [attributes["alt"] for attributes, _ in parsed.all("img")]
    assert alts[0] == "0/00.png" and alts[17] == "1/00.png" and len(set(alts)) == 34
    assert alts[9:13] == ["0/19.png", "0/18.png", "0/17.png", "0/16.png"]  # of the smallest margin
    assert alts[13:17] == ["0/15.png", "0/14.png", "0/13.png", "0/12.png"]  # the farthest of the others
    assert [text for _, text in parsed.all("figcaption")][:4] == ["typical", "various", "on the border", "unusual"]
    assert "cluster 1" in [text for _, text in parsed.all("a", href="#cluster-1")]
    # Nothing but the medoid is drawn at double size.
    assert len(parsed.all("figure", class_="one")) == 2
    pictures = images_of(parsed)
    assert pictures[0].width == 2 * pictures[1].width and {each.format for each in pictures} == {"WEBP"}


def test_the_header_is_one_line_and_the_facts_stand_in_a_part_of_their_own() -> None:
    _, parsed = page()
    assert [text for _, text in parsed.all("header")] == ["Holidays 40 images · 2 clusters"]
    for stability, text in ((0.824, "82%"), (-0.004, "0%")):
        header = page(run={"stability": stability, "verdict": "Look."})[1]
        assert header.all("header")[0][1] == f"Holidays 40 images · 2 clusters · stability {text}"
        assert "Look." in header.all("ul", class_="told")[0][1]
    facts = parsed.all("dl", class_="facts")[0][1]
    assert facts == "Imagesphotos Number of images1,797 Clusters2 Time62 min Seed12345"
    told = parsed.all("ul", class_="told")[0][1]
    assert "3 rounds of clustering and training; in the last, 20.0% of the images changed pseudo-label." in told
    assert [text for _, text in parsed.all("title")] == ["Holidays"]


def test_every_word_that_is_underlined_is_explained_in_the_page() -> None:
    labelled = [row(f"{i}.png", i % 2, label="cat", is_outlier="1") for i in range(40)]
    metrics = {"nmi": 0.5, "acc": 0.8, "ari": 0.1, "ami": 0.2}
    _, parsed = page(clusters=labelled, metrics=metrics, **drawn(40))
    used = {str(attributes["href"]) for attributes, _ in parsed.all("a", class_="term")}
    explained = {f"#{attributes['id']}" for attributes, _ in parsed.all("div") if "id" in attributes}
    assert len(used) > 10 and used <= explained
    assert all(
        text.endswith(".") for _, text in parsed.all("dd")[-len([word for word in explained if "word-" in word]) :]
    )
    # Of many equal cards only the first one's words are stops of the Tab key.
    stops = [a["href"] for a, _ in parsed.all("a", class_="term") if "tabindex" not in a]
    assert stops.count("#word-medoid") == 1


def test_only_known_keys_of_the_run_are_shown() -> None:
    text, parsed = page(run={"hostname": "canary", "command": "deepcluster fit 'my photos'"})
    assert "canary" not in text
    assert parsed.all("code")[0][1] == "deepcluster fit 'my photos'"


def test_labels_and_outliers_of_a_cluster() -> None:
    labels = ["cat"] * 16 + ["dog"] * 3 + ["owl"] + ["", "", "", "", ""]
    rows = [row(f"{i}.png", label=label, is_outlier=str(int(i < 3))) for i, label in enumerate(labels)]
    skipped = row("bad.png") | {"status": "skipped", "cluster": "", "distance": "", "is_outlier": ""}
    _, parsed = page(clusters=[*rows, skipped], summary=summary_of(rows))
    # Of the 20 labelled ones; the owl is below a tenth.
    assert [text for _, text in parsed.all("li", class_="labels")] == ["label cat 80.0%, dog 15.0%"]
    about = parsed.all("div", class_="about")[0][1]
    assert "25 images · 100.0%" in about and "3 outliers" in about and "nearest" not in about


def test_metrics_stand_beside_the_untrained_network() -> None:
    metrics = {
        "nmi": 0.5,
        "acc": 0.8,
        "ari": 0.1,
        "baseline_acc": 0.9,
        "baseline_nmi": 0.4,
        "nmi_average": "arithmetic",
    }
    _, parsed = page(metrics=metrics)
    assert [text for _, text in parsed.all("tr") if text.startswith(("Acc", "NMI (", "ARI"))] == [
        "Accuracy0.8000.900\u22120.100",
        "NMI (arithmetic mean)0.5000.400+0.100",
        "ARI0.100\u2013\u2013",
    ]
    assert "Against the labels" not in page()[1].text()


def test_history_table() -> None:
    history = [
        {"round": str(i), "loss": "0.123456", "changed": "0.5", "inertia": "1234567.8", "new": "x"} for i in range(40)
    ]
    _, parsed = page(history=history)
    table = parsed.all("table", class_="figures history")
    assert table[0][1].startswith("roundlosschangedinertianew 10.12350.0%1,234,568x 2")
    assert len(parsed.all("tr")) == 41
    assert [attributes for attributes, _ in parsed.all("details", class_="rounds")] == [{"class": "rounds"}]
    assert page()[1].all("details", class_="rounds")[0][0] == {"class": "rounds", "open": None}


def test_one_cluster_an_empty_one_and_none() -> None:
    _, parsed = page(clusters=[row("start" + "x" * 4000 + "end.png", margin="")])
    assert parsed.all("header")[0][1] == "Holidays 1 image · 1 cluster" and not parsed.all("ul", class_="sizes")
    ((attributes, _),) = parsed.all("img")
    alt = str(attributes["alt"])
    assert len(alt) < 200 and alt.startswith("start") and alt.endswith("end.png") and "…" in alt
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
    note = parsed.all("p", class_="hidden-clusters")[0][1]
    assert note.startswith("Shown are the 100 largest clusters; 2 more, with 2 images, are not shown.")
    # Every link leads somewhere: the cluster nearest to 101, 100, is only named.
    targets = {attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes}
    assert {str(attributes["href"])[1:] for attributes, _ in parsed.all("a") if "href" in attributes} <= targets
    assert "nearest: cluster 100 " in parsed.text()


def test_a_picture_that_cannot_be_read_again_is_a_plain_tile() -> None:
    _, parsed = page(picture=lambda path: None if path == "0/00.png" else picture(path))
    assert [text for _, text in parsed.all("span", class_="tile")] == ["0/00.png"]
    assert len(parsed.all("img")) == 33


def test_skipped_files() -> None:
    skipped = [{"path": f"s{i}.jpg", "reason": "truncated"} for i in range(1234)]
    _, parsed = page(skipped=skipped, history=[])
    assert len(parsed.all("tr")) == 201
    assert parsed.all("p", class_="quiet more-skipped")[0][1] == "And 1,034 more, in skipped.csv."
    assert not parsed.all("path", class_="line")
    assert "No round was trained: the clusters are those of the network as it was given." in parsed.text()


# Nothing foreign


def test_the_page_is_self_contained() -> None:
    text, parsed = page(metrics={"acc": 1.0}, skipped=[{"path": "a", "reason": "b"}], **drawn(40))
    policy = [a["content"] for a, _ in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == [
        f"default-src 'none'; img-src data: file:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    ]
    assert [a for a, _ in parsed.all("script")] == [{}, {"type": "application/json", "id": "data"}]
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe", text.replace(allowed, ""))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|fetch|XMLHttp|sessionStorage", script
    )
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_tabs_are_links_to_the_parts_that_there_are() -> None:
    def parts(parsed: Page) -> list[str]:
        links = [str(a["href"])[1:] for a, _ in parsed.all("a") if "href" in a and a.get("class") != "term"]
        ids = [str(a["id"]) for a, _ in parsed.all("section", class_="part")]
        assert links[: len(ids)] == ids
        return ids

    assert parts(page()[1]) == ["clusters", "training", "problems", "run"]
    labelled = [row(f"{i}.png", i % 2, label="cat") for i in range(40)]
    everything = ["clusters", "map", "groups", "training", "problems", "labels", "run"]
    assert parts(page(clusters=labelled, **drawn(40))[1]) == everything
    assert parts(page(clusters=[], summary=[])[1]) == ["clusters", "training", "problems", "run"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_inert(name: str) -> None:
    rows = [row(name, 0, label=name, name=name, is_outlier="1"), row(name + "2", 0, label=name), row("b.png", 1)]
    text, parsed = page(
        title=name,
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
    text.encode("utf-8")
    for tag, attributes, _ in parsed.elements:
        assert tag in TAGS
        assert set(attributes) <= ATTRIBUTES
        assert str(attributes.get("href", "#")).startswith("#")
        assert re.fullmatch(r"data:image/webp;base64,[\w+/]+=*", attributes.get("src") or "data:image/webp;base64,AA==")
    # The very same elements as with a harmless name; and the name is there, to be read.
    assert len(parsed.all("script")) == 2
    assert parsed.all("h1")[0][1] == " ".join(inert(name).split())
    skipped = parsed.all("table", class_="skipped")[0][1]
    assert skipped.removeprefix("FileReason ") == " ".join(f"{inert(name)}{inert(name)}".split())
    assert inert(name + "2") in [attributes["alt"] for attributes, _ in parsed.all("img")]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
    # In what the script reads, too.
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data.isascii() and not set("<>&") & set(data)
    images = json.loads(data)["images"]
    assert images["folders"][0] + images["names"][0] == inert(name)
    assert json.loads(data)["clusters"][0]["name"] == inert(name) and inert(name) in images["labels"]


def test_files_of_different_runs_are_refused() -> None:
    with pytest.raises(DiskError, match=r"'b.png' into cluster '7'.* 1 in cluster_summary"):
        page(clusters=[row("a.png"), row("b.png", 7)], summary=summary_of([row("a.png")]))
    with pytest.raises(DiskError, match="size 'many'"):
        page(clusters=[row("a.png")], summary=summary_of([row("a.png")], size="many"))
