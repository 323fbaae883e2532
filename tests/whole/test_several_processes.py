"""Several ranks: what they exchange, their checkpoints, every collective against one process, runs, and torchrun."""

import itertools
import re
import runpy
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from deepcluster import algorithm
from deepcluster.clustering.whitening import Reduction
from deepcluster.commands import session
from deepcluster.commands.cli import app, run_command
from deepcluster.errors import DeepClusterError, DeepClusterWarning, Stopped, UsageError
from deepcluster.fitting import fit as run
from deepcluster.fitting.journal import shared_lock
from deepcluster.images.decode import Undecodable
from deepcluster.images.store import read_once
from deepcluster.images.views import Augmentation
from deepcluster.learning import features, training
from deepcluster.learning.features import certainty_of
from deepcluster.learning.heads import CentroidHead, WithInstances
from deepcluster.nets.network import Network
from deepcluster.recipes.presets import read_request
from deepcluster.runtime import processes as joining
from deepcluster.runtime.compute import Compute
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.runtime.signals import stoppable
from deepcluster.seeding import generator
from deepcluster.storage.clusters_file import read_clusters
from tests.helpers.image_files import source_of
from tests.helpers.loop import learn, loop
from tests.helpers.pages import ROOT as REPOSITORY
from tests.helpers.runs import record
from tests.helpers.shared import OPTIONS, pixels


def error_of(processes: Processes, work: Callable[..., Any], *arguments: Any) -> str:
    """Return the error that a function of the processes must end with."""
    with pytest.raises((DeepClusterError, Stopped, ValueError)) as error:
        work(processes, *arguments)
    return f"{error.typename}: {error.value}"


# ---- exchanges ------------------------------------------------------------------------------------------------------


def exchanged(processes: Processes, table: Tensor, sizes: list[int], wanted: list[Tensor]) -> dict[str, Tensor]:
    own = Partition.of(processes, sizes[processes.rank])
    rows = table[own.local]
    return {
        "whole": own.all_gather(rows),
        "first": own.gather(rows),
        "third": own.gather(rows, 3),
        "fetched": own.get_rows(rows, wanted),
    }


@settings(max_examples=15)
@given(data=st.data())
def test_rows_get_to_where_they_are_wanted(ranks, data):
    count = data.draw(st.integers(1, 3))
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count).filter(any))
    kind = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool]))
    tail = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    total = sum(sizes)
    table = torch.arange(total * torch.Size(tail).numel()).view(total, *tail).to(kind)
    rows = st.lists(st.integers(0, total - 1), max_size=6).map(lambda numbers: torch.tensor(numbers, dtype=torch.int64))
    wanted = [data.draw(rows) for _ in range(count)]
    for rank, exchange in enumerate(ranks[count](exchanged, table, sizes, wanted)):
        assert torch.equal(exchange["whole"], table)
        assert torch.equal(exchange["first"], table if rank == 0 else table[:0])
        assert torch.equal(exchange["third"], table[::3] if rank == 0 else table[:0])
        assert torch.equal(exchange["fetched"], table[wanted[rank]])


VALUE = {"": None, "flags": [True, False], "path": "b\udcff/\u00e4\n", "whole": 2**70, "none": []}
FLOATS = [0.1, -0.0, 1e-320, float("inf"), 2 / 3]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
TENSORS = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in DTYPES}
TENSORS |= {"number": torch.tensor(3), "none": torch.empty(0, 4), "nan": torch.tensor([float("nan"), -0.0])}
TENSORS["turned"] = torch.arange(6.0).view(2, 3).T


def contents(tensors: dict[str, Tensor]) -> list[str]:
    return sorted(f"{name} {x.dtype} {x.shape} {x.tolist()}" for name, x in tensors.items())


