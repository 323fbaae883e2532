"""From images to a run folder and back: real files, the real network, a few seconds a run."""

import csv
import io
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from deepcluster import algorithm, load
from deepcluster.algorithm import alternate
from deepcluster.clustering import two_level_kmeans
from deepcluster.errors import DataError, DeepClusterWarning, DiskError, ModelError, NonFiniteError, Stopped
from deepcluster.recipe import Recipe
from deepcluster.runs import build as assembly
from deepcluster.runs import fit as run
from deepcluster.runs import train
from deepcluster.runs.build import learning_rate
from deepcluster.runs.job import Request
from deepcluster.runs.predict import predict
from deepcluster.runs.recut import recut
from deepcluster.runs.train import TimeLimit
from deepcluster.runtime.display import Silent
from deepcluster.runtime.signals import Stop
from deepcluster.storage import csv_rows as tables
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.atomic import write_whole
from deepcluster.storage.checkpoint import Checkpoints
from tests.predicting import predicted
from tests.tiny import empty_folder

QUICK = {"rounds": 2, "epochs": 1, "batch_size": 16, "pseudo_labels": 8, "image_size": 16}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def fit(images, out: Path, *, k: int | None = 3, seed: int = 0, **options) -> Path:
    labels = options.pop("labels", None)
    limit = options.pop("time_limit", None)
    request = Request(out=out, n_clusters=k, options=QUICK | options, seed=seed, labels=labels, time_limit=limit)
    return run.fit(images, request).path


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    """A run on the photos, with labels."""
    return fit(photos, tmp_path_factory.mktemp("runs") / "photos", labels="folders")


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
    recipe = tomllib.loads((finished / "recipe.toml").read_text())
    assert recipe["rounds"] == 2
    assert recipe["precision"] in ("fp32", "bf16")  # what was used, no longer auto
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "done"
    assert record["rounds"] == 2
    assert set(record["signs"]) == {"agreement", "stability", "silhouette"}
    assert record["verdict"].startswith("The groups are ")
    assert record["verdict"][:30] in (finished / "report.html").read_text()
    assert not list(finished.glob(".*"))  # nothing half-written stays
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


def test_labels_change_nothing_but_the_metrics(finished, photos, tmp_path):
    without = fit(photos, tmp_path / "run")
    assert not (without / "metrics.json").exists()
    strip = lambda table: [{name: value for name, value in row.items() if name != "label"} for row in table]  # noqa: E731
    assert strip(rows(without / "clusters.csv")) == strip(rows(finished / "clusters.csv"))
    assert (without / "features.npy").read_bytes() == (finished / "features.npy").read_bytes()


def test_two_runs_are_bit_identical_another_seed_differs(finished, photos, tmp_path):
    same = fit(photos, tmp_path / "same", labels="folders")
    for name in ("clusters.csv", "cluster_summary.csv", "features.npy", "model/model.safetensors", "model/config.json"):
        assert (same / name).read_bytes() == (finished / name).read_bytes(), name
    other = fit(photos, tmp_path / "other", seed=1, labels="folders")
    assert (other / "features.npy").read_bytes() != (finished / "features.npy").read_bytes()


def test_predict_gives_the_clusters_of_the_training_images(finished, photos):
    found = predicted(finished, photos)
    placement = found.model.place(found.reduced)
    table = rows(finished / "clusters.csv")
    assert list(found.paths) == [row["path"] for row in table]
    assert placement.cluster.tolist() == [int(row["cluster"]) for row in table]
    assert placement.fine_cluster.tolist() == [int(row["fine_cluster"]) for row in table]
    assert np.array_equal(found.reduced.numpy(), np.load(finished / "features.npy"))


@pytest.mark.parametrize("count", [1, 2, 17])
def test_predict_does_not_depend_on_the_company(finished, photos, count):
    table = {row["path"]: row for row in rows(finished / "clusters.csv")}
    paths = sorted(table, reverse=True)[:count]
    found = predicted(finished, [photos / path for path in paths])
    placement = found.model.place(found.reduced)
    assert placement.cluster.tolist() == [int(table[path]["cluster"]) for path in paths]
    assert [f"{distance:.6f}" for distance in placement.distance.tolist()] == [
        table[path]["distance"] for path in paths
    ]


