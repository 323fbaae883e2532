"""k-means and whitening of rows that several processes share, against one process that has them all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepcluster.clustering.kmeans import kmeans, means
from deepcluster.clustering.whitening import Whitening, whiten
from deepcluster.records import Clustering
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes


def blobs(rows: int, width: int, k: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(k, width, generator=random)
    return centres[torch.randint(k, (rows,), generator=random)] + torch.randn(rows, width, generator=random)


def part(x: Tensor, processes: Processes) -> Tensor:
    share = processes.part(len(x))
    return x[share.start : share.stop]


def clustered(processes: Processes, x: Tensor, k: int, start: Tensor | None, options: dict[str, object]) -> Clustering:
    if start is not None and start.ndim == 1:
        start = part(start, processes)
    own = part(x, processes)
    return kmeans(own, k, start=start, partition=Partition.of(processes, len(own)), **options)


def whitened(processes: Processes, x: Tensor, dims: int, root: bool) -> Whitening:
    own = part(x, processes)
    return whiten(own, dims, partition=Partition.of(processes, len(own)), root=root)


def averaged(processes: Processes, x: Tensor, labels: Tensor, k: int) -> Tensor:
    own = part(x, processes)
    return means(own, part(labels, processes), k, Partition.of(processes, len(own)))


def labels_of(found: list[Clustering]) -> Tensor:
    return torch.cat([each.labels for each in found])


@pytest.mark.parametrize(
    ("count", "options", "begin"),
    [
        (2, {}, "rows"),
        (3, {}, "labels"),
        (3, {}, "none"),
        (2, {"spherical": True}, "labels"),
        (3, {"empty": "sample"}, "rows"),
        (2, {}, "none"),
    ],
    ids=str,
)
def test_kmeans_is_that_of_one_process(ranks, count, options, begin):
    x = blobs(20_001, 24, 40)
    if "spherical" in options:
        x = torch.nn.functional.normalize(x)
    start = {"rows": x[:60], "labels": torch.arange(len(x)) % 60, "none": None}[begin]
    (alone,) = ranks[1](clustered, x, 60, start, options)
    found = ranks[count](clustered, x, 60, start, options)
    again = ranks[count](clustered, x, 60, start, options)
    # 60 clusters of 40 blobs: where two share one, the least difference in a sum would grow.
    assert torch.equal(labels_of(found), alone.labels)
    assert found[0].inertia == pytest.approx(alone.inertia, rel=1e-12)
    for each, same in zip(found, again, strict=True):
        assert torch.equal(each.centroids, found[0].centroids)
        assert torch.equal(each.sizes, torch.bincount(labels_of(found), minlength=60))
        assert each.inertia == found[0].inertia
        assert (each.iterations, each.reseeded) == (found[0].iterations, found[0].reseeded)
        assert torch.equal(each.labels, same.labels)
        assert torch.equal(each.centroids, same.centroids)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_no_cluster_is_empty_and_all_processes_agree(ranks, data):
    count = data.draw(st.integers(1, 3))
    distinct, copies = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    x = torch.arange(float(distinct)).repeat(copies).unsqueeze(1).expand(-1, 3).contiguous()
    k = data.draw(st.integers(1, len(x)))
    empty = data.draw(st.sampled_from(["split", "sample"]))
    found = ranks[count](clustered, x, k, None, {"empty": empty, "seed": data.draw(st.integers(0, 9))})
    assert int((found[0].sizes > 0).sum()) == min(k, distinct)
    assert all(torch.equal(each.centroids, found[0].centroids) for each in found)
    assert len(labels_of(found)) == len(x)


@pytest.mark.parametrize(
    ("count", "rows", "width"), [(2, 3000, 40), (3, 3000, 300), (3, 30, 40), (2, 2, 5), (3, 2, 5), (2, 1, 4)]
)
@pytest.mark.parametrize("root", [False, True])
def test_whitening_is_that_of_one_process(ranks, count, rows, width, root):
    x = blobs(rows, width, 7) * torch.linspace(1, 3, width)
    (alone,) = ranks[1](whitened, x, 16, root)
    found = ranks[count](whitened, x, 16, root)
    for each in found:
        assert each.root == root
        assert torch.equal(each.projection, found[0].projection)
        assert torch.equal(each.mean, found[0].mean)
    np.testing.assert_allclose(found[0].project(x), alone.project(x), rtol=1e-6, atol=1e-6)


def failing(processes: Processes, x: Tensor, what: str) -> str:
    try:
        clustered(processes, x, 3, None, {}) if what == "k-means" else whitened(processes, x, 2, False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize("what", ["k-means", "whitening"])
@pytest.mark.parametrize("rows", [30, 3])
@pytest.mark.parametrize(("numbers", "said"), [("nan", "1 of "), ("tiny", "the rows are too small")])
def test_numbers_that_cannot_be_used_in_one_process_end_all_alike(ranks, what, rows, numbers, said):
    x = blobs(rows, 5, 3)
    if numbers == "nan":
        x[-1, 2] = torch.nan
    else:
        x *= torch.where(torch.arange(rows) < rows - 1, 0, 1e-20)[:, None]
    found = ranks[3](failing, x, what)
    assert len(set(found)) == 1
    assert found[0].startswith(f"NonFiniteError: {said}")


@pytest.mark.parametrize("k", [0, 31])
def test_k_is_compared_with_the_rows_of_all(ranks, k):
    message = f"k={k} must be at least 1 and at most the number of rows, 30"
    assert ranks[3](_refusal, blobs(30, 2, 3), k) == [message] * 3


def _refusal(processes: Processes, x: Tensor, k: int) -> str:
    with pytest.raises(ValueError) as found:
        clustered(processes, x, k, None, {})
    return str(found.value)