def common_values(processes: Processes) -> tuple[object, ...]:
    own = {**VALUE, "rank": processes.rank}
    tensors = processes.broadcast_tensors(lambda: TENSORS if processes.is_main else {"never": torch.ones(1)})
    return (
        processes.all_reduce(torch.tensor([processes.rank])).item(),
        processes.any(processes.rank > 1),
        processes.all_gather_json(own),
        processes.broadcast_json(lambda: own),
        contents(tensors),
        repr(processes.all_gather_json(FLOATS)),
        list(processes.part(7)),
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_processes_get_the_same_values(ranks, count):
    answers = ranks[count](common_values)
    every = [{**VALUE, "rank": rank} for rank in range(count)]
    expected = (sum(range(count)), count == 3, every, every[0], contents(TENSORS))
    assert [answer[:5] for answer in answers] == [expected] * count
    assert [answer[5] for answer in answers] == [repr([FLOATS] * count)] * count
    assert [row for answer in answers for row in answer[6]] == list(range(7))


def locked(processes: Processes, folder: Path) -> None:
    """Lock a folder as on two machines, which may have no common disk."""
    with shared_lock(folder / str(processes.rank) / "run", processes):
        pass


def test_a_folder_that_not_all_see_is_refused(ranks, tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "1").symlink_to(tmp_path / "0")
    ranks[2](locked, tmp_path)
    (tmp_path / "1").unlink()
    shutil.rmtree(tmp_path / "0" / "run")
    assert all(re.match("DiskError.* -o ", error) for error in ranks[2](error_of, locked, tmp_path))


# ---- what ranks do together, also with a rank whose images cannot be read --------------------------------------------

ROWS = normalize(
    2 * torch.eye(8)[torch.arange(601) % 5] + torch.randn(601, 8, generator=torch.Generator().manual_seed(0)), dim=1
)
MANY = ROWS.repeat(17, 1) * torch.linspace(1, 2, 10217)[:, None]  # too many to be gathered
IMAGES = torch.from_numpy(pixels(60)).permute(0, 3, 1, 2)
NAN = MANY.clone()
NAN[-1, 2] = torch.nan
STILL = Augmentation(crop=(1, 1), stretch=1, flip=0)
INSTANCES = {"cluster_weight": 0.3, "loss": WithInstances(0.2)}
RESULT = (
    "clusters.csv", "features.npy", "residuals.npy", "cluster_summary.csv", "map.npy", "tree.json", "metrics.json",
    "duplicates.csv", "thumbnails.webp", "recipe.toml", "model/model.safetensors", "images.csv",
)  # fmt: skip


def own(x: Tensor, processes: Processes) -> Tensor:
    share = processes.part(len(x))
    return x[share.start : share.stop]


def stored(processes: Processes, count: int, is_mapped: bool) -> tuple[Any, ...]:
    """Return images of which every fifth cannot be read, from memory or a file."""

    def read(i: int) -> Image.Image:
        if i % 5 == 4:
            raise Undecodable("bad on purpose")
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8))

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepcluster.images.store.store_budget", lambda: 0)
        store = read_once(source_of(read, count), 6, processes, folder=Path(folder) if is_mapped else None)
        names = [path.name for path in Path(folder).iterdir()]
        assert names == ["images.u8"] * (is_mapped and len(store.images) > 0)
        return store.usable, store.skipped, torch.as_tensor(store.images)


def whitened(processes: Processes, rows: Tensor) -> Any:
    local = own(rows, processes)
    of_pass = features.Features(local, Compute(Partition.of(processes, len(local))))
    return features.fitted(Reduction(5), of_pass)


def passed(processes: Processes) -> tuple[list[int], torch.dtype]:
    """Return the shape and the type of all features in bfloat16: a rank without images does not see the type."""
    local = own(IMAGES, processes)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 12**2, 5)), 5)
    compute = Compute.of(network, local, processes=processes, dtype=torch.bfloat16)
    rows = compute.partition.all_gather(features.extract(network, local, compute))
    return [*rows.shape], rows.dtype


def learnt(processes: Processes, drawn: int, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the weights after two epochs on twelve images. Batch normalisation would be of each rank's own."""
    images = torch.randint(0, 256, (12, 8, 8, 3), generator=generator(0, "images")).byte().permute(0, 3, 1, 2)
    labels = torch.arange(24).reshape(12, 2) % torch.tensor([3, 4])
    conv, linear = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
    with torch.no_grad():
        for i, parameter in enumerate([*conv.parameters(), *linear.parameters()]):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(0, "weights", i)) / 3)
    network = Network(nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear), 5)
    network.new_head(7, generator(0, "head"))
    share = own(images, processes)
    memory, small = torch.zeros(len(share), 5), replace(STILL, size=4)
    loss = learn(
        network, share, labels, views=[STILL, STILL, small], clusters=(3, 4), size=8, lr=0.1, epochs=2,
        batch_size=batch_size, memory=memory, processes=processes,
        sample=lambda labels, draws, random: torch.randperm(12, generator=random)[:drawn], **options,
    )  # fmt: skip
    return {"loss": loss, "memory": memory, "weights": [p.detach() for p in network.parameters()]}


def small_network() -> Network:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(body, 5)


