from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.drawings import KINDS, draw


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sub-folder of 16 PNG files for each kind."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(7)
    for kind in KINDS:
        (root / kind).mkdir()
        for i in range(16):
            Image.fromarray(draw(kind, random)).save(root / kind / f"{i:02}.png")
    return root
