"""Labels of images: from a table by their paths, or from folders."""

import unicodedata

import pytest

from deepcluster.errors import DataError, UsageError
from deepcluster.images import find
from deepcluster.images.files import from_table
from deepcluster.images.true_labels import true_labels
from tests.helpers.image_files import save


def test_the_labels_of_a_table_go_by_paths(photos, tmp_path):
    """The guards of clusters.csv are removed, and blanks around a label."""
    file = tmp_path / "labels.csv"
    file.write_text('File_Name,Class\n"./bars/00.png",stripes\nblob/01.png, round \nnowhere.png,x\nbars/01.png,\'=l0\n')
    source = find(photos)
    labels = dict(zip(source.paths, true_labels(str(file), source), strict=True))
    named = {"bars/00.png": "stripes", "blob/01.png": "round", "bars/01.png": "=l0"}
    assert labels == dict.fromkeys(source.paths, "") | named


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path;label\nä.png;Käfer\n", "utf-8-sig"), ("path\tlabel\nä.png\tKäfer\n", "utf-16"),
        ("path;label\nä.png;Käfer\n", "cp1252"), ("path,label\nä.png,\nä.png,Käfer\nä.png,\n", "utf-8"),
        ("path,label\nHERE/ä.png,Käfer\n", "utf-8"), ("path,label\nHERE\\ä.png,Käfer\n", "utf-8"),
        (unicodedata.normalize("NFD", "path,label\nä.png,\n").replace(",\n", ",Käfer\n"), "utf-8"),
    ],
)  # fmt: skip
def test_a_table_of_labels_from_a_spreadsheet(tmp_path, text, encoding):
    save(tmp_path / "images/ä.png")
    (tmp_path / "labels.csv").write_text(text.replace("HERE", str(tmp_path / "images")), encoding)
    assert true_labels(str(tmp_path / "labels.csv"), find(tmp_path / "images")) == ["Käfer"]


def test_the_labels_of_files_are_those_of_their_folder_however_they_are_named(tmp_path):
    for top, labels in ((tmp_path / "flat", None), (tmp_path / "tree", ("", "x")), (tmp_path / "kinds", ("x", "y"))):
        files = [save(top / label / f"{i}.png") for i, label in enumerate(labels or ("", ""))]
        (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
        for images in (top, files, tmp_path / "list.txt", f"{top}/**/*.png"):
            assert find(images).labels == labels
        table = from_table([*map(str, files)], "", [tmp_path])
        assert table is not None and table.labels == labels


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("path,label\nnowhere.png,x\n", DataError, "nowhere.png"),
        ("a,b\n1,2\n", DataError, "path,label.* a,b"),
        ("path,label\na.png,x\na.png,x\n./a.png,y\n", DataError, r"a\.png .*'x' .*2 .*'y' .*4"),
        ("", DataError, "labels.csv"),
        (None, UsageError, "labels.csv"),
    ],
)
def test_a_wrong_table_of_labels_is_refused_with_its_place(photos, tmp_path, text, error, message):
    file = tmp_path / "labels.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message):
        true_labels(str(file), find(photos))