def test_new_images_go_to_the_nearest_centroid(finished, tmp_path):
    from tests.drawings import KINDS, draw

    random = np.random.default_rng(99)
    for kind in KINDS:
        Image.fromarray(draw(kind, random)).save(tmp_path / f"{kind}.png")
    found = predicted(finished, tmp_path)
    distances = torch.cdist(found.reduced.double(), found.model.groups.centroids.double())
    assert torch.equal(found.model.place(found.reduced).cluster, found.model.groups.groups[distances.argmin(1)])


def test_bad_files_change_nothing_and_are_listed(finished, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "bars" / "00broken.png").write_bytes((photos / "bars" / "00.png").read_bytes()[:200])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    (folder / "page.png").write_text("<html>")
    (folder / "blob" / "link.png").symlink_to(folder / "blob" / "00.png")
    found = fit(folder, tmp_path / "run", labels="folders")
    skipped = rows(found / "skipped.csv")
    assert [row["path"] for row in skipped] == [
        "bars/00broken.png", "blob/link.png", "empty.jpg", "notes.txt", "page.png"
    ]  # fmt: skip
    assert all(row["reason"] for row in skipped)
    table = rows(found / "clusters.csv")
    assert [row for row in table if row["status"] == "ok"] == rows(finished / "clusters.csv")
    assert {row["path"] for row in table if row["status"] == "skipped"} == {row["path"] for row in skipped}
    assert (found / "features.npy").read_bytes() == (finished / "features.npy").read_bytes()


def test_two_levels_reach_the_rounds_and_the_result(photos, tmp_path, monkeypatch):
    taken = []

    def spy(*arguments, **options):
        taken.append(options.get("precision"))
        return two_level_kmeans(*arguments, **options)

    monkeypatch.setattr(algorithm, "two_level_kmeans", spy)
    folder = fit(photos, tmp_path / "run", kmeans_levels=2, pseudo_labels=20)
    # Two rounds of three clusterings, and the result; once more where the guard takes the network before training.
    assert taken[:7] == [None] * 6 + ["fp32"] and set(taken[7:]) <= {"fp32"}
    found = predicted(folder, photos)
    fine = [int(row["fine_cluster"]) for row in rows(folder / "clusters.csv")]
    assert found.model.place(found.reduced).fine_cluster.tolist() == fine


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
    with pytest.raises(DataError, match=r"-k 49 .* 48"):
        recut(copy, 49)


def test_without_k_a_number_is_suggested(photos, tmp_path):
    said = []

    class Listener(run.Silent):
        def say(self, heading, text):
            said.append((heading, text))

    request = Request(out=tmp_path / "run", options=QUICK)
    folder = run.fit(photos, request, Listener()).path
    count = len(rows(folder / "cluster_summary.csv"))
    assert 2 <= count <= 30
    assert any(heading == "Groups" and text.startswith(f"{count} (") and "guess" in text for heading, text in said)
    found = json.loads((folder / "run.json").read_text())["candidates"]
    assert found[0]["k"] == count
    assert len({each["k"] for each in found}) == 3

    recut(folder, 5)
    assert len(rows(folder / "cluster_summary.csv")) == 5
    recut(folder, None)
    assert len(rows(folder / "cluster_summary.csv")) == count


def test_no_rounds_clusters_the_untrained_features(photos, tmp_path):
    found = fit(photos, tmp_path / "run", rounds=0, labels="folders")
    metrics = json.loads((found / "metrics.json").read_text())
    assert metrics["nmi"] == metrics["baseline_nmi"]
    assert rows(found / "history.csv") == []


def test_a_run_says_what_ended_it(photos, tmp_path):
    """Also where the assignments settle in the last of its rounds."""
    request = Request(
        out=tmp_path / "run", n_clusters=3, recipe="classic", options=QUICK | {"tolerance": 1, "patience": 1}
    )
    found = run.fit(photos, request).path
    record = json.loads((found / "run.json").read_text())
    assert (record["rounds"], record["stopped_because"]) == (2, "assignments settled")
    assert {row["cluster_weight"] for row in rows(found / "history.csv")} == {"1.0"}


