"""Another number of groups: cut from embeddings that the run has kept, with the names and moves of groups that stay."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepcluster.cli import run_command
from deepcluster.groups import graph
from deepcluster.runs.recut import apply, recut, undo
from deepcluster.runs.update import update
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.model_files import EMBEDDINGS, load, read_embeddings
from deepcluster.storage.run_folder import RunFolder
from tests.helpers.runs import SAME, change_record, record, rows


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 400 features in eight groups: enough images for a stability."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    features = np.eye(8)[np.arange(400) % 8] * 2 + random.normal(0, 0.15, (400, 8))
    np.save(folder / "features.npy", features.astype(np.float32))
    fit = ["fit", folder / "features.npy", "--features", "-o", folder / "run", "-k", "4", "--seed", "3", "-q"]
    assert run_command([str(word) for word in fit]) == 0
    return folder / "run"


@pytest.fixture
def run(many: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(many, tmp_path / "run"))


def result(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in (*SAME, "tree.json", "report.html", EMBEDDINGS)}


def recut_without_embedding(run: Path, *numbers: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "embedded", lambda *_: pytest.fail("it is computed again"))
        for k in numbers:
            recut(run, k)


def test_another_number_is_one_k_means_and_the_same_as_without_the_file(run: Path) -> None:
    without = Path(shutil.copytree(run, run.parent / "other" / "run"))
    (without / EMBEDDINGS).unlink()
    recut(without, 8)
    recut_without_embedding(without, 6)
    recut_without_embedding(run, 8, 6)
    assert result(run) == result(without)
    recut(run, None)  # computes that of the candidates, because the fit asked for no guess
    recut_without_embedding(run, None)


def test_embeddings_serve_the_images_of_the_fit_and_no_others(run: Path, tmp_path: Path) -> None:
    more = np.eye(8)[np.arange(30) % 8] + np.random.default_rng(1).normal(0, 0.05, (30, 8))
    np.save(tmp_path / "more.npy", more.astype(np.float32))
    update(run, str(tmp_path / "more.npy"))
    recut_without_embedding(run, 5)
    before = (run / EMBEDDINGS).read_bytes()
    fit = ["fit", str(tmp_path / "more.npy"), "--features", "-o", str(run), "-k", "2", "-q", "--overwrite"]
    assert run_command(fit) == 0
    assert (run / EMBEDDINGS).read_bytes() != before
    assert run_command([*fit, "--set", "grouping=kmeans"]) == 0
    assert not (run / EMBEDDINGS).exists()


def damaged(path: Path, change: Callable[[Tensor], Tensor]) -> None:
    save_file({name: change(positions).contiguous() for name, positions in load_file(path).items()}, path)


DAMAGE = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "large": lambda path: path.open("r+b").truncate(1 << 33),
    "nan": lambda path: damaged(path, lambda positions: positions * torch.nan),
    "integers": lambda path: damaged(path, lambda positions: positions.long()),
    "fewer columns": lambda path: damaged(path, lambda tensor: tensor[:, 1:]),
    "fewer rows": lambda path: damaged(path, lambda tensor: tensor[:, 1:] if tensor.dim() == 3 else 2 * tensor),
}


def test_a_damaged_file_of_embeddings_is_made_again(run: Path, many: Path) -> None:
    path, whole = run / EMBEDDINGS, (run / EMBEDDINGS).read_bytes()
    for name, damage in DAMAGE.items():
        path.write_bytes(whole)
        damage(path)
        assert len(read_embeddings(RunFolder(run)).known) == (8 if name == "fewer rows" else 0), name
    recut(run, 4)
    assert path.read_bytes() == whole
    assert rows(run / "clusters.csv") == rows(many / "clusters.csv")


def test_moves_survive_if_both_groups_do_and_undo_takes_the_recut_back(run: Path, tmp_path: Path) -> None:
    recut(run, 8)
    table = rows(run / "clusters.csv")
    origin, target = table[0]["cluster"], table[1]["cluster"]
    apply(run, Edits(names={int(target): "there"}, move=((0, int(target)), (8, int(target)))))
    apply(run, Edits(move=((8, int(origin)),)))  # and back: no move
    assert load(run).moves == ((0, int(origin)),)
    before = rows(run / "clusters.csv")
    for _ in range(2):
        recut(run, 8)  # the same eight groups
        after = rows(run / "clusters.csv")
        assert after[0]["name"] == after[1]["name"] == "there" and after[8]["cluster"] != after[0]["cluster"]
        assert {row["cluster"] for row in after[9::8]} == {after[0]["cluster"]}
    undo(run)
    undone = rows(run / "clusters.csv")
    assert [row["cluster"] for row in undone] == [row["cluster"] for row in after] and load(run).moves
    change_record(run, like_run="1")  # whose numbers these are
    apply(run, Edits(merge=((int(after[0]["cluster"]), int(after[8]["cluster"])),)))
    recut(run, 8)  # one of the two groups is no more, so that the image is where it was before
    assert rows(run / "clusters.csv")[0]["cluster"] == rows(run / "clusters.csv")[8]["cluster"]
    assert before[0]["cluster"] == target and "like_run" not in record(run)
    undo(run)
    assert record(run)["like_run"] == "1"
