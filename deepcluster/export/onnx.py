"""The model from pixels to cluster as one ONNX graph, compared with torch before it is written."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deepcluster
from deepcluster.clustering.outliers import outside
from deepcluster.errors import ModelError, needing
from deepcluster.groups.cut import SAME
from deepcluster.images.views import fixed_view
from deepcluster.model import Model
from deepcluster.runtime.console import Display, Silent
from deepcluster.seeding import generator
from deepcluster.storage import model_files as models
from deepcluster.storage.files import check_no_file, new_file

OUTPUTS = ("features", "distances", "cluster", "residual")
MAX_DIFFERENCE = 1e-4
TRIAL_IMAGES = 5  # the graph is traced with another number
PIXELS = (
    "upright RGB image, its central square, resized to S x S by bicubic interpolation with antialiasing (Pillow),"
    " uint8, channels first"
)


class Placing(nn.Module):
    """From uint8 N x 3 x S x S images to features, distances and clusters.

    ``forward`` returns the reduced features (float32, N x d), the distance to the nearest centroid by cluster
    (float32, N x K; infinite for a number that was merged into another), the cluster (int64, N), and the residual
    (float32, N) by which an image is an outlier.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        self.network = model.network  # registered as a part of this module
        centroids = model.cut.centroids.double()
        self.centroids = centroids.T.contiguous()
        self.count = model.cut.count  # in ``forward`` the value of a tensor, which torch exports by a detour only
        self.lengths = centroids.square().sum(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cut = self.model.cut
        reduction = self.model.reduction
        outliers = self.model.outliers
        features = self.network.features(fixed_view(images, self.model.image_size))
        reduced = reduction.prepare(features) - reduction.mean
        reduced = F.normalize(reduced @ reduction.projection, eps=1e-12)
        rows = reduced.double()  # the formula of groups.cut.distances_to
        squares = rows.square().sum(1, keepdim=True) + self.lengths - 2 * (rows @ self.centroids)
        distances = squares.masked_fill(squares < SAME, 0).float().sqrt()
        by_cluster = torch.full((rows.shape[0], self.count), torch.inf)
        by_cluster = by_cluster.scatter_reduce(1, cut.cluster_of.expand(rows.shape[0], -1), distances, "amin")
        centred = outliers.prepare(features) - outliers.means.unsqueeze(1)  # 2 x N x D
        residual = outside(centred, centred @ outliers.directions).amax(0)
        return reduced, by_cluster, by_cluster.argmin(1), residual


def onnx(run: str | Path, out: Path, *, display: Display = Silent()) -> None:
    """Write the model as a graph for any number of images. Needs the extra ``onnx``.

    In: ``images``, uint8 N x 3 x S x S. Out: ``features``, ``distances``, ``cluster``, ``residual`` (see Placing). Its
    metadata has names, sizes and the limit of outliers.

    Args:
        run: A run folder, or the folder of a model.
        display: For the outcome.

    Raises:
        ModelError: onnxruntime gives other numbers than torch.

    Examples:
        >>> onnx(Path("runs/photos"), Path("photos.onnx"))
    """
    check_no_file(out)
    model = models.load(run)
    model.check_network("--to onnx")
    with needing("onnx onnxruntime onnxscript"):
        import onnxscript  # noqa: F401 (what torch's exporter is built on)
        from onnx import helper
        from onnxruntime import InferenceSession, SessionOptions
    images = _trial_images(model.store_size)
    graph = _graph(model, images[:2])
    about = {
        "deepcluster_version": deepcluster.__version__,
        "pixels": PIXELS,
        "digest": model.identity.digest,
        "backbone": str(model.network.architecture["name"]),
        "store_size": str(model.store_size),
        "image_size": str(model.image_size),
        "names": json.dumps(model.names),
        "junk": json.dumps(model.junk),
        # JSON has no infinity: null if nothing is an outlier.
        "outlier_residual": json.dumps(model.outliers.limit if np.isfinite(model.outliers.limit) else None),
    }
    helper.set_model_props(graph, about)
    content = graph.SerializeToString()
    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
    apart = difference(model, images, session.run(list(OUTPUTS), {"images": images.numpy()}))
    if not apart <= MAX_DIFFERENCE:
        raise ModelError(
            f"onnxruntime and torch differ by {apart:.1e} for this network, more than {MAX_DIFFERENCE:.0e}: nothing is"
            " written; use deepcluster predict instead"
        )
    new_file(out, lambda file: file.write(content))
    display.say(
        "Exported",
        f"{out}: {len(content) / 1e6:,.1f} MB, uint8 N x 3 x {model.store_size} x {model.store_size} to"
        f" {', '.join(OUTPUTS)}; onnxruntime and torch differ by {apart:.0e}",
    )


def difference(model: Model, images: Tensor, outputs: list[Any]) -> float:
    """Return the largest difference between a graph's outputs and the model, in features, distances or residuals.

    It is infinite if a cluster differs, unless two are at the same distance; NaN if an output is NaN.
    """
    features, distances, cluster, residual = map(torch.from_numpy, outputs)
    reduced, residuals = model.measure(images)
    placement = model.placement(reduced)
    distance = distances.gather(1, cluster.unsqueeze(1)).squeeze(1)
    if ((cluster != placement.cluster) & (placement.margin >= MAX_DIFFERENCE)).any():
        return float("inf")
    apart = torch.cat([(features - reduced).flatten(), distance - placement.distance, residual - residuals]).abs()
    return apart.max().item()  # NaN if one is


def _trial_images(size: int) -> Tensor:
    """Return smooth random images, like photographs, and one of white noise."""
    random = generator(0, "onnx")
    coarse = torch.randint(0, 256, (TRIAL_IMAGES - 1, 3, 8, 8), generator=random, dtype=torch.uint8).float()
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear").byte()
    return torch.cat([smooth, torch.randint(0, 256, (1, 3, size, size), generator=random, dtype=torch.uint8)])


def _graph(model: Model, example: Tensor) -> Any:
    placing = Placing(model).eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with silent():
        # Not with dynamo=False, which makes an invalid graph of argmin (torch 2.13).
        program = torch.onnx.export(
            placing,
            (example,),
            input_names=["images"],
            output_names=list(OUTPUTS),
            opset_version=18,  # the first whose ScatterElements takes the smallest
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def silent() -> Iterator[None]:
    """Keep the exporter's messages off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):  # onnxscript 0.6 prints
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