def test_the_time_limit_stops_between_rounds(photos, tmp_path):
    found = fit(photos, tmp_path / "run", rounds=1000, time_limit=0.01)
    record = json.loads((found / "run.json").read_text())
    assert record["rounds"] == 1
    assert record["stopped_because"] == "time limit"
    assert len(rows(found / "clusters.csv")) == 48


def test_the_learning_rate_keeps_its_shape_when_a_time_limit_makes_the_rounds_fewer():
    recipe = Recipe(lr=1.0, schedule="cosine", warmup=2.0, rounds=10)
    rising = 0.5 * (1 + np.cos(0.1 * np.pi)) / 2
    assert [learning_rate(recipe, time, 10) for time in (0, 1, 5, 10)] == pytest.approx([0, rising, 0.5, 0])
    assert [learning_rate(recipe, time, 5) for time in (0, 0.5, 2.5, 5, 6)] == pytest.approx([0, rising, 0.5, 0, 0])


def test_a_time_limit_tells_how_many_rounds_fit():
    limit = TimeLimit(100, rounds=50, done=2, elapsed=10)
    assert limit.rounds_that_fit(4, 30) == 10  # 10 s a round, and 95 s are for the rounds
    assert limit.rounds_that_fit(10, 90) == 10
    assert limit.rounds_that_fit(4, 120) == 4
    assert replace(limit, seconds=1e6).rounds_that_fit(4, 30) == 50
    assert replace(limit, seconds=None).rounds_that_fit(4, 1e9) == 50


def test_equal_images_end_in_fewer_clusters_with_a_warning(tmp_path):
    images = np.full((30, 20, 20, 3), 77, dtype=np.uint8)
    with pytest.warns(DeepClusterWarning, match="only 1 of 3"):
        found = fit(images, tmp_path / "run", pseudo_labels=4)
    assert {row["cluster"] for row in rows(found / "clusters.csv")} == {"0"}
    assert np.isfinite(np.load(found / "features.npy")).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_images(count, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (count, 20, 20, 3), dtype=np.uint8)
    found = fit(images, tmp_path / "run", k=count, pseudo_labels=count)
    assert len({row["cluster"] for row in rows(found / "clusters.csv")}) == count


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
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_an_existing_folder_is_not_touched(photos, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(DiskError, match=r"another -o"):
            run.fit(photos, Request(out=tmp_path, n_clusters=3, options=QUICK, overwrite=overwrite))
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_overwrite_replaces_a_run_and_leaves_other_files(finished, photos, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "mine.txt").write_text("precious")
    (copy / "metrics.json").write_text("{}")
    run.fit(photos, Request(out=copy, n_clusters=2, options=QUICK, overwrite=True))
    assert (copy / "mine.txt").read_text() == "precious"
    assert not (copy / "metrics.json").exists()  # of the old run
    assert len(rows(copy / "cluster_summary.csv")) == 2


def test_nothing_is_written_when_the_options_are_wrong(photos, tmp_path):
    for request in (
        Request(out=tmp_path / "run", n_clusters=49),
        Request(out=tmp_path / "run", n_clusters=3, options={"pseudo_labels": 49}),
        Request(out=tmp_path / "run", n_clusters=3, labels=str(tmp_path / "none.csv")),
        Request(out=tmp_path / "run", n_clusters=3, recipe="v7"),
    ):
        with pytest.raises(ValueError):
            run.fit(photos, request)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "not json", "another shape", "no group", "hostile"])
def test_a_damaged_model_is_refused(finished, tmp_path, damage):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(finished / "model", folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "missing":
        weights.unlink()
    elif damage == "not json":
        config.write_text("{")
    elif damage == "hostile":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"store_size": 10**9}))
    else:
        tensors = load_file(weights)
        if damage == "another shape":
            tensors["groups.centroids"] = tensors["groups.centroids"][:, :3].contiguous()
        else:
            tensors["groups.groups"] = tensors["groups.groups"] + 1
        save_file(tensors, weights)
    with pytest.raises(ModelError, match=str(folder)):
        models.load(folder)


