"""A checkpoint as the authors' own programs of 2018 read it: AlexNet or VGG-16."""

from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from deepcluster.errors import DeepClusterError, UsageError
from deepcluster.nets import paper
from deepcluster.nets.backbone import Network
from deepcluster.nets.official import official_checkpoint, save_official
from deepcluster.nets.paper import PaperNet
from deepcluster.runtime.display import Display, Silent
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.destination import check_no_file, write_file


def official(run: Path, out: Path, *, fold_sobel: bool = False, display: Display | None = None) -> None:
    """Write the file ``out``: the network of a run, after as many epochs as it had rounds.

    With the classifier of the last round (``top_layer``) where the run's last checkpoint has one that belongs to this
    network. ``fold_sobel``: as :func:`deepcluster.nets.paper.fold_sobel` makes it.

    Raises:
        UsageError: the network is neither alexnet nor vgg16, or has no Sobel filter to fold.
        DiskError: there is something at ``out``, or it cannot be written.
    """
    check_no_file(out)
    display = display or Silent()
    record, model = files.read_state(
        run, lambda folder: (folder.read_json(files.RUN, {**files.RECORD, "rounds": int}), models.load_of_run(folder))
    )
    network = model.network
    _check(network)
    network.head = _last_head(run / "checkpoints", network)
    write_official(network, out, epoch=record["rounds"], fold_sobel=fold_sobel)
    clusters = f"of {network.head.out_features:,} pseudo-labels" if isinstance(network.head, nn.Linear) else "left out"
    display.say("Exported", f"{out}: {network.architecture['name']}, top_layer {clusters}, epoch {record['rounds']}")


def write_official(network: Network, path: Path, *, epoch: int = 0, fold_sobel: bool = False) -> None:
    """Write an AlexNet or VGG-16, and its head where that is linear, into a new file of the layout of 2018.

    Raises as :func:`official` does.
    """
    body = _check(network)
    if fold_sobel:
        body = paper.fold_sobel(body)
    head = network.head if isinstance(network.head, nn.Linear) else None
    checkpoint = official_checkpoint(body, head, epoch=epoch)
    write_file(path, lambda file: save_official(checkpoint, file))


def _check(network: Network) -> PaperNet:
    if not isinstance(network.body, PaperNet):
        name = network.architecture.get("name", type(network.body).__name__)
        raise UsageError(
            f"the official layout has alexnet and vgg16 only, and this network is {name}: --to hub or --to onnx take it"
        )
    return network.body


def _last_head(folder: Path, network: Network) -> nn.Linear | None:
    """The linear classifier beside this very body in the last checkpoint; None where there is none."""
    found = None
    with suppress(DeepClusterError):  # an export does without
        found = Checkpoints(folder).latest()
    if found is None or "head.weight" not in found.network:
        return None
    own = network.body.state_dict()
    if not all(torch.equal(value, found.network.get(f"body.{name}", value[None])) for name, value in own.items()):
        return None  # the guard took the network back to what it had been
    weight = found.network["head.weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device="cpu")
    head.load_state_dict({"weight": weight, "bias": found.network["head.bias"]})
    return head
