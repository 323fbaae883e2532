"""From images to a run folder and back: real files, the real network, a few seconds a run."""

import json
import shutil
import tomllib
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from deepcluster import load
from deepcluster.algorithm import alternate
from deepcluster.errors import DataError, ModelError, NonFiniteError, Stopped
from deepcluster.groups.cut import Placement
from deepcluster.recipe import Recipe
from deepcluster.runs import build as assembly
from deepcluster.runs import fit as run
from deepcluster.runs import train
from deepcluster.runs.build import learning_rate
from deepcluster.runs.plan import Request
from deepcluster.runs.recut import recut
from deepcluster.runs.result import Result
from deepcluster.runs.rows import Rows
from deepcluster.runs.writer import write_clusters
from deepcluster.runtime.console import Silent
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.plain_files import json_sha256
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.content import RunRecord
from tests.helpers.runs import OPTIONS, SAME, Said, left_behind, model_digest, predicted, record, rows
from tests.tiny import writable

REQUEST = Request(out=Path("run"), n_clusters=3, options=OPTIONS | {"rounds": 2})


def fit(images, out: Path, **options) -> Path:
    return run.fit(images, replace(REQUEST, out=out, options={**REQUEST.options, **options})).path


@pytest.fixture(scope="module")
def finished(fitted) -> Path:
    return fitted("--rounds", "2", "--labels", "folders")


def test_the_files_and_their_columns(finished):
    table = rows(finished / "clusters.csv")
    assert tuple(table[0]) == files.CLUSTERS
    assert len(table) == 48
    assert {row["status"] for row in table} == {"ok"}
    assert tuple(rows(finished / "cluster_summary.csv")[0]) == files.SUMMARY
    history = rows(finished / "history.csv")
    assert tuple(history[0]) == (*files.HISTORY, "nmi_labels")
    assert history[0]["cluster_weight"] == "0.0"  # auto's first clusters repeat nothing
    assert 0 < float(history[1]["cluster_weight"]) <= 1
    assert (finished / "skipped.csv").read_text() == "path,reason\n"
    assert tomllib.loads((finished / "recipe.toml").read_text())["rounds"] == 2
    found = record(finished)
    assert found["status"] == "done"
    assert found["rounds"] == 2
    assert "stability" not in found  # of so few images
    assert found["verdict"].startswith("48 images are too few to tell how stable ")
    assert found["verdict"][:30] in (finished / "report.html").read_text()
    assert not left_behind(finished)
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["images.csv"]
    assert (finished / "report.html").stat().st_size > 20_000


def test_features_are_row_aligned_and_of_length_one(finished):
    features = np.load(finished / "features.npy")
    table = rows(finished / "clusters.csv")
    assert features.dtype == np.float32
    assert len(features) == len(table)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    groups = models.load(finished).groups
    distances = np.linalg.norm(features[:, None] - groups.centroids.numpy()[None], axis=2)
    assert groups.groups[distances.argmin(1)].tolist() == [int(row["cluster"]) for row in table]
    np.testing.assert_allclose(distances.min(1), [float(row["distance"]) for row in table], atol=1e-5)


def test_summary_agrees_with_the_clusters(finished):
    table = rows(finished / "clusters.csv")
    summary = rows(finished / "cluster_summary.csv")
    used = [row for row in table if row["status"] == "ok"]
    features = np.load(finished / "features.npy")
    sizes = [int(row["size"]) for row in summary]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 48
    for row in summary:
        members = [one for one in table if one["cluster"] == row["cluster"]]
        assert len(members) == int(row["size"])
        assert float(row["share"]) == pytest.approx(len(members) / 48, abs=1e-5)
        at = [i for i, one in enumerate(used) if one["cluster"] == row["cluster"]]
        medoid = at[np.linalg.norm(features[at] - features[at].mean(0), axis=1).argmin()]
        assert row["medoid_path"] == used[medoid]["path"]
        assert row["nearest_cluster"] != row["cluster"]


def test_metrics_are_those_of_the_clusters(finished):
    table = rows(finished / "clusters.csv")
    metrics = json.loads((finished / "metrics.json").read_text())
    truth, found = [row["label"] for row in table], [row["cluster"] for row in table]
    assert metrics["nmi"] == pytest.approx(
        normalized_mutual_info_score(truth, found, average_method="geometric"), abs=1e-4
    )
    assert metrics["ari"] == pytest.approx(adjusted_rand_score(truth, found), abs=1e-4)
    assert {f"baseline_{name}" for name in ("acc", "nmi", "ami", "ari")} <= set(metrics)
    assert metrics["nmi_average"] == "geometric"


