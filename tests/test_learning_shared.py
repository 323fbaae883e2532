"""Several processes train as one: the same loss of the same sample, up to the order of sums."""

import runpy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcluster.images.views import Augmentation, each_once
from deepcluster.learning.batches import Batch, strides
from deepcluster.learning.heads import Outputs, WithInstances
from deepcluster.nets.network import Network
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.seeding import generator
from tests.loop import learn
from tests.pages import ROOT

STILL = Augmentation(crop=(1, 1), stretch=1, flip=0)
SMALL = Augmentation(crop=(1, 1), stretch=1, flip=0, size=4)


INSTANCES = {"cluster_weight": 0.3, "loss": WithInstances(0.2)}


def learnt(processes: Processes, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """The weights after two epochs on twelve images; without batch normalisation, which is of each process's own."""
    images = torch.randint(0, 256, (12, 8, 8, 3), generator=generator(0, "images")).byte().permute(0, 3, 1, 2)
    labels = torch.arange(24).reshape(12, 2) % torch.tensor([3, 4])
    conv, linear = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
    with torch.no_grad():
        for i, parameter in enumerate([*conv.parameters(), *linear.parameters()]):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(0, "weights", i)) / 3)
    body = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    network = Network(body, 5)
    network.new_head(7, generator(0, "head"))
    share = images[processes.part(12).start : processes.part(12).stop]
    memory = torch.zeros(len(share), 5)
    options = {"views": [STILL, STILL, SMALL], "clusters": (3, 4), "sample": each_once, **options}
    options |= {"size": 8, "lr": 0.1, "epochs": 2, "batch_size": batch_size, "memory": memory}
    loss = learn(network, share, labels, processes=processes, **options)
    return {"loss": loss, "memory": memory, "weights": [p.detach() for p in network.parameters()]}


@pytest.mark.parametrize("options", [{}, INSTANCES], ids=["clusters", "instances"])
@pytest.mark.parametrize("batch_size", [12, 7, 5])  # one batch of 12; 6 and 6; 4, 4 and 4
def test_processes_train_as_one_does(ranks, batch_size, options):
    (alone,) = ranks[1](learnt, batch_size, options)
    for count in (2, 3):
        _same(alone, ranks[count](learnt, batch_size, options))


@pytest.mark.parametrize("batch_size", [11, 1])
def test_an_image_that_fills_up_counts_once(ranks, batch_size):
    """Of five images one process gets one less; of one image all but the first get none."""
    work, options = (odd, INSTANCES) if batch_size > 1 else (learnt, {})
    (alone,) = ranks[1](work, batch_size, options)
    for count in (2, 3):
        _same(alone, ranks[count](work, batch_size, options))


def odd(processes: Processes, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    def eleven(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
        return torch.randperm(12, generator=random)[:11]

    return learnt(processes, batch_size, {"sample": eleven, **options})


def _same(alone: dict[str, Any], all: list[dict[str, Any]]) -> None:
    assert torch.allclose(torch.cat([each["memory"] for each in all]), alone["memory"], atol=1e-6)
    for each in all:
        assert each["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        for found, expected in zip(each["weights"], alone["weights"], strict=True):
            assert (found - expected).abs().max() < 1e-6


def test_what_fills_up_is_behind_what_is_new():
    for drawn in range(1, 14):
        for count in (1, 2, 3, 5):
            parts = strides(torch.arange(drawn), count)
            batch = Batch(0, torch.arange(drawn), parts, 0, torch.empty(0))
            new = [part[:n] for part, n in zip(parts, batch.new, strict=True)]
            assert sorted(torch.cat(new).tolist()) == list(range(drawn))


def changed_steps(processes: Processes, rows: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels, and this rank's loss, of the two steps of examples/change_a_step.py."""
    names, own = runpy.run_path(str(ROOT / "examples/change_a_step.py")), processes.part(len(rows))
    part, stride = rows[own.start : own.stop], slice(processes.rank, None, processes.world_size)
    (clustering,) = names["ward"](part, [5], None, seed=0, round=0, partition=Partition.of(processes, len(part)))
    outputs = Outputs(
        torch.zeros(2, 2), logits[:, stride].flatten(0, 1), labels[stride], [5], torch.arange(len(labels))
    )
    return clustering.labels, names["SmoothedLoss"]()(outputs, 1.0, processes)[0]


def test_the_steps_of_the_example_are_those_of_one_process(ranks):
    random = torch.Generator().manual_seed(0)
    given = (
        torch.rand(60, 4, generator=random),
        torch.rand(2, 4, 5, generator=random),
        torch.tensor([[0], [3], [4], [1]]),
    )
    ((labels, loss),) = ranks[1](changed_steps, *given)
    both = ranks[2](changed_steps, *given)
    assert all(torch.equal(shared, labels) for shared, _ in both)
    assert torch.allclose(sum(part for _, part in both) / 2, loss)
