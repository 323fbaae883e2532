"""A fit into a folder that has a run: the old run stays until there is another one, and the user's files always do."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.storage.run_folder import open_run
from tests.commands import Commands
from tests.drawings import save_drawings
from tests.helpers.runs import change_record, contents, record, small_fit, state_of

Ends = Callable[..., str]
FAST = small_fit("--rounds", "0")
TRAINED = small_fit("--rounds", "2")
# Files that a user may keep in a run folder, under names that are nearly those of a run.
BYSTANDERS = (
    "images-2024/a.jpg", "images-raw/b.jpg", ".images-1/c.jpg", ".notes.tmp", ".metrics.json.7.tmp",
    "evaluation-mine.json", "notes.txt", "run/run.json", "model/mine.txt", "model/weights.bin", "checkpoints/notes.md",
    "checkpoints/step100/opt.pt", ".deepcluster-export-7.tmp/x", ".deepcluster-0123456789abcdef/x",
)  # fmt: skip


def clusters_of(run: Path) -> object:
    """The number of clusters, of files that agree."""
    state = state_of(run)
    return state and state["clusters"]


def test_overwrite_leaves_files_that_are_not_of_the_run(run: Path, ends: Ends) -> None:
    """Also the images that are clustered, in the run folder."""
    for name in BYSTANDERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"mine: {name}")
    images = save_drawings(run / "images-originals", 8, 16)
    before = contents(images)
    ends(["fit", images, "-o", run, *small_fit("-k", "2", "--rounds", "0"), "--overwrite"], 0)
    assert contents(images) == before and clusters_of(run) == 2 and not (run / "metrics.json").exists()
    assert all((run / name).read_text() == f"mine: {name}" for name in BYSTANDERS)


STARTS = {
    "too many groups": (["-k", "400"], 3),
    "an unknown option": (["--set", "nope=1"], 2),
    "an impossible value": (["--lr", "-1"], 2),
    "an image as weights": (["--backbone", "compact", "--weights", "{image}"], 4),
    "missing labels": (["--labels", "nowhere.csv"], 2),
    "a missing recipe": (["--recipe", "nowhere.toml"], 2),
    "a missing device": (["--device", "cuda:99"], 2),
    "too few usable images": (["-k", "48"], 3),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_failed_start_leaves_the_old_run(run: Path, photos: Path, tmp_path: Path, ends: Ends, start: str) -> None:
    options, code = STARTS[start]
    images = Path(shutil.copytree(photos, tmp_path / "images"))
    image = next(images.rglob("*.png"))
    if "usable" in start:
        image.write_text("no image")
    before = contents(run)
    given = [option.format(image=image) for option in options]
    ends(["fit", images, "-o", run, *small_fit("--rounds", "0", *given), "--overwrite"], code)
    assert contents(run) == before


@pytest.mark.parametrize("link", [False, True])
def test_images_that_would_be_removed_are_refused(
    run: Path, photos: Path, tmp_path: Path, ends: Ends, link: bool
) -> None:
    """IMAGES inside the files that --overwrite replaces."""
    image = run / "thumbnails.webp"
    if link:
        (tmp_path / "a link.png").symlink_to(image)
        image = tmp_path / "a link.png"
    (tmp_path / "list.txt").write_text(f"{image}\n{next(photos.rglob('*.png'))}\n")
    before = contents(run)
    assert "is one of IMAGES" in ends(["fit", tmp_path / "list.txt", "-o", run, "-k", "2", "-q", "--overwrite"], 2)
    assert contents(run) == before


def test_run_folders_are_no_images(tmp_path: Path, ends: Ends) -> None:
    """`cd photos; deepcluster fit .` twice."""
    images = save_drawings(tmp_path / "in", 8, 16)
    for name in ("a", "b"):
        ends(["fit", images, "-o", images / "runs" / name, *FAST], 0)
    one, other = (open_run(images / "runs" / name).read_rows("clusters.csv") for name in ("a", "b"))
    assert one == other and len(one) == len([*images.glob("*/*.png")])
    ends(["fit", images / "runs" / "a", "-o", tmp_path / "r", *FAST], 3)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGINT", "SIGKILL"])
def test_stopped_while_it_reads_the_old_run_stays_and_no_resume_is_advised(
    command: Commands, run: Path, photos: Path, signal: str
) -> None:
    """--resume would take the old run for the one that was asked for."""
    arguments = ["fit", photos, "-o", run, *small_fit("-k", "2", "--rounds", "0"), "--overwrite"]
    code, said = command(*arguments, trap=(signal, "deepcluster.images.store:square", 5))
    assert code == (-9 if signal == "SIGKILL" else 75)
    assert "--resume" not in said and (signal == "SIGKILL" or "run the same command again" in said)
    assert clusters_of(run) == 3
    assert command(*arguments) == (0, "")
    assert clusters_of(run) == 2


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(
    fitted: Callable[..., Path], run: Path, photos: Path, tmp_path: Path, ends: Ends
) -> None:
    """Of the same size, options and seed."""
    other, others = tmp_path / "other", Path(shutil.copytree(photos, tmp_path / "others"))
    for image in others.rglob("*.png"):
        Image.open(image).rotate(90).save(image)
    ends(["fit", others, "-o", other, *TRAINED], 0)
    stopped = Path(shutil.copytree(fitted("--rounds", "2"), tmp_path / "stopped"))
    change_record(stopped, status="stopped")
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(other / "checkpoints", stopped / "checkpoints")
    before = contents(stopped)
    said = ends(["fit", photos, "-o", stopped, *TRAINED, "--resume"], 4)
    assert all(record(run)["run"] in said for run in (other, stopped))
    assert contents(stopped) == before


@pytest.mark.slow
def test_more_than_3000_groups(tmp_path: Path, ends: Ends) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 255, (3010, 8, 8, 3), dtype=np.uint8))
    run, options = tmp_path / "run", ["--image-size", "8", "--rounds", "0", "--precision", "fp32", "-q"]
    ends(["fit", tmp_path / "a.npy", "-o", run, "-k", "5", *options], 0)
    ends(["recut", run, "-k", "3001", "-q"], 0)
    assert clusters_of(run) == 3001