def test_labels_change_nothing_but_the_metrics(finished, fitted):
    without = fitted("--rounds", "2", "--keep-checkpoints")
    assert Checkpoints(without / "checkpoints").latest().values["round"] == 2
    assert not (without / "metrics.json").exists()
    strip = lambda table: [{name: value for name, value in row.items() if name != "label"} for row in table]  # noqa: E731
    assert strip(rows(without / "clusters.csv")) == strip(rows(finished / "clusters.csv"))
    assert (without / "features.npy").read_bytes() == (finished / "features.npy").read_bytes()


def test_a_run_from_python_is_that_of_the_command_bit_by_bit_and_another_seed_differs(
    finished, fitted, photos, tmp_path
):
    request = replace(REQUEST, out=tmp_path / "same", seed=5, labels="folders")
    same = run.fit(photos, request).path
    for name in SAME:
        assert (same / name).read_bytes() == (finished / name).read_bytes(), name
    assert model_digest(same) == model_digest(finished)
    other = fitted("--seed", "1")
    assert (other / "features.npy").read_bytes() != (finished / "features.npy").read_bytes()


@pytest.mark.parametrize("count", [1, 17])
def test_predict_gives_the_rows_of_the_fit_in_any_company(finished, photos, count):
    table = {row["path"]: row for row in rows(finished / "clusters.csv")}
    paths = sorted(table, reverse=True)[:count]
    found = predicted(finished, [photos / path for path in paths])
    placement = found.model.place(found.reduced)
    assert placement.cluster.tolist() == [int(table[path]["cluster"]) for path in paths]
    assert placement.fine_cluster.tolist() == [int(table[path]["fine_cluster"]) for path in paths]
    assert [f"{distance:.6f}" for distance in placement.distance.tolist()] == [
        table[path]["distance"] for path in paths
    ]


