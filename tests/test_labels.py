import os

import numpy as np
import pytest

from deepcluster.errors import DataError, UsageError
from deepcluster.images import find
from deepcluster.images.given import check_labels_there, true_labels
from deepcluster.runtime import plain_files

numbers = find(np.zeros((3, 4, 4), np.uint8))


def test_csv_by_path(photos, tmp_path):
    """The guards of clusters.csv are removed, and blanks around a label."""
    file = tmp_path / "labels.csv"
    file.write_text('File_Name,Class\n"./bars/00.png",stripes\nblob/01.png, round \nnowhere.png,x\nbars/01.png,\'=l0\n')
    source = find(photos)
    labels = dict(zip(source.paths, true_labels(str(file), source), strict=True))
    named = {"bars/00.png": "stripes", "blob/01.png": "round", "bars/01.png": "=l0"}
    assert labels == dict.fromkeys(source.paths, "") | named


def test_folders_without_folders(photos):
    with pytest.raises(DataError, match="without labels"):
        true_labels("folders", find(photos / "bars"))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("path,label\nnowhere.png,x\n", DataError, "nowhere.png"),
        ("a,b\n1,2\n", DataError, "no column path: the first line must have path,label, and has a,b"),
        ("path,label\na.png,x\na.png,x\n./a.png,y\n", DataError, r"a\.png is 'x' in line 2 and 'y' in line 4"),
        ("", DataError, "an empty file"),
        ("path,label\n" + "x" * 101, DataError, "more than 100 characters"),
        ("path,label\n" + "a,b\n" * 50, DataError, "more than the 200 that are read"),
        (None, UsageError, "No such file"),
    ],
)
def test_bad_csv(photos, tmp_path, text, error, message, monkeypatch):
    monkeypatch.setattr(plain_files, "LONGEST_LINE", 100)
    monkeypatch.setattr(plain_files, "MOST_TEXT", 200)
    file = tmp_path / "labels.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message):
        true_labels(str(file), find(photos))


@pytest.mark.parametrize("read", [check_labels_there, lambda spec: true_labels(spec, numbers)])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_what_is_no_file_is_not_waited_for(tmp_path, make, read):
    make(tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"labels.csv: not a plain file.*give `folders` or a CSV file"):
        read(str(tmp_path / "labels.csv"))
