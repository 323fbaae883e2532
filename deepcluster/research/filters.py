"""Protocol ``filters``: what the filters of each layer respond to, as pictures.

For each filter, a picture made by gradient ascent beside the images with the largest response.

Paper, section 4.1, after Erhan et al. 2009 and Yosinski et al. 2015, with the settings of the release's
gradient_ascent.py and activ-retrieval.py. The release starts from pixels of 0 to 255 in a network that expects
normalised ones; here the noise is normalised like every image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from deepcluster.evaluation.common import NamedFigure, check_finite
from deepcluster.evaluation.feature_maps import Layer, chosen_layers, maps_at, read_maps
from deepcluster.evaluation.options import FiltersOptions
from deepcluster.images.augment import fixed_view
from deepcluster.nets.backbone import Network
from deepcluster.runtime.console import Display, Silent
from deepcluster.seeding import generator

GREY, NOISE = 128 / 255, 20 / 255  # mean and standard deviation of the pixels at the start
SIDE, GAP, MARK = 168, 2, 14  # side of a picture, gap between pictures, height of a filter's number; px
WIDTH = 4  # filters in a row
SHOWN = 3.0  # standard deviations from grey to black or white


@dataclass(frozen=True)
class Ascent:
    """Pictures made for F filters.

    Attributes:
        pictures: F x 3 x S x S, normalised as the network sees them.
        before: Mean of each filter's map for the noise at the start.
        after: Mean of each filter's map for its picture.
    """

    pictures: Tensor
    before: Tensor
    after: Tensor


def filters(
    network: Network,
    images: Tensor,
    options: FiltersOptions | None = None,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    keep: Callable[[str, Image.Image], None],
    display: Display | None = None,
) -> Iterator[NamedFigure]:
    """Yield for each layer the number of its ``_filters`` and of those ``_shown``, and their mean responses.

    The response is the mean of the filter's map: to ``_noise``, to the picture ``_made`` for it, and to the ``_images``
    with the largest response.

    Args:
        network: In evaluation mode.
        images: uint8 N x 3 x S x S.
        options: None: the defaults.
        image_size: Side of the central square that the network sees, px.
        batch_size: Images in a pass of the network.
        seed: Seed of the noise.
        keep: Takes the name of a layer and the sheet of its pictures.
        display: Shows progress.
    """
    options, display = options or FiltersOptions(), display or Silent()
    layers = chosen_layers(network, options.layers)
    yield "images", len(images)
    progress = partial(display.progress, "images")
    best = top_images(network, layers, images, options.count, size=image_size, batch_size=batch_size, progress=progress)
    for layer, (answers, rows) in zip(layers, best, strict=True):
        chosen = evenly(len(answers), options.filters)
        size, progress = options.image_size or image_size, partial(display.progress, layer.name)
        made = ascend(network, layer, chosen, options, size=size, seed=seed, progress=progress)
        check_finite(made.after.sum(), f"the filters of {layer.name}", "lr", options.lr)
        yield f"{layer.name}_filters", len(answers)
        yield f"{layer.name}_shown", len(chosen)
        yield f"{layer.name}_noise", float(made.before.mean())
        yield f"{layer.name}_made", float(made.after.mean())
        yield f"{layer.name}_images", float(answers[chosen].mean())
        # An image with a response of 0 says nothing about the filter.
        beside = [
            [as_image(fixed_view(images[row : row + 1], image_size)[0]) for row, answer in pairs if answer != 0]
            for pairs in (zip(rows[i].tolist(), answers[i].tolist(), strict=True) for i in chosen)
        ]
        pictures = [as_image(visible(picture)) for picture in made.pictures]
        keep(layer.name, sheet(chosen, pictures, beside, options.count))


def evenly(channels: int, count: int) -> list[int]:
    """``count`` of the numbers below ``channels``, or all of them, from 0 at even steps."""
    count = min(count, channels)
    return [i * channels // count for i in range(count)]


def noise(filters: Sequence[int], size: int, seed: int) -> Tensor:
    """A grey picture in [0, 1] with noise for each filter, whatever the other filters are."""
    draws = [torch.randn(3, size, size, generator=generator(seed, "filters", number)) for number in filters]
    return (GREY + NOISE * torch.stack(draws)).clamp(0, 1)


def ascend(
    network: Network,
    layer: Layer,
    filters: Sequence[int],
    options: FiltersOptions,
    *,
    size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Ascent:
    """Pictures for some filters of a layer, in one batch.

    Each lowers the cross-entropy of its filter among all of the layer; the logits are the means of the maps. An
    iteration moves by ``lr`` along the gradient, at length 1, and decays towards the mean colour. The network is not
    changed.
    """
    mean, std = network.mean, network.std
    targets = torch.tensor(filters, device=mean.device)
    pictures = (noise(filters, size, seed).to(mean.device) - mean) / std

    def answers(pictures: Tensor) -> Tensor:
        return maps_at(network, layer, pictures * std + mean).mean((2, 3))

    def answer_of_target(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return answers(pictures).gather(1, targets[:, None])[:, 0].cpu()

    before = answer_of_target(pictures)
    for iteration in range(1, options.iterations + 1):
        pictures.requires_grad_()
        loss = F.cross_entropy(answers(pictures), targets, reduction="sum")  # the pictures are independent
        (gradient,) = torch.autograd.grad(loss, pictures)
        with torch.no_grad():
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            pictures = pictures - options.lr * (gradient / length + options.weight_decay * pictures)
            if options.blur > 0 and iteration % options.blur_every == 0:
                side = 2 * min(math.ceil(4 * options.blur), pictures.shape[-1] - 1) + 1
                pictures = gaussian_blur(pictures, [side, side], [options.blur, options.blur])
        if progress is not None:
            progress(iteration, options.iterations)
    return Ascent(pictures.detach().cpu(), before, answer_of_target(pictures))


def top_images(
    network: Network,
    layers: Sequence[Layer],
    images: Tensor,
    count: int,
    *,
    size: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """The images with the largest responses of every filter, in one pass over the images for all layers.

    Args:
        network: In evaluation mode.
        layers: Those of the filters.
        images: uint8 N x 3 x S x S.
        count: Images per filter; at most N are returned.
        size: Side of the central square that the network sees, px.
        batch_size: Images in a pass of the network.
        progress: Called with the images done and in all.

    Returns:
        For each layer the responses of its C filters (C x ``count``, descending) and the rows of these images; of equal
        ones the first.
    """
    device = network.mean.device
    best: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for begin in range(0, len(images), batch_size):
            batch = images[begin : begin + batch_size]
            views = fixed_view(batch.to(device), size)
            if len(batch) < batch_size:  # as in extract(): for another shape a kernel may round differently
                views = torch.cat([views, views.new_zeros(batch_size - len(batch), *views.shape[1:])])
            views = views.contiguous(memory_format=torch.channels_last)
            means = read_maps(network, layers, views, lambda maps: maps.mean((2, 3)))
            answers = [mean[: len(batch)].T.float().cpu() for mean in means]
            best = best or [(new[:, :0], torch.empty(len(new), 0, dtype=torch.int64)) for new in answers]
            best = [larger(*pair, new, begin, count) for pair, new in zip(best, answers, strict=True)]
            if progress is not None:
                progress(begin + len(batch), len(images))
    return best


def larger(answers: Tensor, rows: Tensor, new: Tensor, begin: int, count: int) -> tuple[Tensor, Tensor]:
    """Merge the largest answers so far (C x k) with ``new`` ones (C x B, of the images from ``begin`` on).

    Returns:
        The ``count`` largest of each row, descending, and the rows of their images.
    """
    answers = torch.cat([answers, new], 1)
    rows = torch.cat([rows, (begin + torch.arange(new.shape[1])).expand(len(new), -1)], 1)
    # Stable: of equal answers the earlier image stays in front. (topk gives no order among them.)
    order = answers.sort(stable=True, dim=1, descending=True).indices[:, :count]
    return answers.gather(1, order), rows.gather(1, order)


def visible(picture: Tensor) -> Tensor:
    """A normalised picture in [0, 1]: its mean is grey, ``SHOWN`` standard deviations above it are white."""
    return (0.5 + (picture - picture.mean()) / (2 * SHOWN * picture.std().clamp(min=1e-12))).clamp(0, 1)


def as_image(pixels: Tensor) -> Image.Image:
    """An image of 3 x H x W pixels in [0, 1]."""
    return Image.fromarray(np.ascontiguousarray((pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()))


def sheet(
    filters: Sequence[int], made: Sequence[Image.Image], beside: Sequence[Sequence[Image.Image]], count: int
) -> Image.Image:
    """A tile per filter, ``WIDTH`` of them in a row: its number, its picture, and its images beside that."""
    across = math.ceil(math.sqrt(count))
    small = (SIDE - GAP * (across - 1)) // across
    wide, high = 2 * SIDE + 3 * GAP, SIDE + GAP + MARK
    columns = min(WIDTH, len(filters))
    table = Image.new("RGB", (columns * wide, math.ceil(len(filters) / columns) * high), "white")
    draw, font = ImageDraw.Draw(table), ImageFont.load_default(10)
    for i, (number, picture, images) in enumerate(zip(filters, made, beside, strict=True)):
        left, top = i % columns * wide + GAP, i // columns * high
        draw.text((left, top), f"filter {number}", fill="black", font=font)
        top += MARK
        table.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        for j, image in enumerate(images):
            place = (left + SIDE + GAP + j % across * (small + GAP), top + j // across * (small + GAP))
            table.paste(image.resize((small, small), Image.Resampling.BICUBIC), place)
    return table