def test_recut(finished, photos, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    before = rows(copy / "clusters.csv")
    recut(copy, 5)
    after = rows(copy / "clusters.csv")
    assert {row["cluster"] for row in after} == set("01234")
    assert [row["fine_cluster"] for row in after] == [row["fine_cluster"] for row in before]
    assert [row["label"] for row in after] == [row["label"] for row in before]
    assert len(rows(copy / "cluster_summary.csv")) == 5
    found = predicted(copy, photos)
    assert found.model.place(found.reduced).cluster.tolist() == [int(row["cluster"]) for row in after]
    recut(copy, 3)
    assert rows(copy / "clusters.csv") == before  # back to what fit made
    with pytest.raises(DataError, match="49 clusters are more than the 48 images"):
        recut(copy, 49)


def test_without_k_a_number_is_suggested(photos, tmp_path):
    display = Said()
    folder = run.fit(photos, replace(REQUEST, out=tmp_path / "run", n_clusters=None), display).path
    count = len(rows(folder / "cluster_summary.csv"))
    assert 2 <= count <= 30
    candidates = record(folder)["candidates"]
    others = " or ".join(str(candidate["k"]) for candidate in candidates[1:])
    assert any(f"Their number is a guess: {others} are possible too." in line for line in display.lines)
    assert candidates[0]["k"] == count and all(isinstance(candidate["k"], int) for candidate in candidates)
    assert len({candidate["k"] for candidate in candidates}) == 3

    recut(folder, 5)
    assert len(rows(folder / "cluster_summary.csv")) == 5
    recut(folder, None)
    assert len(rows(folder / "cluster_summary.csv")) == count


def test_a_run_says_what_ended_it(photos, tmp_path):
    """Also where the assignments settle in the last of its rounds."""
    options = {**REQUEST.options, "tolerance": 1, "patience": 1}
    folder = run.fit(photos, replace(REQUEST, out=tmp_path / "run", recipe="classic", options=options)).path
    assert (record(folder)["rounds"], record(folder)["stopped_because"]) == (2, "assignments settled")
    assert {row["cluster_weight"] for row in rows(folder / "history.csv")} == {"1.0"}


def test_the_learning_rate_keeps_its_shape_when_a_time_limit_makes_the_rounds_fewer():
    recipe = Recipe(lr=1.0, schedule="cosine", warmup=2.0, rounds=10)
    rising = 0.5 * (1 + np.cos(0.1 * np.pi)) / 2
    assert [learning_rate(recipe, time, 10) for time in (0, 1, 5, 10)] == pytest.approx([0, rising, 0.5, 0])
    assert [learning_rate(recipe, time, 5) for time in (0, 0.5, 2.5, 5, 6)] == pytest.approx([0, rising, 0.5, 0, 0])


def test_a_run_that_fails_says_so_and_keeps_its_history(photos, tmp_path, monkeypatch):
    def poisoned(*arguments, **options):
        """Rounds as they are, but after the first the network is no longer finite."""
        for round in alternate(*arguments, **options):
            yield round
            with torch.no_grad():
                next(arguments[0].body_parameters()).fill_(torch.nan)

    monkeypatch.setattr(assembly, "alternate", poisoned)
    with pytest.raises(NonFiniteError, match="learning rate"):
        fit(photos, tmp_path / "run")
    assert len(rows(tmp_path / "run" / "history.csv")) == 1
    assert record(tmp_path / "run")["status"] == "failed"


def test_a_loaded_model_takes_images_as_a_user_has_them(finished, photos, tmp_path):
    model = load(finished / "model")
    table = rows(finished / "clusters.csv")
    assert model.predict(photos).tolist() == [int(row["cluster"]) for row in table]
    assert model.predict([photos / table[5]["path"]]).tolist() == [int(table[5]["cluster"])]
    assert np.array_equal(model.transform(str(photos)).numpy(), np.load(finished / "features.npy"))
    (tmp_path / "a.png").write_bytes((photos / table[0]["path"]).read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of the images cannot be used; bad\.png: "):
        model.predict(tmp_path)


def test_a_resumed_run_keeps_the_learning_rate_of_its_time_limit(photos, tmp_path, monkeypatch):
    class AfterOne(Silent):
        def round(self, row, rounds):
            raise Stopped("after a round")

    schedules = []
    options = {**REQUEST.options, "rounds": 10**6, "schedule": "cosine", "lr": 1.0}
    request = replace(REQUEST, out=tmp_path / "run", options=options, time_limit=100)
    with pytest.raises(Stopped):
        run.fit(photos, request, AfterOne())
    checkpoint = Checkpoints(tmp_path / "run/checkpoints").latest()
    planned = checkpoint.about["rounds"]
    assert 1 < planned < 10**6
    content = json.loads((last := tmp_path / "run/checkpoints/000001.json").read_bytes())
    (emptied := content | {"state": content["state"] | {"optimizer": {}}}).pop("sha256")
    last.write_text(json.dumps(emptied | {"sha256": json_sha256(emptied)}))
    with pytest.raises(ModelError, match="optimizer is empty"):
        run.fit(photos, replace(request, resume=True))
    last.write_text(json.dumps(content))

    def seen(network, images, recipe, lr, *args, **options):
        schedules.append(lr)
        raise Stopped("seen")

    monkeypatch.setattr(train, "rounds_of", seen)
    with pytest.raises(Stopped, match="seen"):
        run.fit(photos, replace(request, resume=True))
    assert schedules[0](planned / 2) == pytest.approx(0.5, abs=0.01)


def test_a_table_is_written_without_a_dictionary_for_each_row(tmp_path):
    count = 10_000
    numbers, x = torch.arange(count), torch.rand(count)
    model: Any = SimpleNamespace(outliers=SimpleNamespace(limit=1.0), names=("",) * 5, junk=())
    paths = tuple(f"{row:05}.png" for row in range(count))
    partition = Partition.single(count)
    table = Rows(paths, None, [("bad.png", "")], x[:, None], x[:, None], partition, x)
    placement = Placement(numbers % 5, numbers % 7, x, x, numbers % 5)
    tracemalloc.start()
    result = Result(model, table, placement, x, [], {}, None, None)
    digest = files.rows_sha256(write_clusters(writable(tmp_path), result))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 400 * count  # a dictionary and its cells take 900 bytes
    written = rows(tmp_path / "clusters.csv")
    assert len(written) == count + 1 and written[-1]["status"] == "skipped"
    assert digest == files.rows_sha256(written)
    assert written[7] == {
        "path": "00007.png", "status": "ok", "cluster": "2", "name": "", "fine_cluster": "0", "label": "",
        "distance": f"{x[7]:.6f}", "margin": f"{x[7]:.6f}", "is_outlier": "0",
    }  # fmt: skip


# ---- run.json as a value ---------------------------------------------------------------------------------------------


RUN = {"schema_version": 1, "images": "photos", "location": "/photos", "seed": 5, "n_clusters": None}


@pytest.mark.parametrize("more", [{}, {"n_clusters": 3, "of a later version": [1, {"a": None}]}])
def test_a_record_is_written_as_it_was_read(more):
    assert RunRecord.from_json(RUN | more).to_json() == RUN | more


def test_only_what_is_known_is_in_the_file():
    record = replace(RunRecord.from_json(RUN), verdict="v", edits="a").with_phase("reading", 1.234)
    assert record.with_phase("rounds", 2).to_json() == RUN | {
        "verdict": "v", "edits": "a", "seconds_by_phase": {"reading": 1.23, "rounds": 2}
    }  # fmt: skip
    assert "edits" not in replace(record, edits=None).to_json()
