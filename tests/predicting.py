"""The predictions of a model for all images of a source at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepcluster.model import Model
from deepcluster.runs.predict import predict
from deepcluster.storage import model_files as models


@dataclass
class Predicted:
    model: Model
    paths: list[str]
    reduced: torch.Tensor
    residuals: torch.Tensor
    skipped: list[tuple[str, str]]


def predicted(run: Path, images: Any) -> Predicted:
    model = models.load(run)
    parts = list(predict(model, images))
    return Predicted(
        model=model,
        paths=[path for part in parts for path in part.paths],
        reduced=torch.cat([part.reduced for part in parts]),
        residuals=torch.cat([part.residuals for part in parts]),
        skipped=[file for part in parts for file in part.skipped],
    )
