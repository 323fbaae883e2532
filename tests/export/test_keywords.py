"""Keywords for exiftool, checked with exiftool itself on images that have other keywords."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from deepcluster.errors import DataError, DiskError
from deepcluster.export import keywords
from deepcluster.storage import files
from tests.helpers.tiny import hand_run, photos_run

TAGS = ("XMP-dc:Subject", "XMP-lr:HierarchicalSubject", "XMP-digiKam:TagsList")
exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is missing")


def call(*arguments: object) -> str:
    done = subprocess.run(["exiftool", *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout


def lists(folder: Path, kind: str = "") -> dict[str, tuple[list[str], ...]]:
    """By file: the flat keywords, the nested ones of Lightroom and those of digiKam, and those of IPTC."""
    names = (*TAGS, "IPTC:Keywords")
    tags_of_files = json.loads(
        call("-j", "-r", "-G1", *(["-ext", kind] if kind else []), *(f"-{name}" for name in names), folder)
    )
    values = {Path(tags["SourceFile"]).name: [tags.get(name, []) for name in names] for tags in tags_of_files}
    return {file: tuple(v if isinstance(v, list) else [str(v)] for v in of_file) for file, of_file in values.items()}


def shown(flat: list[str], nested: list[str], digikam: list[str], iptc: list[str]) -> list[set[str]]:
    """The keywords in Immich, digiKam, darktable, Lightroom and Windows, by the lists that each of them reads first."""
    nested = [keyword.replace("|", "/") for keyword in nested]
    read = (digikam or nested or iptc, digikam or nested or flat or iptc, nested or flat, nested + flat, flat or iptc)
    return [{*keywords} for keywords in read]


def table(out: Path) -> dict[str, list[str]]:
    with out.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["SourceFile", *TAGS]
    return {Path(path).name: cells for path, *cells in rows}


ODD = ["Käfer", 'a, "b" | c/d', "=1+1", "-", "'x'"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A cluster of one image for each odd name, one of junk and one without a name, which has two."""
    paths = ("a.png", "sea, ü/b 'c'.png", "d.png", "e.png", "[f].png", "junk.png", "-h.png", "i.png")
    clusters = {path: min(number, 6) for number, path in enumerate(paths)}
    return photos_run(tmp_path, clusters, names=dict(enumerate([*ODD, "junk"])), junk=[5])


def test_the_images_of_clusters_with_a_name_have_a_row(run, tmp_path, prints, ends):
    out = tmp_path / "new" / "k.csv"
    said = " ".join(prints("export", run, "--to", "keywords", "-o", out).split())
    assert list(table(out)) == ["a.png", "b 'c'.png", "d.png", "e.png", "[f].png"]
    assert table(out)["b 'c'.png"] == ['a, "b" - c-d', 'deepcluster|a, "b" - c-d', 'deepcluster/a, "b" - c-d']
    assert f"exiftool -@ {out.with_suffix('.args')}" in said and "-sidecars.args" in said and "3 images without" in said
    prints("export", run, "--to", "keywords", "-o", tmp_path / "left.csv", "--outliers", "leave")
    assert list(table(tmp_path / "left.csv")) == ["a.png", "d.png", "[f].png"]
    assert "--mode" in ends(["export", run, "--to", "keywords", "-o", tmp_path / "x.csv", "--mode", "copy"], 2)
    assert "k.csv" in ends(["export", run, "--to", "keywords", "-o", out], 5)
    with pytest.raises(DataError, match="name a cluster"):
        keywords(hand_run(tmp_path / "unnamed", str(tmp_path / "photos"), {"a.png": 0}), tmp_path / "x.csv")


def test_a_failure_leaves_none_of_the_four_files(run, tmp_path, monkeypatch):
    out, write_whole = tmp_path / "new" / "k.csv", files.write_whole

    def full(path, *content, **how):
        if path.name == "k-sidecars.args":
            raise DiskError("no space left")
        write_whole(path, *content, **how)

    with monkeypatch.context() as patch, pytest.raises(DiskError):
        patch.setattr(files, "write_whole", full)
        keywords(run, out)
    assert not [*out.parent.iterdir()]
    keywords(run, out)
    assert len([*out.parent.iterdir()]) == 4


