import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import deepcluster
from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import ClassProbabilities, Preparation, whiten
from deepcluster.errors import ModelError, UsageError
from deepcluster.export import onnx
from deepcluster.export.onnx import MAX_DIFFERENCE, Placing, difference
from deepcluster.groups.cut import Cut
from deepcluster.images import find
from deepcluster.images.store import read_once
from deepcluster.learning.features import extract
from deepcluster.model import Model
from deepcluster.nets.network import build
from deepcluster.runtime.compute import Compute
from deepcluster.seeding import generator
from deepcluster.storage import model_files as models
from tests.helpers.tiny import tiny_model


def model_on(images, name, image_size, root=False, **options):
    """A model whose features, whitening and centroids come from these images; group 1 has none (it was merged)."""
    network = build(name, image_size=image_size, seed=0, **options).eval()
    features = extract(network, images, Compute.of(network, images, size=image_size, batch_size=16))
    random = generator(0, "classes")
    weight = torch.randn(7, features.shape[1], generator=random)
    classes = ClassProbabilities(weight, torch.randn(7, generator=random), torch.tensor(0.5)) if root else None
    reduction = whiten(features, 16, prepare=Preparation(root, classes))
    reduced = reduction(features)
    # The first image lies on a centroid, others near one: small distances are those that suffer from rounding.
    centroids = torch.cat([reduced[:8], F.normalize(reduced[8:16] + 1e-3 * reduced[16:24])])
    groups = torch.tensor([0, 2, 3, 4] * 4)
    halves = [whiten(half, 3, strength=0, prepare=Preparation(root)) for half in (features[::2], features[1::2])]
    means, directions = (torch.stack([getattr(half, name) for half in halves]) for name in ("mean", "projection"))
    outliers = Outliers(means, directions, 0.5, Preparation(root))
    return Model(
        network, reduction, reduced[:4], Cut(centroids, groups), outliers,
        image_size, images.shape[-1], 16, names=("", "", "a", 'b"\n', ""), junk=(3,),
    )  # fmt: skip


def by_hand(model, images):
    """Reduced features, N x K distances and clusters, in float64 from the features of torch."""
    reduced = model.transform(images)
    rows, centroids = reduced.double().numpy(), model.cut.centroids.double().numpy()
    distances = np.sqrt(((rows[:, None] - centroids[None]) ** 2).sum(2))
    by_cluster = np.full((len(rows), model.cut.count), np.inf)
    for i, group in enumerate(model.cut.cluster_of.tolist()):
        by_cluster[:, group] = np.minimum(by_cluster[:, group], distances[:, i])
    return reduced.numpy(), by_cluster, model.placement(reduced).cluster.numpy()


SLOW = [
    ("compact", 32, {}), ("timm:resnet18", 64, {}), ("alexnet", 224, {"sobel": True}),
    ("timm:vit_tiny_patch16_224", 64, {}), ("timm:tf_efficientnet_lite0.in1k", 96, {"weights": "timm", "root": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [("compact", 32, {"root": True}), *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)],
)
def test_a_graph_computes_as_torch(photos, tmp_path, monkeypatch, name, image_size, options):
    """With a margin around the fixed view, images on a centroid, and a group that was merged into another.

    A graph that computes something else, as one of another cut, is not written.
    """
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images = read_once(find(photos), image_size * 9 // 8).images
    model = model_on(images, name, image_size, **options)
    models.save(model, tmp_path / "model")
    onnx(tmp_path / "model", tmp_path / "x.onnx")
    session = runtime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    expected = [*by_hand(model, images), model.measure(images)[1].numpy()]
    for rows in (slice(0, 1), slice(1, 4), slice(0, len(images))):
        outputs = session.run(["features", "distances", "cluster", "residual"], {"images": images[rows].numpy()})
        for output, right in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(output, right[rows], rtol=0, atol=1e-4)
    (given,), side = session.get_inputs(), image_size * 9 // 8
    assert (given.name, given.shape[1:], given.type) == ("images", [3, side, side], "tensor(uint8)")
    about = session.get_modelmeta().custom_metadata_map
    assert about["deepcluster_version"] == deepcluster.__version__
    assert (about["store_size"], about["image_size"], about["backbone"]) == (str(side), str(image_size), name)
    names, junk, limit = (json.loads(about[key]) for key in ("names", "junk", "outlier_residual"))
    assert (names, junk, limit) == (["", "", "a", 'b"\n', ""], [3], 0.5)

    graph = pytest.importorskip("onnx").load(tmp_path / "x.onnx")
    monkeypatch.setattr(sys.modules["deepcluster.export.onnx"], "_graph", lambda *_: graph)
    moved = Cut(model.cut.centroids + 1e-3, model.cut.cluster_of)
    models.save(replace(model, cut=moved), tmp_path / "model")
    with pytest.raises(ModelError, match="differ by"):
        onnx(tmp_path / "model", tmp_path / "y.onnx")
    assert not (tmp_path / "y.onnx").exists()


def test_the_comparison_sees_a_difference(photos, monkeypatch):
    small = read_once(find(photos), 36).images
    model = model_on(small, "compact", 32)
    placing = Placing(model)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(
            Cut, "count", property(lambda _: pytest.fail("a tensor's value: torch exports in vain, and again"))
        )
        right = [output.numpy() for output in placing(small)]
    assert difference(model, small, right) < 1e-5
    for column in (0, 1, 3):
        for wrong in (right[column] + 1e-3, right[column] * np.nan):
            apart = difference(model, small, [*right[:column], wrong, *right[column + 1 :]])
            assert apart > MAX_DIFFERENCE or np.isnan(apart)
            assert np.isnan(apart) == np.isnan(wrong).any()
    right[2][5] = (right[2][5] + 2) % 5
    assert difference(model, small, right) > MAX_DIFFERENCE


def test_an_export_without_a_model_or_the_package_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ModelError):
        onnx(tmp_path, tmp_path / "x.onnx")
    models.save(tiny_model(), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="pip install onnx onnxruntime onnxscript"):
        onnx(tmp_path / "model", tmp_path / "x.onnx")
