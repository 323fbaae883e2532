"""From images to a run folder and back: real files, the real network, a few seconds a run."""

import itertools
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from deepcluster.algorithm import alternate
from deepcluster.errors import NonFiniteError, OutOfMemoryError, UsageError
from deepcluster.fitting import fit as run
from deepcluster.fitting.forecast import PassForecast
from deepcluster.fitting.plan import Request
from deepcluster.recipes import build as assembly
from deepcluster.recipes.build import learning_rate
from deepcluster.recipes.options import Recipe
from deepcluster.recipes.presets import read_request
from deepcluster.runs.recut import recut
from deepcluster.runtime import machine
from deepcluster.runtime.machine import available, check_fits
from deepcluster.storage import model_files as models
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.content import FILES, RunRecord, Table
from tests.helpers.runs import OPTIONS, Said, left_behind, record, result, rows
from tests.helpers.tiny import RECORD

TWO_ROUNDS = OPTIONS | {"rounds": 2}
REQUEST = Request(out=Path("run"), n_clusters=3, recipe=read_request(TWO_ROUNDS))


@pytest.fixture(scope="module")
def two_rounds(fit_once) -> Path:
    return fit_once("--rounds", "2", "--labels", "folders")


def test_the_files_and_their_columns(two_rounds):
    table, history = rows(two_rounds / "clusters.csv"), rows(two_rounds / "history.csv")
    assert tuple(table[0]) == FILES["clusters.csv"].columns and [row["status"] for row in table] == ["ok"] * 48
    assert tuple(rows(two_rounds / "cluster_summary.csv")[0]) == FILES["cluster_summary.csv"].columns
    assert tuple(history[0]) == (*FILES["history.csv"].columns, "nmi_labels")
    assert history[0]["cluster_weight"] == "0.0"  # auto's first clusters repeat nothing
    assert 0 < float(history[1]["cluster_weight"]) <= 1
    assert (two_rounds / "skipped.csv").read_text() == "path,reason\n"
    assert tomllib.loads((two_rounds / "recipe.toml").read_text())["rounds"] == 2
    run_json = record(two_rounds)
    assert (run_json["status"], run_json["rounds"]) == ("done", 2)
    assert {*run_json["seconds_by_phase"]} == {"reading", "rounds", "result"}
    assert not left_behind(two_rounds)
    assert not [*two_rounds.glob("checkpoints/*")]


def test_features_summary_and_clusters_agree(two_rounds):
    features, table = np.load(two_rounds / "features.npy"), rows(two_rounds / "clusters.csv")
    assert features.dtype == np.float32 and len(features) == len(table)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    groups = models.load(two_rounds).cut
    distances = np.linalg.norm(features[:, None] - groups.centroids.numpy()[None], axis=2)
    assert groups.cluster_of[distances.argmin(1)].tolist() == [int(row["cluster"]) for row in table]
    np.testing.assert_allclose(distances.min(1), [float(row["distance"]) for row in table], atol=1e-5)

    summary = rows(two_rounds / "cluster_summary.csv")
    sizes = [int(row["size"]) for row in summary]
    assert sizes == sorted(sizes, reverse=True)
    for row, size in zip(summary, sizes, strict=True):
        at = [i for i, image in enumerate(table) if image["cluster"] == row["cluster"]]
        medoid = at[np.linalg.norm(features[at] - features[at].mean(0), axis=1).argmin()]
        assert (size, row["medoid_path"]) == (len(at), table[medoid]["path"])
        assert float(row["share"]) == pytest.approx(size / 48, abs=1e-5)
        assert row["nearest_cluster"] != row["cluster"]


