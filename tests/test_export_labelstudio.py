"""Tasks for Label Studio, by the format in its guide ("Import pre-annotated data", "Local storage"), and by its SDK."""

import json
from pathlib import Path
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import pytest

from deepcluster.errors import DataError, DiskError
from deepcluster.export import labelstudio
from deepcluster.export.labelstudio import INTERFACE
from deepcluster.runs.teach import read_answers
from deepcluster.runtime.plain_files import read_json
from deepcluster.storage.run_folder import RunFolder
from tests.exports import hand_run, photos_run, write_clusters

ODD = ["a b+c.png", "sub/100%.png", "é&#?.png", "\udcff.png", '"q".png', "plain.png"]


@pytest.fixture
def run(tmp_path):
    clusters = {path: i % 3 for i, path in enumerate(ODD)} | {"gone.png": 0}
    run = photos_run(tmp_path, clusters, names={0: '=Möwe & "co"', 1: "owl"}, skipped=["notes.doc"])
    (tmp_path / "photos/gone.png").unlink()
    margins = [0.5, 0.1, 1.0, 0.2, 0.4, 0.3, 0.0, ""]
    rows = RunFolder(run).read_rows("clusters.csv")
    write_clusters(run, [{**row, "margin": margin} for row, margin in zip(rows, margins, strict=True)])
    return run


def exported(run, out, **options):
    with pytest.warns(match="gone"):
        labelstudio(run, out, **options)
    return read_json(out)


def test_tasks(run, tmp_path):
    tasks = exported(run, tmp_path / "tasks.json")
    score = [task["predictions"][0]["score"] for task in tasks]
    assert score == [0.1, 0.2, 0.3, 0.4, 0.5, 1.0]
    interface = ElementTree.fromstring(INTERFACE)
    image, choices = interface.find("Image").attrib, interface.find("Choices").attrib
    labels = ['=Möwe & "co"', "owl", "cluster 2"]
    for task in tasks:
        data, (prediction,) = task["data"], task["predictions"]
        path, _, query = data[image["value"][1:]].partition("?d=")
        file = tmp_path.as_posix().encode() + b"/" + unquote_to_bytes(query)  # below the document root
        assert path == "/data/local-files/" and Path(file.decode(errors="surrogateescape")).is_file()
        assert [choice["value"] for choice in data[choices["value"][1:]]] == labels
        (result,) = prediction["result"]
        assert (result["from_name"], result["to_name"], result["type"]) == (choices["name"], image["name"], "choices")
        assert choices["toName"] == image["name"]
        cluster = ODD.index(data["path"].replace(r"\xff", "\udcff")) % 3
        assert result["value"] == {"choices": [labels[cluster]]}


def test_a_sample_and_what_cannot_be_exported(run, tmp_path, ends, prints):
    printed = prints("export", run, "--to", "labelstudio", "-o", tmp_path / "some.json", "-n", "3", "--seed", "1")
    chosen = {task["predictions"][0]["result"][0]["value"]["choices"][0] for task in read_json(tmp_path / "some.json")}
    assert len(chosen) == 3  # one of each cluster
    assert f"DOCUMENT_ROOT={tmp_path} " in printed and INTERFACE in printed
    with pytest.raises(DiskError, match=r"some\.json"):
        labelstudio(run, tmp_path / "some.json")
    assert "--split" in ends(["export", run, "--to", "labelstudio", "-o", tmp_path / "x", "--split", ".8,.1,.1"], 2)
    digits = hand_run(tmp_path / "digits", "sklearn:digits", {"0": 0, "1": 1})
    with pytest.raises(DataError, match="folders"):
        labelstudio(digits, tmp_path / "x.json")
    write_clusters(run, [{**row, "margin": "0,5"} for row in RunFolder(run).read_rows("clusters.csv")])
    with pytest.raises(DiskError, match=r"clusters\.csv"):
        labelstudio(run, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_its_sdk_takes_the_predictions_and_its_table_goes_to_teach(run, tmp_path):
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(INTERFACE)
    converter = pytest.importorskip("label_studio_sdk.converter").Converter(INTERFACE, project_dir=None)
    tasks = exported(run, tmp_path / "tasks.json")
    for i, task in enumerate(tasks):
        assert interface.validate_prediction(task["predictions"][0])
        task |= {"id": i, "annotations": [{"id": i, "result": task["predictions"][0]["result"], "completed_by": 1}]}
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    converter.convert_to_csv(str(tmp_path / "tasks.json"), str(tmp_path), is_dir=False, sep=",")
    answers = read_answers(tmp_path / "result.csv")
    assert {answer.path for answer in answers} == {task["data"]["path"] for task in tasks}
