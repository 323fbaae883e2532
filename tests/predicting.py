"""All that a model finds in a source, where a test does not care for the parts in which it comes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepcluster.model import Model
from deepcluster.runs.predict import predict
from deepcluster.storage import model_files as models


@dataclass
class Found:
    model: Model
    paths: list[str]
    reduced: torch.Tensor
    residuals: torch.Tensor
    skipped: list[tuple[str, str]]


def predicted(run: Path, images: Any) -> Found:
    model = models.load(run)
    parts = list(predict(model, images))
    return Found(
        model=model,
        paths=[path for part in parts for path in part.paths],
        reduced=torch.cat([part.reduced for part in parts]),
        residuals=torch.cat([part.residuals for part in parts]),
        skipped=[each for part in parts for each in part.skipped],
    )