@exiftool
def test_odd_names_arrive_in_every_list(run, tmp_path):
    keywords(run, tmp_path / "k.csv")
    others = {file: file.read_bytes() for file in (tmp_path / "photos").glob("[ij-]*")}
    call("-@", tmp_path / "k.args", "-common_args", "-overwrite_original")
    keywords_of = lists(tmp_path / "photos")
    for name, cells in table(tmp_path / "k.csv").items():
        assert keywords_of[name] == (*([cell] for cell in cells), []), name
    assert len(others) == 3 and all(file.read_bytes() == content for file, content in others.items())


OTHERS = {
    "flat": [("flat", "Anna"), ("flat", "Bo, b")],
    "nested": [("nested", "People|Anna")],
    "digikam": [("digikam", "People/Anna"), ("flat", "Anna")],
    "same": [("flat", "owl"), ("flat", "Anna")],
    "same beside nested": [("flat", "owl"), ("flat", "Anna"), ("nested", "People|Anna")],
    "same beside digikam": [("flat", "owl"), ("flat", "Anna"), ("digikam", "People/Anna")],
    "below": [("nested", "Birds|owl"), ("flat", "owl"), ("flat", "Birds")],
    "iptc": [("iptc", "Änna")],
    "none": [],
}
TAG_OF = dict(zip(("flat", "nested", "digikam", "iptc"), (*TAGS, "IPTC:Keywords"), strict=True))


@pytest.fixture(scope="module")
def with_keywords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image for each of OTHERS with these keywords, and one of a cluster without a name."""
    folder = tmp_path_factory.mktemp("photos")
    arguments: list[object] = []
    for i, (name, keywords_of) in enumerate([*OTHERS.items(), ("unnamed", [("flat", "Anna")])]):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{name}.jpg")
        words = [f"-{TAG_OF[kind]}={keyword}" for kind, keyword in keywords_of]
        caption = ["-codedcharacterset=utf8", "-IPTC:Caption-Abstract=on a leaf"] if name == "iptc" else []
        if words:
            arguments += [*caption, *words, folder / f"{name}.jpg", "-execute"]
    call(*arguments, "-common_args", "-q", "-overwrite_original")
    return folder


@pytest.fixture
def tagged(with_keywords: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(with_keywords, tmp_path / "photos"))


@exiftool
@pytest.mark.parametrize("kind", ["", "xmp"])
def test_no_other_keyword_is_lost_or_hidden_and_twice_changes_nothing(kind, tagged, tmp_path):
    """After a correction the keyword of the earlier table goes. An image stays as it is beside its sidecar."""
    if kind:
        call("-o", tagged / "none.jpg.xmp", "-XMP-dc:Subject=Old", "-XMP-xmp:Rating=4")
    before, images = lists(tagged, "jpg"), {file: file.read_bytes() for file in tagged.glob("*.jpg")}
    clusters = {file.name: int(file.name == "unnamed.jpg") for file in images}
    for word, other in (("dog", "owl"), ("owl", "dog")):
        keywords(hand_run(tmp_path / word, str(tagged), clusters, names={0: word}), tmp_path / f"{word}.csv")
        arguments = tmp_path / f"{word}{'-sidecars' * bool(kind)}.args"
        call("-@", arguments)
        now = lists(tagged, kind or "jpg")
        for name in OTHERS:
            programs = zip(shown(*before[f"{name}.jpg"]), shown(*now[f"{name}.jpg{'.xmp' * bool(kind)}"]), strict=True)
            for was, has in programs:
                lost = [one for one in was if not any(f"/{keyword}".endswith(f"/{one}") for keyword in has)]
                assert not lost and has & {word, f"deepcluster/{word}"}, name
                assert f"deepcluster/{other}" not in has and (other not in has or ("flat", "owl") in OTHERS[name]), name
    once = {name: (tagged / name).read_bytes() for name in now}
    call("-@", arguments)
    assert once == {name: (tagged / name).read_bytes() for name in now}
    if kind:
        assert all(file.read_bytes() == content for file, content in images.items()) and len(now) == len(OTHERS)
        words = call("-s3", "-Rating", "-XMP-dc:Subject", tagged / "none.jpg.xmp", "-execute",
                     "-XMP-dc:Description", tagged / "iptc.jpg.xmp")  # fmt: skip
        assert words.split()[:3] == ["4", "Old,", "owl"] and "on a leaf" in words
    else:
        originals = {file: file.with_name(f"{file.name}_original") for file in images}
        assert {file.stem for file, original in originals.items() if not original.exists()} == {"unnamed"}
        assert all(original.read_bytes() == images[file] for file, original in originals.items() if original.exists())