def alternated(
    processes: Processes, options: dict[str, Any] | None, most: int = 60, is_frozen: bool = True
) -> list[Any]:
    """Return two rounds without random views, which differ by rank, and the network.

    ``options``: None: the steps of examples/change_a_step.py. ``most``: The number of rows that are clustered.
    """
    if options is None:
        names = runpy.run_path(str(REPOSITORY / "examples/change_a_step.py"))
        options = {"clustering": names["ward"], "loss": names["SmoothedLoss"]()}
    network = small_network()
    network.frozen_statistics = is_frozen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithm, "MAX_CLUSTERED", most)
        rounds = loop(
            network, own(IMAGES, processes), clusters=4, rounds=2, batch_size=20, dims=3, views=2 * (STILL,),
            processes=processes, **options,
        )  # fmt: skip
        facts = [[done.loss, done.clustering, done.nmi_previous, done.changed] for done in rounds]
        return [*facts, network.body.state_dict()]


def certain(processes: Processes) -> float | None:
    network, images = small_network(), own(IMAGES, processes)
    network.classifier = (torch.randn(3, 5, generator=generator(0, "classes")), torch.zeros(3))
    return certainty_of(network, images, Compute.of(network, images, processes=processes))


def result(processes: Processes, folder: Path) -> dict[str, Any]:
    """Return files of a run whose groups and map are of fewer images than it has."""
    out, labels = folder / f"result-{processes.world_size}", folder / f"{processes.world_size}-{processes.rank}.csv"
    labels.write_text("path,label\n" + "".join(f"{row},{row // 10}\n" for row in range(40)))
    options = OPTIONS | {"rounds": 0}  # training differs by what a batch has
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepcluster.runs.run.MAX_GRAPH_ROWS", 30)
        patch.setattr("deepcluster.report.pictures.MAX_PICTURES", 20)
        named = {"labels": str(labels), "like": folder / "run"}
        request = run.Request(out, n_clusters=4, recipe=read_request(options), overwrite=True, **named)
        run.fit(pixels(), request, processes=processes)
    processes.any(False)  # wait for the main rank's files
    _, cut, annotations = read_clusters(out / "model/clusters.safetensors")
    return {name: (out / name).read_bytes() for name in RESULT} | vars(annotations) | vars(cut)


def table(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return by name: a tolerance for the results, a function and its arguments."""
    return {
        **{f"{count} images {is_mapped}": (0, stored, count, is_mapped) for count in (1, 33) for is_mapped in (0, 1)},
        "whitening": (1e-5, whitened, MANY),
        "no number": (0, error_of, whitened, NAN),
        "features in bfloat16": (0, passed),
        # In one batch, in two, and one image at a time, which only the first rank gets; of eleven some get one fewer.
        **{f"learning {size}": (1e-5, learnt, 12, size, {}) for size in (12, 7, 1)},
        "learning of eleven": (1e-5, learnt, 11, 5, {}),
        **{f"with instances {size}": (1e-5, learnt, 11, size, INSTANCES) for size in (11, 5)},
        "rounds": (1e-3, alternated, {}),
        "rounds of a sample": (1e-3, alternated, {}, 20),
        "certainty": (1e-5, certain),
        "rounds with instances": (1e-3, alternated, {"head": CentroidHead(0.1), "loss": WithInstances(0.2)}),
        "rounds with other steps": (1e-3, alternated, None),
        "run": (0, result, folder),
    }


def same(parts: list[Any], whole: Any, near: float) -> None:
    """Assert that each rank has the whole, or that the parts of all make it up."""
    if is_dataclass(whole):
        parts, whole = [vars(part) for part in parts], vars(whole)
    if isinstance(whole, dict):
        for name, value in whole.items():
            same([part[name] for part in parts if name in part], value, near)
    elif isinstance(whole, Tensor):
        each_has_all = all(part.shape == whole.shape for part in parts)
        for part in parts if each_has_all else [torch.cat(parts)]:
            torch.testing.assert_close(part, whole, rtol=near, atol=near)
            assert not each_has_all or torch.equal(part, parts[0])
    elif isinstance(whole, list | tuple):
        if any(len(part) != len(whole) for part in parts):
            parts = [[value for part in parts for value in part]]
        for *mine, value in zip(*parts, whole, strict=True):
            same(mine, value, near)
    elif isinstance(whole, float):
        assert parts == [pytest.approx(whole, rel=near, abs=near, nan_ok=True)] * len(parts)
    else:
        assert parts == [whole] * len(parts)


@pytest.fixture(scope="module")
def alone(ranks, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A folder for the table, and the results of one process."""
    folder = tmp_path_factory.mktemp("table")
    np.save(folder / "images.npy", pixels(60))
    run.fit(str(folder / "images.npy"), run.Request(out=folder / "run", n_clusters=4, recipe=read_request(OPTIONS)))
    return folder, {name: ranks[1](*work)[0] for name, (_, *work) in table(folder).items()}


@pytest.mark.parametrize(("count", "idle"), [pytest.param(3, None, marks=pytest.mark.slow), (2, 0), (3, 1)])
def test_results_are_those_of_one_process(ranks, alone, count, idle):
    folder, wholes = alone
    for name, (near, work, *arguments) in table(folder).items():
        print(name)  # shown if it fails
        same(ranks[count](work, *arguments, idle=idle), wholes[name], near)


def test_statistics_of_batches_are_the_same_in_all_processes(ranks):
    first, *others = ranks[3](alternated, {}, 60, False, idle=1)
    assert all(torch.equal(value, other[-1][name]) for other in others for name, value in first[-1].items())
    assert all(other[i][0] == first[i][0] for other in others for i in range(2))


# ---- a run by several processes, resumed -----------------------------------------------------------------------------


def fitted(processes: Processes, out: Path, steps: int | None, resume: bool) -> None:
    """Fit a run that stops after so many optimizer steps (None: it does not)."""
    recipe = read_request(OPTIONS | {"features": "memory"})
    request = run.Request(out=out, n_clusters=4, recipe=recipe, resume=resume)
    made, original = itertools.count(), training.number_of_parts

    def counted(*arguments: Any) -> int:
        if next(made) == steps:
            raise Stopped("stopped in a step")
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "number_of_parts", counted)
        run.fit(pixels(), request, processes=processes)


