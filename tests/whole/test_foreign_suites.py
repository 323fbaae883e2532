"""What others wrote, run against ours: scikit-learn's tests of scores and of k-means, DuckDB, and Pillow's images."""

import os
from inspect import signature
from itertools import product
from typing import Any
from warnings import warn

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from deepcluster.clustering import agreement, kmeans
from deepcluster.clustering.agreement import compared
from deepcluster.clustering.kmeans import assigner, score_precision, spread_rows
from deepcluster.export import parquet
from tests.helpers.commands import command
from tests.helpers.runs import rows, small_fit
from tests.helpers.tiny import hand_run

of_kmeans = pytest.importorskip("sklearn.cluster.tests.test_k_means")  # in its wheels, but not in every distribution
of_scores = pytest.importorskip("sklearn.metrics.cluster.tests.test_supervised")


def nmi(a: Any, b: Any, average_method: str = "geometric") -> float:
    """The NMI of two rounds, which is computed here and not by scikit-learn. At 0 and 1 all averages agree."""
    if not len(a):
        return agreement.nmi(a, b)  # rounds have images
    return compared(*(torch.from_numpy(np.unique(labels, return_inverse=True)[1]) for labels in (a, b)))[0]


def ari(a: Any, b: Any, average_method: str = "") -> float:
    return agreement.ari(a, b)


class Ours(KMeans):
    """Our k-means with the parameters and attributes of scikit-learn's. A weight is a number of equal rows."""

    def fit(self, X, y=None, sample_weight=None):
        copies = np.ones(len(X), int) if sample_weight is None else sample_weight
        data, seed = torch.from_numpy(np.repeat(X, copies, 0)).double(), self.random_state or 0
        runs = {"auto": 1}.get(self.n_init, self.n_init)
        best = min((self._once(data, seed + run) for run in range(runs)), key=lambda result: result.inertia)
        self.cluster_centers_, self.inertia_ = best.centroids.numpy().astype(X.dtype), best.inertia
        self.labels_, self.n_iter_, self._n_threads = best.labels.numpy()[np.cumsum(copies) - 1], best.iterations, 1
        if (distinct := int((best.sizes > 0).sum())) < self.n_clusters:
            text = f"Number of distinct clusters ({distinct}) found smaller than n_clusters ({self.n_clusters})"
            warn(f"{text}. Possibly due to duplicate points in X.", ConvergenceWarning, stacklevel=2)
        return self

    def _once(self, rows, seed):
        start = torch.as_tensor(np.asarray(self.init)).double() if not isinstance(self.init, str) else None
        if isinstance(self.init, str) and self.init == "k-means++":
            start = rows[spread_rows(rows, self.n_clusters, np.random.RandomState(seed))]
        return kmeans(rows, self.n_clusters, start=start, iterations=self.max_iter, seed=seed)

    def predict(self, X):
        rows, centroids = (torch.from_numpy(np.array(x)).float() for x in (X, self.cluster_centers_))
        return assigner(centroids, score_precision(rows, centroids))(rows).numpy()


