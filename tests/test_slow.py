"""Minutes, not seconds: the paper's networks at full size (make test-slow)."""

import numpy as np
import pytest

from deepcluster.cli import run_command
from tests.drawings import save_drawings
from tests.helpers.runs import rows

pytestmark = pytest.mark.slow


SMALLER = ["--batch-size", "32", "--lr", "0.006"]  # with the paper's 256 images VGG-16 needs 46 GB


@pytest.mark.parametrize(("backbone", "size"), [("alexnet", []), ("vgg16", SMALLER)])
def test_the_paper_s_networks_complete_a_round_on_300_images(backbone, size, tmp_path):
    images = save_drawings(tmp_path / "images", 100, 240)
    run = tmp_path / "run"
    arguments = ["--backbone", backbone, "--recipe", "v1", "--rounds", "1", "-k", "3", "-o", str(run), *size]
    assert run_command(["fit", str(images), *arguments]) == 0
    (round,) = rows(run / "history.csv")
    assert np.isfinite(float(round["loss"]))
    assert len(rows(run / "clusters.csv")) == 300
    recipe = (run / "recipe.toml").read_text()
    assert "sobel = true" in recipe
    assert "image_size = 224" in recipe
    # 300 images cannot give 256 whitened dimensions of rank more than 299; 4096 features are reduced to 256.
    assert np.load(run / "features.npy").shape == (300, 256)
