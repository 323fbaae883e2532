"""Networks of timm through a whole run: with weights from nothing, to features that place their own images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcluster.model import Model
from deepcluster.runs import fit as run
from deepcluster.runs.plan import Request
from deepcluster.storage import model_files as models
from tests.helpers.runs import rows

NETWORKS = [
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_dinov2@224",
    "vit_small_patch14_dinov2@112",
    "convnext_atto",
    "resnet18",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "repvgg_a0",
    "fastvit_t8",
    "eva02_tiny_patch14_224",
    "mixer_s16_224",
]  # a name, and the size of the images where it is not the recipe's


def check(folder: Path, name: str, size: int, **options: object) -> Model:
    """A run of one round, and the same clusters and features from its model."""
    small = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)
    images = small.repeat(25, 1).repeat(25, 2)
    options = {"backbone": f"timm:{name}", "rounds": 1, "epochs": 1, "batch_size": 12, "weights": "none"} | options
    options |= {"image_size": size} if size else {}
    found = run.fit(images, Request(out=folder / "run", n_clusters=3, options=options, device="cpu")).path
    model = models.load(found)
    assert model.predict(images).tolist() == [int(row["cluster"]) for row in rows(found / "clusters.csv")]
    assert torch.equal(model.transform(images), torch.from_numpy(np.load(found / "features.npy")))
    return model


def test_a_network_of_one_size(tmp_path):
    check(tmp_path, "test_vit", 70)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(tmp_path, network):
    name, _, size = network.partition("@")
    code = f"from tests.test_networks import *; check(Path({str(tmp_path)!r}), {name!r}, {int(size or 0)})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