SCORES = "perfect_matches perfect_matches_with_changing_means non_consecutive_labels adjustment_for_chance"
SCORES += " adjusted_rand_score_overflow exactly_zero_info_score normalized_mutual_info_score_bounded"
# Not error_messages_on_wrong_input (its words) and v_measure_and_mutual_information (the arithmetic mean). The others
# are about scores, algorithms and internals of scikit-learn that have no counterpart here. Of k-means these are sparse
# rows, elkan, callables, integers, weights that are no numbers of rows, and k_means_1_iteration, because centroids in
# float32 do not meet its tolerance of 1e-7; relocating_with_duplicates counts iterations, and ours ends with one that
# changes nothing. result_equal_in_diff_n_threads sets the threads behind torch's back: later forks here waited forever.
KMEANS = "results relocated_clusters convergence predict copyx init_fitted_centers"
KMEANS += " warns_less_centers_than_unique_points with_array_like_or_np_scalar_init"
ALL = "all_init fortran_aligned_data score_max_iter transform fit_transform n_init float_precision centers_not_mutated"
ALL += " predict_does_not_change_cluster_centers"
TESTS = [
    *((of_scores, f"test_{name}") for name in SCORES.split()),
    *((of_kmeans, f"test_kmeans_{name}") for name in KMEANS.split()),
    *((of_kmeans, f"test_{name}") for name in ALL.split()),
]
VALUES: dict[str, tuple[Any, ...]] = {
    "score_func": (ari, nmi),
    "average_method": ("geometric",),
    "array_constr": (np.array,),
    "algo": ("lloyd",),
    "algorithm": ("lloyd",),
    "dtype": (np.float32, np.float64),
    "global_dtype": (np.float32,),
    "global_random_seed": (0, 42),
    "Estimator": (Ours,),
    "input_data": (of_kmeans.X,),
    "init": ("random", "k-means++", of_kmeans.centers.copy()),
    "max_iter": (2, 100),
    "csr_container": (None,),
    "kwargs": ({"init": [[0, 0], [1, 1]], "n_init": 1},),
}


@pytest.mark.parametrize(("suite", "name"), TESTS, ids=[name for _, name in TESTS])
def test_scikit_learns_own(suite, name, monkeypatch):
    theirs = {"KMeans": Ours, "adjusted_rand_score": ari, "normalized_mutual_info_score": nmi}
    for other, ours in theirs.items():
        if hasattr(suite, other):
            monkeypatch.setattr(suite, other, ours)
    test = getattr(suite, name, None) or pytest.skip("a test of another version of scikit-learn")
    for values in product(*(VALUES[parameter] for parameter in signature(test).parameters)):
        test(*values)


def test_duckdb_reads_the_tables_strictly(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    paths = ('a, "b".png', "two\nlines.png", "'.png", "ü.png", "=1+1.png")
    clusters = {path: i % 2 for i, path in enumerate(paths)}
    run = hand_run(tmp_path / "run", "-", clusters, names={0: 'q"', 1: "x"}, skipped=["x;y.doc"])
    parquet(run, out := tmp_path / "x.parquet")
    columns, skipped = "path, cluster, name, is_outlier", ("x;y.doc", None, None, None)
    used = [(path, i % 2, ('q"', "x")[i % 2], i % 2) for i, path in enumerate(paths)]
    assert duckdb.sql(f"select {columns} from '{out}'").fetchall() == [*used, skipped]
    nearest, features = zip(*duckdb.sql(f"select neighbors.ids[1], features from '{out}'").fetchall(), strict=True)
    assert nearest == (2, 3, 0, 1, 0, None)
    assert np.array_equal(features[:-1], np.load(run / "features.npy")) and np.isnan(features[-1]).all()

    used[-1] = ("./=1+1.png", *used[-1][1:])  # a spreadsheet would compute the path
    strict = "strict_mode = true, header = true"
    selected = duckdb.sql(f"select {columns} from read_csv('{run / 'clusters.csv'}', {strict})").fetchall()
    assert selected == [*used, skipped]
    for file in run.glob("*.csv"):
        table = duckdb.sql(f"from read_csv('{file}', {strict}, all_varchar = true)")
        names = file.read_text("utf-8-sig").partition("\n")[0].split(",")
        assert (table.columns, len(table)) == (names, len(rows(file)))


@pytest.mark.slow
def test_pillows_images_are_used_or_refused_with_a_reason(tmp_path):
    """CONTRIBUTING tells where they come from. A decoder that crashes would end the process."""
    if not (folder := os.environ.get("DEEPCLUSTER_PILLOW_IMAGES")):
        pytest.skip("DEEPCLUSTER_PILLOW_IMAGES names no folder")
    assert command("fit", folder, "-o", tmp_path / "run", *small_fit("--rounds", "0"))[0] == 0
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "run/skipped.csv")}
    used = [row["path"] for row in rows(tmp_path / "run/clusters.csv") if row["status"] == "ok"]
    assert len(used) > 100 and len(reasons) > 100 and all(reasons.values()) and reasons.keys().isdisjoint(used)
