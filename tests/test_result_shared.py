"""The result that several processes make of the images that each of them has, against that of one process."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from deepcluster.clustering.agreement import changed, compared, nmi
from deepcluster.groups import tree as middles_of
from deepcluster.groups.cut import Cut, Placement, cut
from deepcluster.groups.tree import Tree, distances_to, least_of_each, merge_tree
from deepcluster.images.duplicates import near_duplicates
from deepcluster.report import pictures
from deepcluster.runs import fit as run
from deepcluster.runs import rows as samples
from deepcluster.runs.result import Result, metrics, place_rows, summary_rows
from deepcluster.runs.rows import Rows, sample_of
from deepcluster.runs.writer import write_clusters
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.storage.run_folder import rows_sha256
from tests.helpers.runs import record, rows
from tests.helpers.shared import OPTIONS, pixels
from tests.tiny import writable

ROWS = 2000


def features() -> Tensor:
    random = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(5, 8, generator=random)
    kinds = torch.randint(5, (ROWS,), generator=random)
    return normalize(centres[kinds] + torch.randn(ROWS, 8, generator=random), dim=1)


def own(x: Tensor, processes: Processes) -> Tensor:
    share = processes.part(len(x))
    return x[share.start : share.stop]


def blocks_of(processes: Processes) -> tuple[list[int], list[int]]:
    local = own(torch.arange(23), processes)
    partition = Partition.of(processes, len(local))
    blocks = list(partition.blocks(local, 5))
    return [len(block) for block in blocks], torch.cat(blocks).tolist()


def test_blocks_come_to_the_main_rank_in_order(ranks):
    for count in (1, 2, 3):
        first, *others = ranks[count](blocks_of)
        assert first == ([5, 5, 5, 5, 3], list(range(23)))
        assert all(each == ([0] * 5, []) for each in others)


def medoids(processes: Processes, distances: Tensor, groups: Tensor) -> list[int]:
    part = own(distances, processes)
    return least_of_each(part, own(groups, processes), 4, Partition.of(processes, len(part))).tolist()


def test_medoids_by_hand(ranks):
    distances = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.3, 0.1, 0.7])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 3])  # of equal ones the first, and none in group 2
    for count in (1, 2, 3):
        assert ranks[count](medoids, distances, groups) == [[1, 3, -1, 6]] * count


def described(processes: Processes, x: Tensor, few: int) -> tuple[list[dict[str, str]], Tree, Tensor, dict[str, float]]:
    """All that the tables say of the groups of a sample."""
    reduced = own(x, processes)
    partition = Partition.of(processes, len(reduced))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SAMPLE", few)
        sample = sample_of(reduced, partition, 3)
        assert len(sample) == (few if processes.is_main else 0)
        groups = Cut(**processes.broadcast_tensors(lambda: vars(cut(sample, 5))))
        images = Rows([str(row) for row in range(len(x))], None, (), reduced, sample, partition, reduced[:, 0])
        groups, placement = place_rows(groups, images, x[:3])
    model: Any = SimpleNamespace(groups=groups, names=("",) * 5, junk=())
    truth = [("", "a", "b")[row % 3] for row in own(torch.arange(len(x)), processes).tolist()]
    tree = merge_tree(reduced, groups, placement.centroid, partition)
    measures = metrics(truth, placement.cluster, partition)
    return summary_rows(model, images, placement), tree, placement.cluster, measures


@pytest.mark.parametrize("few", [400, ROWS])
def test_groups_and_tables_are_those_of_one_process(ranks, few):
    x = features()
    ((summary, tree, cluster, measures),) = ranks[1](described, x, few)
    sizes = [int(row["size"]) for row in summary]
    assert sum(sizes) == ROWS and sizes == sorted(sizes, reverse=True) and tree.sizes[-1] == ROWS
    assert sizes == torch.bincount(cluster).tolist()
    for count in (2, 3):
        found = ranks[count](described, x, few)
        assert [each[:2] for each in found] == [(summary, tree)] * count
        assert torch.equal(torch.cat([each[2] for each in found]), cluster)
        assert found[0][3] == measures and measures["acc"] > 0.2


def judged(processes: Processes, before: Tensor, after: Tensor) -> tuple[float, float]:
    return compared(own(before, processes), own(after, processes), processes)


@pytest.mark.parametrize("kinds", [1, 7])
def test_assignments_are_compared_by_the_counts_of_each(ranks, kinds):
    random = torch.Generator().manual_seed(1)
    before = torch.randint(kinds, (501,), generator=random)
    after = torch.where(torch.rand(501, generator=random) < 0.3, torch.randint(9, (501,), generator=random), before)
    for count in (1, 2, 3):
        for agreement, moved in ranks[count](judged, before, after):
            assert agreement == pytest.approx(nmi(before, after), abs=1e-12) and moved == changed(before, after)
            assert judged(Processes(), before, before) == (pytest.approx(1), 0)


def alike(processes: Processes, images: Tensor) -> list[list[tuple[int, float]]]:
    part = own(images, processes)
    return near_duplicates(part, Partition.of(processes, len(part)))


@pytest.mark.parametrize("count", [1, 2, 300])
def test_near_duplicates_are_those_of_one_process(ranks, count):
    random = torch.Generator().manual_seed(2)
    base = interpolate(torch.rand(max(1, count // 2), 3, 4, 4, generator=random), size=(12, 12), mode="bicubic")
    images = base[torch.randint(len(base), (count,), generator=random)].clamp(0, 1)
    images = (images + 0.01 * torch.randn(images.shape, generator=random)).clamp(0, 1).mul(255).byte()
    images[::7] = images[0].clone()  # more than a window of equal ones
    (whole,) = ranks[1](alike, images)
    assert len(whole) == {1: 0, 2: 1, 300: len(whole)}[count] and (count < 3 or len(whole) > 30)
    for processes in (2, 3):
        assert ranks[processes](alike, images) == [whole] + [[]] * (processes - 1)


def shared(processes: Processes, out: Path) -> None:
    """A run whose groups are of fewer images than it has, and whose map has fewer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SAMPLE", 30)
        patch.setattr(pictures, "MAX_PICTURES", 20)
        options = OPTIONS | {"rounds": 0}  # training differs by what a batch has
        labels = [str(row % 4) for row in range(40)]
        file = out.parent / f"{out.name}-{processes.rank}.csv"
        file.write_text("path,label\n" + "".join(f"{row},{label}\n" for row, label in enumerate(labels)))
        request = run.Request(out=out, n_clusters=4, options=options, labels=str(file))
        run.fit(pixels(), request, processes=processes)


