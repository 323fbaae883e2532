"""A run by several processes: every image once, equal steps, the result of one process where it can be, resuming."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from deepcluster.algorithm import conclude
from deepcluster.clustering.whitening import Reduction
from deepcluster.errors import DeepClusterWarning, Stopped
from deepcluster.images import Source
from deepcluster.images.decode import Undecodable
from deepcluster.images.store import read_once
from deepcluster.learning import features, training
from deepcluster.learning.heads import CentroidHead, new_linear_head
from deepcluster.nets.network import Network
from deepcluster.place import Place
from deepcluster.runs import fit as run
from deepcluster.runs.build import Steps
from deepcluster.runs.predict import Prediction, predict
from deepcluster.runtime.processes import Processes
from deepcluster.storage import model_files as models
from tests.helpers.runs import record
from tests.helpers.shared import OPTIONS, files_of, pixels
from tests.loop import loop
from tests.ranks import Ranks
from tests.test_own_steps import STEPS
from tests.tiny import tiny_run

SIZE = 6


def numbered(count: int, bad: frozenset[int]) -> Source:
    """Images that carry their number, of which some cannot be read."""

    def read(i: int, size: int | None = None) -> Image.Image:
        if i in bad:
            raise Undecodable("bad on purpose")
        noise = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        noise[0, 0] = i
        return Image.fromarray(noise)

    return Source("numbered", "python:array", tuple(f"{i:02}" for i in range(count)), read, None, ())


def small_network() -> Network:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(body, 5)


def trained(processes: Processes, count: int, bad: frozenset[int], batch: int, memory: bool) -> dict[str, Any]:
    store = read_once(numbered(count, bad), SIZE, processes)
    network, seen, original = small_network(), list[int](), features.fixed_view
    k = min(3, len(store.kept))

    def recorded(images: Tensor, size: int) -> Tensor:
        seen.extend(images[:, 0, 0, 0].tolist())
        return original(images, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "fixed_view", recorded)
        head = CentroidHead(0.1) if memory else new_linear_head
        options = {"clusters": k, "rounds": 2, "batch_size": batch, "dims": 4, "reuse_features": memory, "head": head}
        rounds = list(loop(network, store.images, **options, processes=processes))
    result = conclude(
        network, store.images, clusters=k, reduction=Reduction(4),
        place=Place.of(network, store.images, processes=processes),
    )  # fmt: skip
    return {
        "kept": store.kept, "skipped": store.skipped, "seen": seen[: len(store.images)],
        "losses": [each.loss for each in rounds], "labels": [each.clustering.labels for each in rounds],
        "reduced": result.reduced, "final": result.clustering.labels, "rows": len(store.images),
        "weights": {name: value.clone() for name, value in network.body.state_dict().items()},
    }  # fmt: skip


@pytest.mark.parametrize("examples", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_no_hang_equal_steps_and_every_image_once(ranks, examples):
    @settings(max_examples=examples, deadline=None)
    @given(data=st.data())
    def drawn(data: st.DataObject) -> None:
        once(ranks, data)

    drawn()


def once(ranks: dict[int, Ranks], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 3))
    count = data.draw(st.integers(1, 33))
    bad = data.draw(st.frozensets(st.integers(0, count - 1), max_size=count - 1))
    batch = data.draw(st.integers(1, 8))
    results = ranks[number](trained, count, bad, batch, data.draw(st.booleans()))
    usable, first = [i for i in range(count) if i not in bad], results[0]
    assert [image for result in results for image in result["seen"]] == usable
    for result in results:
        assert list(result["kept"]) == usable
        assert [path for path, _ in result["skipped"]] == [f"{i:02}" for i in sorted(bad)]
        assert result["losses"] == first["losses"]
        assert all(map(torch.equal, result["labels"], first["labels"]))
        assert torch.equal(result["final"], first["final"])
        assert result["weights"].keys() == first["weights"].keys()
        assert all(torch.equal(value, first["weights"][name]) for name, value in result["weights"].items())
    assert sum(len(result["reduced"]) for result in results) == len(first["final"]) == len(usable)


OWN = " with own steps"


def fitted(processes: Processes, out: Path, recipe: str, steps: int | None, resume: bool) -> str:
    """A run that stops after so many optimizer steps (None: it does not); returns what came of it."""
    request = run.Request(
        out=out, n_clusters=4, recipe=recipe.removesuffix(OWN),
        options=OPTIONS | ({"sobel": False} if recipe == "v1" else {}),
        resume=resume, steps=Steps(**STEPS) if recipe.endswith(OWN) else Steps(),
    )  # fmt: skip
    made = 0

    def counted(*arguments: Any) -> int:
        nonlocal made
        if made == steps:
            raise Stopped("stopped in a step")
        made += 1
        return original(*arguments)

    original = training.number_of_parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "number_of_parts", counted)
        try:
            run.fit(pixels(), request, processes=processes)
        except Stopped as error:
            return str(error)
    return "done"


@pytest.mark.parametrize(
    ("count", "recipe"),
    [
        pytest.param(2, "auto", marks=pytest.mark.slow),
        (2, f"classic{OWN}"),
        pytest.param(3, "v1", marks=pytest.mark.slow),
    ],
)
def test_resumed_by_as_many_processes_it_is_bit_identical(ranks, tmp_path, count, recipe):
    """Stopped in its first round, and in its second: six steps each."""
    assert ranks[count](fitted, tmp_path / "whole", recipe, None, False) == ["done"] * count
    for steps in (2, 9):
        out = tmp_path / str(steps)
        ends = ranks[count](fitted, out, recipe, steps, False)
        assert len(ends) == count and all(end.startswith("stopped in a step; ") for end in ends)
        assert record(out)["status"] == "stopped"
        assert ranks[count](fitted, out, recipe, None, True) == ["done"] * count
        assert files_of(out) == files_of(tmp_path / "whole")
        assert not list(out.glob("images*"))


OTHERS = [(first, second) for first in (1, 2, 3) for second in (1, 2, 3) if first != second]


@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*pair, marks=() if pair == (3, 2) else pytest.mark.slow) for pair in OTHERS]
)
def test_resumed_by_another_number_of_processes_it_says_so(ranks, tmp_path, first, second):
    out, difference = tmp_path / "run", f"processes {first} then, {second} now"
    ranks[first](fitted, out, "auto", 9, False)
    with pytest.warns(DeepClusterWarning, match=difference) if second == 1 else nullcontext():
        assert ranks[second](fitted, out, "auto", None, True) == ["done"] * second
    assert difference in record(out)["resumed"]
    assert record(out)["status"] == "done"


def test_pixels_beyond_memory_are_in_a_file_of_each_process(ranks, tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    numbers = ranks[2](_mapped, tmp_path)
    assert [len(part) for part in numbers] == [3, 5]
    assert torch.cat(numbers).tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert [path.name for path in tmp_path.glob("*/*")] == ["images.u8"] * 2


def _mapped(processes: Processes, folder: Path) -> Tensor:
    """The numbers that the images of a process carry."""
    own = folder / str(processes.rank)
    store = read_once(numbered(9, frozenset({2})), SIZE, processes, folder=own, memory_budget=0)
    return store.images[:, 0, 0, 0].clone()


def predicted(processes: Processes, model: Path, images: np.ndarray) -> list[Prediction]:
    return list(predict(models.load(model), images, processes=processes))


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_other_images_in_one_process_are_seen(ranks, tmp_path, command):
    model = tiny_run(tmp_path / "of-the-model")
    message = "the processes see different images in python:array (40 and 39 files): put them where all can see them"
    assert ranks[2](_different, command, model, tmp_path) == [f"DataError: {message}"] * 2


def _different(processes: Processes, command: str, model: Path, folder: Path) -> str:
    try:
        images = pixels(40 - processes.rank)
        if command == "fit":
            run.fit(images, run.Request(out=folder / "run"), processes=processes)
        else:
            predicted(processes, model, images)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
