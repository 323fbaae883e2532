"""Features (step 2): one forward pass over all images in evaluation mode, parameters untouched."""

from collections.abc import Callable

import torch
from torch import Tensor

from deepcluster.images.augment import fixed_view
from deepcluster.nets.backbone import Network


def extract(
    network: Network,
    images: Tensor,
    *,
    size: int,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """f_i = Phi(x_i; theta) for all of N x 3 x S x S uint8 images: N x D, float32, on the CPU.

    Every batch has the same shape, the last one filled up with zeros: a kernel may round differently for another
    shape, and an image must have the same features whatever comes with it.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    features = torch.empty(len(images), network.feature_dim)
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for begin in range(0, len(images), batch_size):
                batch = images[begin : begin + batch_size]
                count = len(batch)
                views = fixed_view(batch.to(device), size)
                if count < batch_size:
                    views = torch.cat([views, views.new_zeros(batch_size - count, *views.shape[1:])])
                views = views.contiguous(memory_format=torch.channels_last)
                features[begin : begin + count] = network.features(views)[:count].float().cpu()
                if progress is not None:
                    progress(begin + count, len(images))
    finally:
        network.train(training)
    return features