@pytest.mark.parametrize(
    ("first", "second"), [(3, 2), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 3), (2, 1)))]
)
def test_resumed_by_another_number_of_processes_it_says_so(ranks, tmp_path, first, second):
    out, difference = tmp_path / "run", f"processes {first} then, {second} now"
    stopped = ranks[first](error_of, fitted, out, 9, False)
    assert all(error.startswith("Stopped: ") for error in stopped)
    assert record(out)["status"] == "stopped"
    with pytest.warns(DeepClusterWarning, match=difference) if second == 1 else nullcontext():
        ranks[second](fitted, out, None, True)
    assert difference in record(out)["resumed"]
    assert record(out)["status"] == "done" and [*out.glob("images*")] == [out / "images.csv"]


def different(processes: Processes, folder: Path) -> None:
    run.fit(pixels(40 - processes.rank), run.Request(out=folder / "run"), processes=processes)


def test_other_images_in_one_process_are_seen(ranks, tmp_path):
    first, second = ranks[2](error_of, different, tmp_path)
    assert first == second and re.match("DataError: .*the array .*40 .*39 ", first)


# ---- commands under torchrun (kills of its processes: test_kills) ----------------------------------------------------


ALONE = [["fit", "-"], *([name, "run"] for name in app if name[0] != "-" and name != "fit")]


@pytest.mark.parametrize("arguments", ALONE, ids=" ".join)
def test_a_command_of_one_process_is_refused_under_torchrun(arguments, monkeypatch, ends):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert re.fullmatch(r"error: .* (torchrun.*|to a \.txt file.*)\n", ends(arguments, 2))


def test_another_rank_lets_the_main_rank_speak_first(monkeypatch, capsys, request):
    """torchrun ends it while it waits, if the main rank meets the error too."""
    request.addfinalizer(partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM)))
    waited: list[tuple[float, object]] = []
    monkeypatch.setattr(
        session.time, "sleep", lambda seconds: waited.append((seconds, signal.getsignal(signal.SIGTERM)))
    )
    monkeypatch.setenv("RANK", "1")
    assert run_command(["fit", "/nowhere"]) == 3
    assert waited == [(session.RANK_WAIT_SECONDS, signal.SIG_DFL)]
    assert capsys.readouterr().err.startswith("[rank 1] error: ")


def test_a_signal_ends_a_process_that_waits_for_the_others(monkeypatch):
    """Torch waits in compiled code, where no handler of Python runs."""
    handlers: list[object] = []

    def refuse(*_: object, **__: object) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        raise ValueError("refused")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(joining, "_end_with_launcher", lambda: None)
    monkeypatch.setattr(dist, "init_process_group", refuse)
    with stoppable():
        with pytest.raises(UsageError), joining.init_processes():
            pass
        assert callable(signal.getsignal(signal.SIGTERM)) and handlers == [signal.SIG_DFL]
