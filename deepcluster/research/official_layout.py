"""A checkpoint as the authors' own programs of 2018 read it: AlexNet or VGG-16."""

from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from deepcluster.errors import DeepClusterError, UsageError
from deepcluster.nets import paper
from deepcluster.nets.backbone import Network
from deepcluster.nets.heads import linear_of
from deepcluster.nets.official import save_official
from deepcluster.nets.paper import PaperNet
from deepcluster.runtime.console import Display, Silent
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.files import check_no_file, new_file


def official(run: Path, out: Path, *, fold_sobel: bool = False, display: Display | None = None) -> None:
    """Export the network of a run, with its number of rounds as the epoch.

    The classifier of the last round (``top_layer``) is included where the last checkpoint has the one of this network.

    Args:
        run: The run folder.
        out: The file to make.
        fold_sobel: Make the Sobel filter part of the first convolution (:func:`deepcluster.nets.paper.fold_sobel`).
        display: Shows what was written.

    Raises:
        UsageError: The network is neither alexnet nor vgg16, or has no Sobel filter to fold.
        DiskError: There is something at ``out``, or it cannot be written.
    """
    check_no_file(out)
    display = display or Silent()
    record, model = files.read_state(
        run, lambda folder: (folder.read_json(files.RUN, {**files.RECORD, "rounds": int}), models.load_of_run(folder))
    )
    model.check_network("--to official")
    network = model.network
    network.head = _last_head(run / "checkpoints", network)
    write_official(network, out, epoch=record["rounds"], fold_sobel=fold_sobel)
    clusters = f"of {network.head.out_features:,} pseudo-labels" if isinstance(network.head, nn.Linear) else "left out"
    display.say("Exported", f"{out}: {network.architecture['name']}, top_layer {clusters}, epoch {record['rounds']}")


def write_official(network: Network, path: Path, *, epoch: int = 0, fold_sobel: bool = False) -> None:
    """Write an AlexNet or VGG-16, and its head where that is linear, into a new file of the layout of 2018.

    Raises as :func:`official` does.
    """
    body = network.body
    if not isinstance(body, PaperNet):
        name = network.architecture.get("name", type(body).__name__)
        raise UsageError(
            f"the official layout has alexnet and vgg16 only, and this network is {name}: --to hub or --to onnx take it"
        )
    if fold_sobel:
        body = paper.fold_sobel(body)
    head = network.head if isinstance(network.head, nn.Linear) else None
    new_file(path, lambda file: save_official(body, head, file, epoch=epoch))


def _last_head(folder: Path, network: Network) -> nn.Linear | None:
    """The linear classifier that the last checkpoint has for exactly this body; None where there is none."""
    checkpoint = None
    with suppress(DeepClusterError):  # the export works without a classifier
        checkpoint = Checkpoints(folder).latest()
    if checkpoint is None or "head.weight" not in checkpoint.network:
        return None
    body = network.body.state_dict()
    if not all(torch.equal(value, checkpoint.network.get(f"body.{name}", value[None])) for name, value in body.items()):
        return None
    return linear_of(checkpoint.network["head.weight"], checkpoint.network["head.bias"])
