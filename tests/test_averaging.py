"""The network of a result: the mean of the weights before and after training, and a warning where these have collapsed.

That a run goes on to the same bits after it was killed between two rounds is in fitting/test_resume.py.
"""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deepcluster.errors import DeepClusterWarning, UsageError
from deepcluster.fitting import fit as run
from deepcluster.fitting.fit import collapse
from deepcluster.fitting.plan import Request
from deepcluster.learning.training import measure_statistics
from deepcluster.nets.network import as_network
from deepcluster.recipes.presets import read_request
from deepcluster.records import Clustering
from deepcluster.runtime.compute import Compute
from tests.helpers.drawings import drawings
from tests.helpers.runs import OPTIONS


def body(folder: Path) -> dict[str, Tensor]:
    """The network of a run's model."""
    tensors = load_file(folder / "model" / "model.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith("body.")}


@pytest.mark.parametrize("share", [0, 0.25])
def test_each_tensor_of_the_model_is_the_mean(fit_once, finished, share):
    before = fit_once("--labels", "folders", "--rounds", "0")
    averaged = fit_once("--labels", "folders", "--set", f"average={share}")
    start, mean, end = map(body, (before, averaged, finished))  # the last has no average
    weights = {name for name in end if "running_" not in name}  # the statistics are measured anew
    learnt = {name for name in weights if end[name].is_floating_point()}
    assert all(torch.equal(mean[name], torch.lerp(start[name], end[name], share)) for name in learnt)
    assert all(torch.equal(mean[name], start[name]) != bool(share) for name in start.keys() - weights)
    assert not any(torch.equal(start[name], end[name]) for name in learnt if name.endswith("weight"))
    is_before = (averaged / "clusters.csv").read_bytes() == (before / "clusters.csv").read_bytes()
    assert is_before or share  # the groups of a share of 0 are those before the training, too


def test_after_several_rounds_it_is_the_mean_with_the_weights_before_the_last(fit_once):
    run = fit_once("--rounds", "2", "--set", "average=.25", "--keep-checkpoints")
    once, end = (load_file(run / f"checkpoints/00000{number}.safetensors") for number in (1, 2))
    mean = {name: value for name, value in body(run).items() if value.is_floating_point() and "running_" not in name}
    assert mean and all(
        torch.equal(value, torch.lerp(once[f"network.{name}"], end[f"network.{name}"], 0.25))
        for name, value in mean.items()
    )


def test_the_statistics_of_averaged_weights_are_those_of_the_images():
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = as_network(nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8)
    measure_statistics(network, images, Compute.of(network, images, batch_size=10), seed=0)
    seen = (images / 255 - network.mean) / network.std
    torch.testing.assert_close(network.body[0].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(network.body[0].running_var, seen.var((0, 2, 3)), rtol=0.02, atol=0)

    deep = as_network(nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten()), 8)
    for few, batch in ((images[:1], 10), (images[:3], 1)):  # of maps of 1 x 1
        measure_statistics(deep, few, Compute.of(deep, few, batch_size=batch), seed=0)


def test_one_view_of_one_image_is_too_few_for_batch_normalisation(tmp_path):
    options = {**OPTIONS, "pseudo_labels": 1, "views": 1, "projection_hidden": 8, "projection_dim": 4}
    recipe = read_request(options | {"rounds": 1, "instance_temperature": 0})
    request = Request(out=tmp_path / "run", n_clusters=1, recipe=recipe)
    with pytest.raises(UsageError, match="views=2"):
        run.fit(drawings(1, 16)[0].permute(0, 2, 3, 1).numpy()[:1], request)


@pytest.mark.parametrize(
    ("sizes", "width", "collapsed"),
    [
        ([50, 30, 20], 4, False),
        ([60, 30, 10], 4, True),
        ([100, 0, 0], 1, True),
        ([40, 30, 30], 1, True),  # all features are alike
        ([40, 30, 30], 2, False),
        ([90, 10], 1, False),  # one of two has half of the images wherever training goes
        ([20, 5, 4], 4, False),  # too few images to tell
    ],
)
def test_a_collapse_is_one_cluster_or_equal_features(sizes, width, collapsed):
    clustering = Clustering(torch.empty(sum(sizes)), torch.empty(0), torch.tensor(sizes), 0.0, 1, 0)
    text = collapse(SimpleNamespace(clustering=clustering, reduced=torch.zeros(sum(sizes), width)))
    assert ("--lr" in text) == bool(text) == collapsed


# Each step takes all of a weight away and adds a gradient, which vanishes: in the end all images have equal features.
COLLAPSING = {"epochs": 5, "lr": 1.0, "weight_decay": 1.0, "momentum": 0.0, "warmup": 0.0}


@pytest.mark.parametrize(
    ("options", "collapses"), [(COLLAPSING, 1), ({"epochs": 5}, 0), (COLLAPSING | {"rounds": 0}, 0)]
)
def test_a_run_that_collapses_says_so_and_a_healthy_or_untrained_one_does_not(tmp_path, options, collapses):
    images = drawings(16, 16)[0].permute(0, 2, 3, 1).numpy()
    request = Request(out=tmp_path, n_clusters=3, recipe=read_request({**OPTIONS, "rounds": 1, **options}, "classic"))
    with warnings.catch_warnings(record=True, action="always", category=DeepClusterWarning) as caught:
        run.fit(images, request)
    texts = [str(warning.message) for warning in caught]
    assert sum("100%" in text and "--lr" in text for text in texts) == collapses