def test_metrics_are_those_of_the_clusters(two_rounds):
    table = rows(two_rounds / "clusters.csv")
    metrics = json.loads((two_rounds / "metrics.json").read_text())
    both = [row["label"] for row in table], [row["cluster"] for row in table]
    assert metrics["nmi"] == pytest.approx(normalized_mutual_info_score(*both, average_method="geometric"), abs=1e-4)
    assert metrics["ari"] == pytest.approx(adjusted_rand_score(*both), abs=1e-4)
    assert {f"baseline_{name}" for name in ("acc", "nmi", "ami", "ari")} <= set(metrics)
    assert metrics["nmi_average"] == "geometric"


def test_labels_change_nothing_but_the_metrics(two_rounds, fit_once):
    without = fit_once("--rounds", "2", "--keep-checkpoints")
    assert Checkpoints(without / "checkpoints").latest().values["round"] == 2
    assert not (without / "metrics.json").exists()
    assert [row | {"label": ""} for row in rows(two_rounds / "clusters.csv")] == rows(without / "clusters.csv")
    assert (without / "features.npy").read_bytes() == (two_rounds / "features.npy").read_bytes()


def test_without_k_a_number_is_suggested(photos, tmp_path):
    display = Said()
    request = Request(out=tmp_path / "run", recipe=read_request(OPTIONS | {"rounds": 0}))
    folder = run.fit(photos, request, display).path
    count, *others = [candidate["k"] for candidate in result(folder)["candidates"]]
    assert 2 * count in others and len(rows(folder / "cluster_summary.csv")) == count
    assert any(
        f"Their number is a guess; try also {'half' if others[0] < count else 'twice'} as many ({others[0]})" in line
        for line in display.lines
    )
    for k, groups in ((5, 5), (None, count)):
        recut(folder, k)
        assert len(rows(folder / "cluster_summary.csv")) == groups


def test_a_run_says_what_ended_it(photos, tmp_path):
    recipe = read_request(TWO_ROUNDS | {"tolerance": 1, "patience": 1}, "classic")
    folder = run.fit(photos, replace(REQUEST, out=tmp_path / "run", recipe=recipe)).path
    assert record(folder)["rounds"] == 2 and "settled" in record(folder)["stopped_because"]
    assert {row["cluster_weight"] for row in rows(folder / "history.csv")} == {"1.0"}


def test_the_learning_rate_rises_and_falls():
    recipe = Recipe(lr=1.0, schedule="cosine", warmup=2.0, rounds=10)
    rising = 0.5 * (1 + np.cos(0.1 * np.pi)) / 2
    assert [learning_rate(recipe, time) for time in (0, 1, 5, 10)] == pytest.approx([0, rising, 0.5, 0])


def test_a_run_that_fails_says_so_and_keeps_its_history(photos, tmp_path, monkeypatch):
    def poisoned(*arguments, **options):
        """Rounds as they are, but after the first the network is no longer finite."""
        for round in alternate(*arguments, **options):
            yield round
            with torch.no_grad():
                next(arguments[0].body_parameters()).fill_(torch.nan)

    monkeypatch.setattr(assembly, "alternate", poisoned)
    with pytest.raises(NonFiniteError):
        run.fit(photos, replace(REQUEST, out=tmp_path / "run"))
    assert len(rows(tmp_path / "run" / "history.csv")) == 1
    assert record(tmp_path / "run")["status"] == "failed"


CELLS = ["", "a", "ü\ud83d\ude00", "\udcff.png", "a\nb", "-1.5", "a"]


def test_cells_come_back():
    rows = [{"path": cell, "number": str(i), "same": "x"} for i, cell in enumerate(CELLS)]
    table = Table.of(rows)
    assert list(table) == rows and len(table) == 7 and table[3] == rows[3] and table[-1] == rows[-1]
    assert table[2:5] == rows[2:5] and list(table.column("path")) == CELLS
    assert list(table.with_cell("path", "a")) == [rows[1], rows[6]] and list(table.with_cell("path", "b")) == []
    part = table.at([6, 0, 1])
    assert list(part) == [rows[6], rows[0], rows[1]] and list(part.with_cell("number", "0")) == [rows[0]]
    assert Table.of(table) is table and list(table.column("gone")) == [""] * 7
    none = Table.of([])
    assert list(none) == [] == list(none.with_cell("status", "ok"))


