"""Features (step 2): one forward pass over all images in evaluation mode, parameters untouched; the map of step 3."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.blocks import of_all
from deepcluster.clustering.whitening import Reduction, Whitening, unit_rows
from deepcluster.images.views import centre_crop, fixed_view
from deepcluster.nets.fast_pass import features_pass, in_batches
from deepcluster.nets.network import Network
from deepcluster.runtime.ahead import prefetched, to_device
from deepcluster.runtime.compute import FEATURES_PHASE, Compute, ignore_progress
from deepcluster.runtime.devices import exact_float32
from deepcluster.runtime.partition import Partition

CROP_SHARE = 5 / 7  # of the side of an image: 160 of 224 px
MIN_SIDE = 8  # px; with fewer the last layers of `compact` have nothing to see
MAX_PAIRS = 1000
MAX_CERTAINTY_IMAGES = 200  # the standard error of the mean is .02
# Up to so many images, every rank gets all features (82 MB of 2048 each). For more images each rank sums its own rows,
# so the last digits of the map depend on the number of ranks.
MAX_GATHERED = 10_000


@dataclass(frozen=True)
class Features:
    """The features of a pass over the images: step 2."""

    rows: Tensor  #: n x D: this rank's
    compute: Compute  #: of the pass; its partition has the owners of the rows
    #: Features of some images and of their centre crops, 2 x m x D; None if step 3 needs none.
    pairs: Tensor | None = None


def extract(
    network: Network,
    images: Tensor,
    compute: Compute | None = None,
    *,
    embedded: bool = False,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute f_i = Phi(x_i; theta) for all images, in evaluation mode.

    Args:
        images: uint8, N x 3 x S x S.
        compute: Device, size, batch size and type of the pass. None: one process has all, and sees images of S px.
        embedded: Return the network's projection of the features, if it has one: the rounds cluster these.
        forward: ``features_pass`` of the network, if it is made already.

    Returns:
        N x D, in the type of the network's last operation (to store bfloat16 as float32 would only take memory), and on
        the network's device if it has room for them.

    Examples:
        >>> images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
        >>> extract(build("compact", image_size=16), images).shape
        torch.Size([4, 128])
    """
    compute = compute or Compute.of(network, images)
    batch_size = compute.batch_size
    training = network.training
    in_float32 = compute.dtype == torch.float32
    width = network.embedding_dim if embedded else network.feature_dim
    device = compute.device_for(width)
    features = torch.empty(0, width, device=device)
    count = len(images)
    if not count and not compute.partition.processes.alone:  # a rank without images needs the type of the others' rows
        images = images.new_zeros(1, *images.shape[1:])

    def prepare(begin: int) -> tuple[int, int, Tensor]:
        batch = images[begin : begin + batch_size]
        views = fixed_view(to_device(batch, compute.device), compute.size)
        return begin, begin + len(batch), views.contiguous(memory_format=torch.channels_last)

    network.eval()
    forward = forward or features_pass(network, batch_size, compute.dtype)
    try:
        with (
            torch.no_grad(),
            torch.autocast(compute.device.type, compute.dtype, enabled=not in_float32),
            exact_float32() if in_float32 else nullcontext(),
        ):
            for begin, end, views in prefetched(prepare, range(0, len(images), batch_size), compute.device):
                outputs = forward(views)
                outputs = in_batches(network.embed, batch_size, outputs) if embedded else outputs
                if begin == 0:
                    features = torch.empty(len(images), outputs.shape[1], dtype=outputs.dtype, device=device)
                features[begin:end] = outputs.to(device)
                compute.progress(FEATURES_PHASE, end, len(images))
    finally:
        network.train(training)
    return features[:count]


def crop_side(size: int) -> int:
    """Return the side of the centre crops of images of ``size`` px."""
    return min(size, max(MIN_SIDE, round(CROP_SHARE * size)))


def features_of(
    network: Network,
    images: Tensor,
    compute: Compute,
    rows: Tensor | None = None,
    *,
    embedded: bool = False,
    pairs: bool = False,
) -> Features:
    """Return the features of all images, on the network's device if it has room for them. A collective.

    Args:
        images, compute, embedded: As in :func:`extract`.
        rows: The features, if they are known; None: a pass computes them.
        pairs: Compute the features of some centre crops, too.
    """
    rows = extract(network, images, compute, embedded=embedded) if rows is None else rows
    rows = rows.to(compute.device_for(rows.shape[1]))
    if not pairs:
        return Features(rows, compute)
    chosen, inside, of_some = _evenly_chosen(compute, MAX_PAIRS)
    size = crop_side(compute.size)
    of_crops = extract(network, centre_crop(images[inside], size), replace(of_some, size=size), embedded=embedded)
    both = compute.partition.index_select(rows, chosen), of_some.partition.all_gather(of_crops)
    return Features(rows, compute, torch.stack([view.cpu().float() for view in both]))


def device_of(reduction: Reduction, features: Features) -> torch.device:
    """Return the device that clusters all reduced features: it has room for twice their size. A collective."""
    return features.compute.device_for(2 * (reduction.dims or features.rows.shape[1]), of_all=True)


def fitted(reduction: Reduction, features: Features) -> Whitening:
    """Return the map of step 3, the same on all ranks. A collective."""
    partition = features.compute.partition
    columns = features.rows.shape[1] + (len(reduction.classifier[1]) if reduction.classifier else 0)
    is_gathered = partition.total <= max(MAX_GATHERED, columns)
    all_reduce = of_all if is_gathered else partition.processes.all_reduce
    rows = partition.all_gather(features.rows) if is_gathered else features.rows
    made = reduction.fit(rows, features.pairs, device_of(reduction, features), all_reduce)
    # From the main rank, because another machine may flip the sign of an eigenvector.
    tensors = partition.processes.broadcast_tensors(lambda: {"mean": made.mean, "projection": made.projection})
    return replace(made, mean=tensors["mean"], projection=tensors["projection"])


def reduced_by(reduction: Reduction, features: Features) -> Tensor:
    """Return this rank's features as rows of length 1 (n x d), on the device that clusters all. A collective."""
    device = device_of(reduction, features)
    if reduction.dims is None:
        return unit_rows(features.rows, device)
    return fitted(reduction, features)(features.rows, device)


def certainty_of(network: Network, images: Tensor, compute: Compute, features: Tensor | None = None) -> float | None:
    """Return the mean over some images of the largest class probability, 0 to 1. A collective.

    None for a network that came without a classifier. ``features``: Of all images, if they are known. The other
    arguments are as in :func:`extract`.
    """
    if network.classifier is None:
        return None
    _, inside, of_some = _evenly_chosen(compute, MAX_CERTAINTY_IMAGES)
    features = extract(network, images[inside], of_some) if features is None else features[inside]
    largest = F.linear(features.float().cpu(), *network.classifier).softmax(1).amax(1)
    return float(compute.partition.processes.all_reduce(largest.double().sum())) / of_some.partition.total


def _evenly_chosen(compute: Compute, count: int) -> tuple[Tensor, Tensor, Compute]:
    """Return ``count`` evenly chosen rows, their numbers among this rank's rows, and the settings for a pass over them.

    A collective.
    """
    partition = compute.partition
    chosen = torch.linspace(0, partition.total - 1, min(partition.total, count), dtype=torch.float64).long()
    local = partition.local
    inside = chosen[(local.start <= chosen) & (chosen < local.stop)] - local.start
    of_some = Partition.of(partition.processes, len(inside))
    return chosen, inside, replace(compute, partition=of_some, progress=ignore_progress)  # the large pass alone reports
