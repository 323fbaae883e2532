"""Bytes of images through a model, as engines pass them: the values of predict, and no error about an image."""

import pickle
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.errors import UsageError
from deepcluster.model import Model
from deepcluster.nets.network import Network
from deepcluster.runs.predict import predict
from deepcluster.storage import model_files as models
from tests.helpers.image_files import png, stored
from tests.helpers.pages import ROOT
from tests.helpers.tiny import tiny_model

HEIC = Path(__file__).parent / "helpers/heic/plain.heic"


def contents() -> list[bytes]:
    """Twelve images, more than a batch, with one of each kind that cannot be used between them."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (40, 30 + i, 3), np.uint8)) for i in range(11)]
    files = [stored(image, "JPEG" if i % 2 else "PNG") for i, image in enumerate(images)] + [HEIC.read_bytes()]
    bad = [b"", b"a text", stored(images[1], "JPEG")[:900], png(30_000, 30_000, b"")]
    return [*files[:5], *bad, *files[5:]]


@pytest.fixture
def model() -> Model:
    tiny = tiny_model(("", "b", "c"))
    limit = float(tiny.measure(torch.full((1, 3, 16, 16), 128, dtype=torch.uint8))[1])
    return replace(tiny, outliers=replace(tiny.outliers, limit=limit))


def test_bytes_have_the_values_of_predict_on_the_same_files(model, tmp_path):
    batch = contents()
    for i, content in enumerate(batch):
        (tmp_path / f"{i:02}.img").write_bytes(content)
    placed = model.place(batch)
    parts = list(predict(model, tmp_path))
    reasons = {path: reason for part in parts for path, reason in part.skipped}
    assert (
        [f"{i:02}.img" for i in np.flatnonzero(placed["cluster"] < 0)]
        == [*reasons]
        == [f"{i:02}.img" for i in range(5, 9)]
    )
    assert [*filter(None, placed["reason"])] == [*reasons.values()] and "pixels" in placed["reason"][8]
    usable = placed["cluster"] >= 0
    reduced, residuals = (torch.cat([getattr(part, name) for part in parts]) for name in ("reduced", "residuals"))
    expected = model.placement(reduced)
    assert np.array_equal(placed["features"][usable], reduced.numpy())
    for name in ("cluster", "distance", "margin"):
        assert np.array_equal(placed[name][usable], vars(expected)[name].numpy())
    assert np.array_equal(placed["outlier"][usable], residuals.numpy() > model.outliers.limit)
    assert [*placed["name"][usable]] == [model.names[number] for number in expected.cluster.tolist()]
    assert {*map(len, placed.values())} == {16} and not placed["outlier"][~usable].any()
    assert all(np.isnan(placed[name][~usable]).all() for name in ("distance", "margin", "features"))


def test_a_model_goes_to_a_worker_also_after_its_first_batch(model):
    batch = contents()[:3]
    placed, copy = model.place(batch), pickle.loads(pickle.dumps(model))
    assert "_features" in vars(model) and "_features" not in vars(copy)  # a fast pass cannot be pickled
    for name, values in copy.place(batch).items():
        assert np.array_equal(values, placed[name])
    assert {*model.place([])} == {*placed} and model.place([None, "text"])["cluster"].tolist() == [-1, -1]


def test_the_worker_of_the_example_keeps_its_paths(model, tmp_path, monkeypatch):
    models.save(model, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    worker = runpy.run_path(str(ROOT / "examples/place_with_ray.py"))["Placer"](tmp_path)
    placed = worker({"path": ["a", "b"], "bytes": [contents()[0], b""]})
    assert (
        placed["path"] == ["a", "b"] and [*map(bool, placed["reason"])] == [False, True] and placed["cluster"][0] >= 0
    )


def test_a_model_of_features_places_no_images(model):
    without = replace(model, network=Network(torch.nn.Identity(), 4, architecture={"name": "features"}))
    with pytest.raises(UsageError, match="network"):
        without.place([b""])