def test_csv_survives_odd_names(tmp_path):
    odd = ['a,"b".png', "new\nline.png", "caf\udce9.png", "=1+1.png", "ü.png"]
    folder = empty_folder(tmp_path / "run")
    folder.write_rows("skipped.csv", files.SKIPPED, [{"path": path, "reason": "x"} for path in odd])
    assert [row["path"] for row in folder.read_rows("skipped.csv")] == odd


def test_a_failed_write_keeps_the_old_file(tmp_path):
    folder = empty_folder(tmp_path / "run")
    folder.write_text("recipe.toml", "old")

    def fails(file: io.TextIOBase) -> None:
        file.write("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left"):
        write_whole(folder.path / "recipe.toml", fails)
    assert (folder.path / "recipe.toml").read_text() == "old"
    assert [path.name for path in folder.path.iterdir()] == ["recipe.toml"]


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


@pytest.mark.parametrize("images", [torch.rand(2, 3, 16, 16), 255 * torch.rand(2, 3, 16, 16)])
def test_float_images_are_refused_in_the_size_of_the_store_too(finished, images):
    model = load(finished)
    assert model.store_size == 16
    for method in (model.predict, model.transform):
        with pytest.raises(DataError, match="float32, not uint8"):
            method(images)


def test_a_resumed_run_keeps_the_learning_rate_of_its_time_limit(photos, tmp_path, monkeypatch):
    class AfterOne(Silent):
        def round(self, row, rounds):
            stop.wanted = True

    stop, schedules = Stop(), []
    options = QUICK | {"rounds": 10**6, "schedule": "cosine", "lr": 1.0}
    request = Request(out=tmp_path / "run", n_clusters=3, options=options, time_limit=100)
    with pytest.raises(Stopped):
        run.fit(photos, request, AfterOne(), stop=stop)
    checkpoint = Checkpoints(tmp_path / "run/checkpoints").latest()
    planned = checkpoint.about["rounds"]
    assert 1 < planned < 10**6

    def seen(network, images, recipe, lr, *args, **options):
        schedules.append(lr)
        raise Stopped("seen")

    monkeypatch.setattr(train, "rounds_of", seen)
    with pytest.raises(Stopped, match="seen"):
        run.fit(photos, replace(request, resume=True))
    assert schedules[0](planned / 2) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory) -> Path:
    """All digits by the network as it is before training."""
    out = tmp_path_factory.mktemp("digits") / "run"
    return run.fit("sklearn:digits", Request(out=out, n_clusters=10, options={"rounds": 0})).path


def outliers(found: Path, images) -> list[int]:
    model, flags = load(found), []
    for part in predict(model, images):
        flags += [row["is_outlier"] for row in tables.placement_rows(model, model.place(part.reduced), part.lengths)]
    return flags


def test_noise_is_an_outlier_of_digits(digits_run):
    noise = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    assert sum(outliers(digits_run, noise)) >= 45
    inside = [int(row["is_outlier"]) for row in rows(digits_run / "clusters.csv")]
    assert sum(inside) < 0.01 * len(inside)
    assert outliers(digits_run, "sklearn:digits") == inside


@pytest.mark.slow
def test_noise_among_the_digits_of_a_fit_is_an_outlier_and_stays_one(tmp_path):
    digits = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    images = np.concatenate([digits[..., None].repeat(3, 3), noise])
    found = run.fit(images, Request(out=tmp_path / "run", n_clusters=10, options={"rounds": 0})).path
    for k in (10, 7):
        if k == 7:
            recut(found, 7)
        flags = [int(row["is_outlier"]) for row in rows(found / "clusters.csv")]
        assert sum(flags[-10:]) >= 8
        assert sum(flags[:-10]) < 0.02 * len(digits)
        assert outliers(found, images) == flags
    (found / files.LENGTHS).unlink()  # as runs of version 0.1 are
    recut(found, 10)
