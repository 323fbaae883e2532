import pytest

from deepcluster.errors import DataError, UsageError
from deepcluster.images import find
from deepcluster.images.labels import true_labels


def test_folders(photos):
    source = find(photos)
    labels = true_labels("folders", source)
    assert labels == [path.split("/")[0] for path in source.paths]


def test_csv_by_path(photos, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text('File_Name,Class\n"./bars/00.png",stripes\nblob/01.png,round\nnowhere.png,x\n')
    source = find(photos)
    labels = dict(zip(source.paths, true_labels(str(file), source), strict=True))
    assert labels["bars/00.png"] == "stripes"
    assert labels["blob/01.png"] == "round"
    assert labels["checks/00.png"] == ""
    assert sum(map(bool, labels.values())) == 2


def test_labels_as_a_run_writes_them(photos, tmp_path):
    """The guards of clusters.csv are removed, and blanks around a label."""
    file = tmp_path / "clusters.csv"
    file.write_text("path,label\nbars/00.png,'=l0\n./bars/01.png, stripes \n")
    source = find(photos)
    labels = dict(zip(source.paths, true_labels(str(file), source), strict=True))
    assert (labels["bars/00.png"], labels["bars/01.png"]) == ("=l0", "stripes")


def test_folders_without_folders(photos):
    with pytest.raises(DataError, match="without labels"):
        true_labels("folders", find(photos / "bars"))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("path,label\nnowhere.png,x\n", DataError, "nowhere.png"),
        ("a,b\n1,2\n", DataError, "path and a label column"),
        ("", DataError, "nothing"),
        ("path,label\na.png,x\na.png,x\n./a.png,y\n", DataError, r"a\.png is 'x' in line 2 and 'y' in line 4"),
        (None, UsageError, "No such file"),
    ],
)
def test_bad_csv(photos, tmp_path, text, error, message):
    file = tmp_path / "labels.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message):
        true_labels(str(file), find(photos))