@pytest.mark.parametrize("more", [{"n_clusters": None}, {"n_clusters": 3, "baseline": {"nmi": 0.5}, "resumed": []}])
def test_a_record_is_written_as_it_was_read(more):
    table = json.loads(json.dumps(RunRecord.from_json(RECORD | more).to_json()))
    assert table == RECORD | {"of_folder": False} | more


# ---- memory and time -------------------------------------------------------------------------------------------------


def test_a_limit_of_the_process_counts():
    script = "import resource; resource.setrlimit(resource.RLIMIT_AS, (5 << 30, resource.RLIM_INFINITY))\n"
    script += "from deepcluster.runtime.machine import available\n"
    script += "print(available() / 2**30); room = bytearray(1 << 30); print(available() / 2**30)"
    before, after = map(float, subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert 0 < after < before - 0.9 < 5 - 0.9


@pytest.mark.parametrize(
    ("group", "limit", "used", "prefix"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current", ""),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ("sys/fs/cgroup/job", "memory.max", "memory.current", ""),  # of a service or a job, above its step
        ("sys/fs/cgroup/memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_the_page_cache_of_a_container_is_free(tmp_path, group, limit, used, prefix):
    """8 GB are allowed and 7 in use, of which 6 are files that were read."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,memory:/job\n0::/job/step\n")
    folder = tmp_path / group
    folder.mkdir(parents=True)
    (folder / limit).write_text("8000000000\n")
    (folder / used).write_text("7000000000\n")
    parts = {"anon": 1, "active_file": 2, "inactive_file": 4}
    (folder / "memory.stat").write_text("".join(f"{prefix}{name} {size}000000000\n" for name, size in parts.items()))
    assert available(tmp_path) == 7e9
    (folder / limit).write_text("max\n")
    assert available(tmp_path) > 7e9


def test_a_run_that_cannot_fit_is_refused_with_both_numbers_before_it_writes(tmp_path, photos, monkeypatch, ends):
    monkeypatch.setattr(machine, "available", lambda: 8e9)
    check_fits("it", 10e9, "wait")  # an estimate may be too high
    monkeypatch.setattr(machine, "available", lambda: 6e9)
    with pytest.raises(OutOfMemoryError, match=r"10.0 GB, .* 6.0 GB"):
        check_fits("it", 10e9, "wait")
    monkeypatch.setattr(machine, "available", lambda: 1e4)
    said = ends(["fit", photos, "-k", 3, "-o", tmp_path / "run"], 6)
    assert said.startswith("error: the matrix of features takes ") and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("size", "seconds", "said"),
    [
        (224, 420, "about 7 minutes for the pass over the images at 224 px; --image-size 144 takes about 3"),
        (144, 420, "about 7 minutes for the pass over the images at 144 px"),
        (224, 120, ""),
    ],
)
def test_a_long_pass_tells_its_time_once_after_ten_seconds(size, seconds, said):
    display, clock = Said(), itertools.count(step=0.5)  # two batches of 64 a second
    progress = PassForecast(display, size, lambda: next(clock))
    lines = []
    for done in range(64, 128 * seconds + 1, 64):
        progress("features", done, 128 * seconds)
        lines.append([*display.lines])
    assert lines[19] == [] and lines[20] == lines[-1] == ([f"Time: {said}"] if said else [])


def test_a_network_that_cannot_take_the_centre_crops_is_refused_at_once(photos, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 24), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    recipe = read_request({"image_size": 32, "within_image": 1, "features": "pass"})
    with pytest.raises(UsageError, match=r"23 x 23 .*within_image=0"):
        run.fit(photos, Request(out=tmp_path / "run", recipe=recipe, module=module))
    assert not (tmp_path / "run").exists()
