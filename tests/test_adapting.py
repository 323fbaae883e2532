"""A network that knows something is adapted: what it knew is not lost, whatever the rounds do."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deepcluster.algorithm import alternate
from deepcluster.clustering.agreement import nmi
from deepcluster.errors import DiskError
from deepcluster.nets.backbone import build
from deepcluster.runs import build as assembly
from deepcluster.runs import fit as run
from deepcluster.runs.job import Request
from deepcluster.runs.recut import recut
from deepcluster.storage.model_files import load
from deepcluster.storage.run_folder import GRAPH, open_run
from tests.drawings import drawings
from tests.helpers.runs import record


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The weights of a compact network that tells the drawings apart, but not perfectly."""
    images, labels = drawings(20, seed=7)
    network = build("compact", image_size=24, seed=3)
    optimizer = torch.optim.SGD(network.body.parameters(), 0.02, momentum=0.9)
    head = torch.nn.Linear(network.feature_dim, 3)
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(head(network.features(images.float() / 255)), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    file = tmp_path_factory.mktemp("weights") / "compact.safetensors"
    save_file(network.body.state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The drawings as one array, and their kinds."""
    images, kinds = drawings(60)
    file = tmp_path_factory.mktemp("pictures") / "drawings.npy"
    np.save(file, images.permute(0, 2, 3, 1).numpy())
    return str(file), kinds


OPTIONS = {"image_size": 24, "epochs": 1, "view_size": 0}


@pytest.fixture(scope="module")
def adapt(pictures, pretrained, tmp_path_factory):
    """Runs on the pictures with more options than these; the same run for the same options."""

    @cache
    def run_with(**options):
        values = {**OPTIONS, "backbone": "compact", "weights": pretrained, **options}
        out = tmp_path_factory.mktemp("runs") / "run"
        return run.fit(pictures[0], Request(out=out, n_clusters=3, options=values))

    return run_with


def clusters(folder) -> list[int]:
    return [int(row["cluster"]) for row in folder.read_rows("clusters.csv")]


def same_network(folder, **options) -> bool:
    """Whether the model of a run has the network as it is before training."""
    before = build("compact", image_size=24, **options).body.state_dict()
    return all(torch.equal(value, before[name]) for name, value in load(folder.path).network.body.state_dict().items())


def ending_with(act):
    """The rounds as they are, but in the end something happens to the parameters."""

    def rounds(network, *arguments, **options):
        yield from alternate(network, *arguments, **options)
        with torch.no_grad():
            for parameter in network.body.parameters():
                act(parameter)

    return rounds


def with_noise(parameter):
    parameter.normal_(generator=torch.Generator().manual_seed(0))


def test_the_graph_of_all_rounds_is_kept_and_the_guard_says_what_it_did(adapt, pictures):
    adapted, start = adapt(), adapt(rounds=0)
    guard = record(adapted.path)["guard"]
    assert set(guard) == {"before", "after", "kept", "text"}
    assert guard["text"][1:] in (adapted.path / "report.html").read_text()
    assert guard["kept"] == (guard["after"] >= guard["before"])
    assert len(adapted.read_graph(180).rows) == 180
    assert start.read_graph(180) is None
    assert "guard" not in record(start.path)
    assert nmi(pictures[1], clusters(adapted)) >= nmi(pictures[1], clusters(start)) - 0.01


def test_recut_cuts_the_same_graph(adapt, tmp_path):
    copy = open_run(shutil.copytree(adapt().path, tmp_path / "run"))
    before = clusters(copy)
    recut(copy.path, 4)
    assert len(set(clusters(copy))) == 4
    recut(copy.path, 3)
    assert clusters(copy) == before


def test_a_damaged_graph_is_named(adapt, tmp_path):
    adapted = adapt()
    other = tmp_path / "run"
    other.mkdir()
    (other / "run.json").write_text("{}")
    (other / GRAPH).write_bytes((adapted.path / GRAPH).read_bytes()[:300])
    with pytest.raises(DiskError, match=f"{GRAPH} is damaged"):
        open_run(other).read_graph(180)
    shutil.copyfile(adapted.path / GRAPH, other / GRAPH)
    with pytest.raises(DiskError, match="its rows are not those of the images"):
        open_run(other).read_graph(100)


def test_steps_that_destroy_the_network_do_not_destroy_the_groups(adapt, pictures):
    """Rounds that turn the network into another: its own groups are worse than at the start, those of the run not."""
    harm = {"lr": 3.0, "rounds": 3, "frozen_statistics": True, "crop_min": 0.05, "crop_max": 0.1}
    runs = adapt(rounds=0), adapt(neighbours="final", **harm), adapt(**harm)
    start, unguarded, guarded = (nmi(pictures[1], clusters(folder)) for folder in runs)
    assert unguarded < start - 0.1  # else the case would show nothing
    assert guarded >= start - 0.01


def test_where_the_network_has_forgotten_the_first_one_is_kept(adapt, pretrained, tmp_path, monkeypatch):
    """All parameters are noise in the end: the model is the network as it was given, whose file may be gone by then."""
    weights = Path(shutil.copyfile(pretrained, tmp_path / "weights.safetensors"))

    def act(parameter):
        weights.unlink(missing_ok=True)
        with_noise(parameter)

    monkeypatch.setattr(assembly, "alternate", ending_with(act))
    folder = adapt(weights=str(weights), rounds=1)
    assert record(folder.path)["guard"]["kept"] is False
    assert same_network(folder, weights=pretrained)


@pytest.mark.parametrize("recipe", ["auto", pytest.param("classic", marks=pytest.mark.slow)])
def test_from_scratch_groups_that_were_clearer_before_are_kept(pictures, tmp_path, monkeypatch, recipe):
    """The features have collapsed in the end: model and groups are those of the network before training."""
    images = np.load(pictures[0])[::4]
    request = Request(out=tmp_path / "start", n_clusters=3, recipe=recipe, options=OPTIONS | {"rounds": 0})
    start = run.fit(images, request)
    monkeypatch.setattr(assembly, "alternate", ending_with(torch.Tensor.zero_))
    folder = run.fit(images, replace(request, out=tmp_path / "run", options=OPTIONS | {"rounds": 1}))
    guard = record(folder.path)["guard"]
    assert guard["kept"] is False
    assert guard["after"] > guard["before"]
    assert clusters(folder) == clusters(start)
    assert same_network(folder)
    assert "guard" not in record(start.path)


@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 1), (2, 2), (30, 1), (30, 2)])
def test_few_images_or_one_group(pictures, pretrained, tmp_path, count, k):
    options = OPTIONS | {"backbone": "compact", "weights": pretrained, "rounds": 1}
    folder = run.fit(np.load(pictures[0])[:count], Request(out=tmp_path / "run", n_clusters=k, options=options))
    assert set(clusters(folder)) == set(range(k))
    assert ("guard" in record(folder.path)) == (count == 30 and k == 2)