def test_a_run_of_more_images_than_the_sample_is_that_of_one_process(ranks, tmp_path):
    for count in (1, 2, 3):
        ranks[count](shared, tmp_path / str(count))
    names = ("clusters.csv", "features.npy", "residuals.npy", "cluster_summary.csv", "map.npy", "tree.json")
    names += ("duplicates.csv", "thumbnails.webp", "recipe.toml", "metrics.json")
    for name in (*names, "model/model.safetensors", "model/groups.safetensors"):
        assert len({(tmp_path / str(count) / name).read_bytes() for count in (1, 2, 3)}) == 1, name
    assert np.load(tmp_path / "1/map.npy").shape == (20, 2) and len(rows(tmp_path / "1/clusters.csv")) == 40
    for entry in ("verdict", "fingerprint"):
        assert len({record(tmp_path / str(count))[entry] for count in (1, 2, 3)}) == 1
    sizes = [int(row["size"]) for row in rows(tmp_path / "1/cluster_summary.csv")]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) == 40


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
    digest = rows_sha256(write_clusters(writable(tmp_path), result))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 400 * count  # a dictionary and its cells take 900 bytes
    written = rows(tmp_path / "clusters.csv")
    assert len(written) == count + 1 and written[-1]["status"] == "skipped"
    assert digest == rows_sha256(written)
    assert written[7] == {
        "path": "00007.png", "status": "ok", "cluster": "2", "name": "", "fine_cluster": "0", "label": "",
        "distance": f"{x[7]:.6f}", "margin": f"{x[7]:.6f}", "is_outlier": "0",
    }  # fmt: skip


def test_distances_of_rows_block_by_block(monkeypatch):
    monkeypatch.setattr(middles_of, "ROWS_AT_ONCE", 3)
    random = torch.Generator().manual_seed(0)
    rows, middles, own = torch.randn(8, 4, generator=random), torch.randn(3, 4, generator=random), torch.arange(8) // 3
    assert torch.allclose(distances_to(middles, rows, own), (rows - middles[own]).norm(dim=1))
