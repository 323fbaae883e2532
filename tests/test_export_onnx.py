import json
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import deepcluster
from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import whiten
from deepcluster.errors import DiskError, ModelError, UsageError
from deepcluster.export import onnx
from deepcluster.export.onnx import MAX_DIFFERENCE, Placing, difference
from deepcluster.groups.cut import Cut
from deepcluster.images import find
from deepcluster.images.store import read_once
from deepcluster.learning.features import extract
from deepcluster.model import Model
from deepcluster.nets.network import build
from deepcluster.place import Place
from deepcluster.storage import model_files as models
from tests.tiny import tiny_model


def model_on(images, name, image_size, root=False, **options):
    """A model whose features, whitening and centroids come from these images; group 1 has none (it was merged)."""
    network = build(name, image_size=image_size, seed=0, **options).eval()
    features = extract(network, images, Place.of(network, images, size=image_size, batch_size=16))
    reduction = whiten(features, 16, root=root)
    reduced = reduction(features)
    # The first image lies on a centroid, others near one: small distances are those that suffer from rounding.
    centroids = torch.cat([reduced[:8], F.normalize(reduced[8:16] + 1e-3 * reduced[16:24])])
    groups = torch.tensor([0, 2, 3, 4] * 4)
    halves = [whiten(half, 3, strength=0, root=root) for half in (features[::2], features[1::2])]
    means, directions = (torch.stack([getattr(half, name) for half in halves]) for name in ("mean", "projection"))
    outliers = Outliers(means, directions, 0.5, root)
    return Model(
        network, reduction, reduced[:4], Cut(centroids, groups), outliers,
        ("", "", "a", 'b"\n', ""), image_size, images.shape[-1], 16, junk=(3,),
    )  # fmt: skip


def by_hand(model, images):
    """Reduced features, N x K distances and clusters, in float64 from the features of torch."""
    reduced = model.transform(images)
    rows, centroids = reduced.double().numpy(), model.groups.centroids.double().numpy()
    distances = np.sqrt(((rows[:, None] - centroids[None]) ** 2).sum(2))
    by_group = np.full((len(rows), model.groups.count), np.inf)
    for i, group in enumerate(model.groups.groups.tolist()):
        by_group[:, group] = np.minimum(by_group[:, group], distances[:, i])
    return reduced.numpy(), by_group, model.place(reduced).cluster.numpy()


def check(model, images, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    models.save(model, tmp_path / "model")
    onnx(tmp_path / "model", tmp_path / "x.onnx")
    session = runtime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    (features, distances, cluster), residuals = by_hand(model, images), model.measure(images)[1]
    for rows in (slice(0, 1), slice(1, 4), slice(0, len(images))):
        found = session.run(["features", "distances", "cluster", "residual"], {"images": images[rows].numpy()})
        assert np.abs(found[0] - features[rows]).max() < 1e-4
        finite = np.isfinite(distances[rows])
        assert np.array_equal(np.isfinite(found[1]), finite)
        assert np.abs(found[1][finite] - distances[rows][finite]).max() < 1e-4
        assert np.array_equal(found[2], cluster[rows])
        assert np.abs(found[3] - residuals[rows].numpy()).max() < 1e-4
    assert [(each.name, each.shape[1:], each.type) for each in session.get_inputs()] == [
        ("images", [3, model.store_size, model.store_size], "tensor(uint8)")
    ]  # fmt: skip
    return session


@pytest.fixture(scope="module")
def small(photos):
    return read_once(find(photos), 36).images


@pytest.mark.parametrize("root", [pytest.param(False, marks=pytest.mark.slow), True])
def test_distances_agree_with_torch(small, tmp_path, root):
    """With a margin around the fixed view, images on a centroid, and a group that was merged into another."""
    session = check(model_on(small, "compact", 32, root), small, tmp_path)
    about = session.get_modelmeta().custom_metadata_map
    assert about["deepcluster_version"] == deepcluster.__version__
    assert json.loads(about["names"]) == ["", "", "a", 'b"\n', ""]
    assert json.loads(about["outlier_residual"]) == 0.5
    assert (about["store_size"], about["image_size"], about["backbone"]) == ("36", "32", "compact")
    assert json.loads(about["junk"]) == [3]


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [
        pytest.param("timm:resnet18", 64, {}, marks=pytest.mark.slow),
        pytest.param("alexnet", 224, {"sobel": True}, marks=pytest.mark.slow),
        pytest.param("timm:vit_tiny_patch16_224", 64, {}, marks=pytest.mark.slow),
        pytest.param("timm:tf_efficientnet_lite0.in1k", 96, {"weights": "timm", "root": True}, marks=pytest.mark.slow),
    ],
)
def test_distances_agree_with_torch_for_other_networks(photos, tmp_path, name, image_size, options):
    images = read_once(find(photos), image_size * 9 // 8).images
    check(model_on(images, name, image_size, **options), images, tmp_path)


def test_the_comparison_sees_a_difference(small):
    model = model_on(small, "compact", 32)
    reduced, residuals = (each.numpy() for each in model.measure(small))
    distances = by_hand(model, small)[1].astype(np.float32)
    cluster = model.place(torch.from_numpy(reduced)).cluster.numpy()
    right = [reduced, distances, cluster, residuals]
    assert difference(model, small, right) < 1e-5
    for column in (0, 1, 3):
        for wrong in (right[column] + 1e-3, right[column] * np.nan):
            apart = difference(model, small, [*right[:column], wrong, *right[column + 1 :]])
            assert apart > MAX_DIFFERENCE or np.isnan(apart)
            assert np.isnan(apart) == np.isnan(wrong).any()
    other = np.where(np.arange(len(cluster)) == 5, (cluster + 2) % 5, cluster)
    assert difference(model, small, [reduced, distances, other, residuals]) > MAX_DIFFERENCE


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Blurred(Placing):
        def forward(self, images):
            return super().forward(images // 2 * 2)

    monkeypatch.setattr(sys.modules["deepcluster.export.onnx"], "Placing", Blurred)
    models.save(tiny_model(), tmp_path / "model")
    with pytest.raises(ModelError, match="onnxruntime and torch differ by"):
        onnx(tmp_path / "model", tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="is not a model"):
        onnx(tmp_path, tmp_path / "x.onnx")
    models.save(tiny_model(), tmp_path / "model")
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(DiskError, match="exists already"):
        onnx(tmp_path / "model", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'deepcluster\[onnx\]'"):
        onnx(tmp_path / "model", tmp_path / "x.onnx")
