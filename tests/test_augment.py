import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from deepcluster.images import views as augment
from deepcluster.images.views import (
    Augmentation,
    fixed_view,
    random_affine,
    random_colours,
    random_views,
    recolour,
    sampling_grid,
)
from deepcluster.seeding import generator
from tests.drawings import drawings

STILL = Augmentation(crop=(1, 1), stretch=1, flip=0)


def random(*index: int) -> torch.Generator:
    return generator(0, "test", *index)


def test_no_augmentation_is_the_image_and_a_flip_mirrors_it():
    images, _ = drawings(2)
    assert torch.allclose(random_views(images, 24, STILL, random()), images.float() / 255, atol=1e-5)
    assert torch.equal(fixed_view(images, 20), images[:, :, 2:22, 2:22] / 255)
    mirrored = random_views(images, 24, replace(STILL, flip=1), random())
    assert torch.allclose(mirrored, images.flip(3).float() / 255, atol=1e-5)


def test_crops_lie_inside_the_image_have_the_asked_areas_and_half_are_flipped():
    maps = random_affine(5000, Augmentation(crop=(0.2, 0.9), stretch=1.3, flip=0.5), random())
    width, height = maps[:, 0, 0].abs(), maps[:, 1, 1].abs()
    area, ratio = width * height, width / height
    assert area.min() >= 0.2 - 1e-5 and area.max() <= 0.9 + 1e-5
    assert area.mean() == pytest.approx(0.55, abs=0.02)
    assert ratio.min() >= 1 / 1.3 - 1e-4 and ratio.max() <= 1.3 + 1e-4
    assert ((maps[:, 0, 2].abs() + width) <= 1 + 1e-5).all()
    assert ((maps[:, 1, 2].abs() + height) <= 1 + 1e-5).all()
    assert (maps[:, 0, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.03)
    # Every place is possible: the crops reach all four sides.
    assert (maps[:, 0, 2] + width).max() > 0.99
    assert (maps[:, 1, 2] - height).min() < -0.99
    # Rotations go both ways.
    maps = random_affine(400, replace(STILL, rotation=90), random())
    angles = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert -90 <= angles.min() < -80 and 80 < angles.max() <= 90
    # Zooming out keeps the whole image in view.
    maps = random_affine(1000, Augmentation(crop=(1.5, 1.5), stretch=1, flip=0), random())
    assert torch.allclose(maps[:, 0, 0], torch.full((1000,), math.sqrt(1.5)))
    assert ((maps[:, 0, 2].abs() + 1) <= math.sqrt(1.5) + 1e-5).all()


def test_view_of_an_image_does_not_depend_on_the_others(monkeypatch):
    images, _ = drawings(4)
    how = Augmentation(colour=0.4, grey=0.5, rotation=10)
    changed = images.clone()
    changed[3:] = 255 - changed[3:]
    first, second = random_views(images, 20, how, random()), random_views(changed, 20, how, random())
    assert torch.equal(first[:3], second[:3]) and first.is_contiguous(memory_format=torch.channels_last)
    same = random_views(images[:1].expand(16, -1, -1, -1), 24, how, random())
    assert len(torch.unique(same.flatten(1), dim=0)) == 16  # everyone has its own
    monkeypatch.setattr(augment, "PART", 4 * images.shape[-1] ** 2)  # made in parts
    again, other = random_views(images, 20, how, random()), random_views(images, 20, how, random(1))
    assert torch.equal(again, first) and not torch.equal(other, first)


def test_colours_spread_over_their_range():
    factors = random_colours(1000, Augmentation(colour=0.4), random())
    assert torch.allclose(factors.min(0).values, torch.tensor(0.6), atol=0.01)
    assert torch.allclose(factors.max(0).values, torch.tensor(1.4), atol=0.01)
    saturation = random_colours(1000, Augmentation(grey=0.3), random())[:, 0]
    assert (saturation == 0).float().mean() == pytest.approx(0.3, abs=0.05)


def test_colours_by_their_definition():
    """Saturation, then contrast, then brightness, one after the other."""
    images, _ = drawings(3)
    views = images.float() / 255
    factors = random_colours(9, Augmentation(colour=0.4, grey=0.3), random())
    saturation, contrast, brightness = (factors[:, i].view(-1, 1, 1, 1) for i in range(3))
    grey = (views * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    expected = grey + saturation * (views - grey)
    expected = grey.mean((2, 3), keepdim=True) + contrast * (expected - grey.mean((2, 3), keepdim=True))
    expected = (brightness * expected).clamp(0, 1)
    assert torch.allclose(recolour(views.clone(), factors), expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 32])
def test_the_grid_is_that_of_torch(size):
    maps = random_affine(50, Augmentation(rotation=40), random())
    expected = torch.nn.functional.affine_grid(maps, [50, 3, size, size], align_corners=False)
    assert torch.allclose(sampling_grid(maps, size), expected, atol=1e-6)


@pytest.mark.parametrize("size", [60, 50, 40, 25])
def test_views_that_shrink_are_antialiased(size):
    images = (255 * torch.randint(0, 2, (4, 3, 64, 64), generator=generator(0, "noise"))).to(torch.uint8)
    views = random_views(images, size, STILL, generator(0, "views"))
    theirs, aliased = (
        F.interpolate(images / 255, size, mode="bilinear", antialias=antialias) for antialias in (True, False)
    )
    assert views.std() == pytest.approx(theirs.std().item(), rel=0.1)
    assert aliased.std() > 1.05 * theirs.std()  # else the case would show nothing
    torch.testing.assert_close(views.mean(), images.float().mean() / 255, atol=0.01, rtol=0)


@pytest.mark.parametrize("side", [64, 65, 91])
def test_views_that_shrink_stay_in_place(side):
    """Averages of a ramp are the ramp: only the rows at the border may differ."""
    ramp = (2.0 * torch.arange(side)).expand(1, 3, side, side)
    for size in (side // 2 + 5, side // 3, side // 6):
        views = random_views(ramp.byte(), size, STILL, random())[..., 2:-2] * 255
        expected = (2 * torch.arange(size) + 1) * side / size - 1
        torch.testing.assert_close(views, expected[2:-2].expand_as(views), atol=0.01, rtol=0)


def test_views_that_do_not_shrink_are_bilinear():
    images = torch.randint(0, 256, (3, 3, 21, 21), generator=generator(0, "noise"), dtype=torch.uint8)
    how = Augmentation(crop=(0.1, 0.5))
    places = random_affine(3, how, generator(0, "views"))
    plain = F.grid_sample(images.float(), sampling_grid(places, 21), padding_mode="border", align_corners=False) / 255
    assert torch.equal(random_views(images, 21, how, generator(0, "views")), plain)
