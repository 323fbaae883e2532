"""Features (step 2): one forward pass over all images in evaluation mode, parameters untouched."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from deepcluster.images.views import fixed_view
from deepcluster.nets.fast_pass import features_pass
from deepcluster.nets.network import Network
from deepcluster.runtime.devices import CPU, exact_float32, moved
from deepcluster.runtime.threads import made_ahead


def extract(
    network: Network,
    images: Tensor,
    *,
    size: int,
    batch_size: int = 256,
    embedded: bool = False,
    dtype: torch.dtype = torch.float32,
    where: torch.device = CPU,
    compute: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """f_i = Phi(x_i; theta) for all images, in evaluation mode.

    Every batch has the same shape, the last one filled up with zeros: a kernel may round differently for another shape,
    and an image must have the same features whatever comes with it.

    Args:
        images: uint8, N x 3 x S x S.
        size: Side of the central square that the network sees, px.
        embedded: The network's projection of the features, where it has one: what the rounds cluster.
        dtype: Type of the network's operations.
        where: The device that keeps the features.
        compute: ``features_pass`` of the network, by whoever extracts again and again from one that stays as it is.
        progress: Called with the images done and in all.

    Returns:
        N x D, in the type of the network's last operation: to store bfloat16 as float32 would only take memory.
    """
    device = next(network.parameters()).device
    training = network.training
    exact = dtype == torch.float32
    features = torch.empty(0, network.embedding_dim if embedded else network.feature_dim, device=where)

    def prepare(begin: int) -> tuple[int, int, Tensor]:
        batch = images[begin : begin + batch_size]
        views = fixed_view(moved(batch, device), size)
        if len(batch) < batch_size:
            views = torch.cat([views, views.new_zeros(batch_size - len(batch), *views.shape[1:])])
        return begin, begin + len(batch), views.contiguous(memory_format=torch.channels_last)

    network.eval()
    compute = compute or features_pass(network, dtype)
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, dtype, enabled=not exact),
            exact_float32() if exact else nullcontext(),
        ):
            for begin, end, views in made_ahead(prepare, range(0, len(images), batch_size), device):
                found = compute(views)
                found = (network.embed(found) if embedded else found)[: end - begin]
                if begin == 0:
                    features = torch.empty(len(images), found.shape[1], dtype=found.dtype, device=where)
                features[begin:end] = found.to(where)
                if progress is not None:
                    progress(end, len(images))
    finally:
        network.train(training)
    return features
