"""A network that knows something is adapted: what it knew is not lost, whatever the rounds do."""

import json
import shutil
from dataclasses import replace

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


def adapt(pictures, weights, out, **options):
    options = {"backbone": "compact", "weights": weights, "image_size": 24, "epochs": 1, "view_size": 0, **options}
    return run.fit(pictures[0], Request(out=out, n_clusters=3, options=options))


def found(folder) -> list[int]:
    return [int(row["cluster"]) for row in folder.read_rows("clusters.csv")]


@pytest.fixture(scope="module")
def adapted(pictures, pretrained, tmp_path_factory):
    return adapt(pictures, pretrained, tmp_path_factory.mktemp("runs") / "run")


def test_the_graph_of_all_rounds_is_kept_and_the_guard_says_what_it_did(adapted, pictures, pretrained, tmp_path):
    guard = json.loads((adapted.path / "run.json").read_text())["guard"]
    assert set(guard) == {"before", "after", "kept", "text"}
    assert guard["text"][1:] in (adapted.path / "report.html").read_text()
    assert guard["kept"] == (guard["after"] >= guard["before"])
    graph = adapted.read_graph(180)
    assert len(graph.rows) == 180
    start = adapt(pictures, pretrained, tmp_path / "start", rounds=0)
    assert start.read_graph(180) is None
    assert "guard" not in json.loads((start.path / "run.json").read_text())
    assert nmi(pictures[1], found(adapted)) >= nmi(pictures[1], found(start)) - 0.01


def test_recut_cuts_the_same_graph(adapted):
    before = found(adapted)
    recut(adapted.path, 4)
    assert len(set(found(adapted))) == 4
    recut(adapted.path, 3)
    assert found(adapted) == before


def test_a_damaged_graph_is_named(adapted, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    (other / "run.json").write_text("{}")
    (other / GRAPH).write_bytes((adapted.path / GRAPH).read_bytes()[:300])
    with pytest.raises(DiskError, match=f"{GRAPH} is damaged"):
        open_run(other).read_graph(180)
    shutil.copyfile(adapted.path / GRAPH, other / GRAPH)
    with pytest.raises(DiskError, match="its rows are not those of the images"):
        open_run(other).read_graph(100)


@pytest.mark.parametrize("seed", [0, 1])
def test_steps_that_destroy_the_network_do_not_destroy_the_groups(pictures, pretrained, tmp_path, seed):
    """Rounds that turn the network into another: its own groups are worse than at the start, those of the run not."""
    kinds = pictures[1]
    harm = {"lr": 3.0, "rounds": 3, "frozen_statistics": True, "crop_min": 0.05, "crop_max": 0.1}
    start = nmi(kinds, found(adapt(pictures, pretrained, tmp_path / "start", rounds=0)))
    unguarded = nmi(kinds, found(adapt(pictures, pretrained, tmp_path / "own", neighbours="final", **harm)))
    guarded = nmi(kinds, found(adapt(pictures, pretrained, tmp_path / "run", **harm)))
    assert unguarded < start - 0.1  # else the case would show nothing
    assert guarded >= start - 0.01


def test_where_the_network_has_forgotten_the_first_one_is_kept(pictures, pretrained, tmp_path, monkeypatch):
    """All parameters are noise in the end: the model is the network as it was given."""

    def forgetting(network, *arguments, **options):
        yield from alternate(network, *arguments, **options)
        with torch.no_grad():
            for parameter in network.body.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(assembly, "alternate", forgetting)
    folder = adapt(pictures, pretrained, tmp_path / "run", rounds=1)
    assert json.loads((folder.path / "run.json").read_text())["guard"]["kept"] is False
    wanted = build("compact", image_size=24, weights=pretrained).body.state_dict()
    got = load(folder.path).network.body.state_dict()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("recipe", ["auto", "classic"])
def test_from_scratch_groups_that_were_clearer_before_are_kept(pictures, tmp_path, monkeypatch, recipe):
    """The features have collapsed in the end: model and groups are those of the network before training."""

    def collapsing(network, *arguments, **options):
        yield from alternate(network, *arguments, **options)
        with torch.no_grad():
            for parameter in network.body.parameters():
                parameter.zero_()

    images = np.load(pictures[0])[::4]
    options = {"image_size": 24, "epochs": 1, "view_size": 0, "rounds": 1}
    request = Request(n_clusters=3, recipe=recipe, options=options)
    start = run.fit(images, replace(request, out=tmp_path / "start", options=options | {"rounds": 0}))
    monkeypatch.setattr(assembly, "alternate", collapsing)
    folder = run.fit(images, replace(request, out=tmp_path / "run"))
    record = json.loads((folder.path / "run.json").read_text())
    assert record["guard"]["kept"] is False
    assert record["guard"]["after"] > record["guard"]["before"]
    assert found(folder) == found(start)
    wanted = build("compact", image_size=24).body.state_dict()
    got = load(folder.path).network.body.state_dict()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert "guard" not in json.loads((start.path / "run.json").read_text())


@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 1), (2, 2), (30, 1), (30, 2)])
def test_few_images_or_one_group(pictures, pretrained, tmp_path, count, k):
    images = np.load(pictures[0])[:count]
    options = {"backbone": "compact", "weights": pretrained, "image_size": 24, "epochs": 1, "view_size": 0, "rounds": 1}
    folder = run.fit(images, Request(out=tmp_path / "run", n_clusters=k, options=options))
    assert set(found(folder)) == set(range(k))
    assert ("guard" in json.loads((folder.path / "run.json").read_text())) == (count == 30 and k == 2)


def test_weights_that_are_gone_when_the_run_ends_cost_nothing(pictures, pretrained, tmp_path, monkeypatch):
    weights = tmp_path / "weights.safetensors"
    shutil.copyfile(pretrained, weights)

    def forgetting(network, *arguments, **options):
        yield from alternate(network, *arguments, **options)
        weights.unlink()
        with torch.no_grad():
            for parameter in network.body.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(assembly, "alternate", forgetting)
    folder = adapt(pictures, str(weights), tmp_path / "run", rounds=1)
    assert json.loads((folder.path / "run.json").read_text())["guard"]["kept"] is False
