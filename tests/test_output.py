"""Outputs that the user names with -o: none of the user's files is replaced unasked."""

import io
import os
import shutil
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.storage import files as whole
from deepcluster.storage.files import new_folder, write_output
from deepcluster.storage.run_folder import open_run
from tests.commands import Commands
from tests.drawings import save_drawings
from tests.helpers.runs import bystanders, change_record, contents, record, small_fit, state_of
from tests.tiny import tiny_run

Ends = Callable[..., str]
LONG = "x" * 300
ROW = b"path,cluster,name,distance,margin,is_outlier\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run, two photographs, a list of them and an array; nothing in it may change."""
    monkeypatch.chdir(tmp_path)
    tiny_run(tmp_path / "run")
    change_record(tiny_run(tmp_path / "given"), backbone="features", location=str(tmp_path / "photos"))
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    np.save("photos.npy", pixels)
    Path("list.txt").write_text("photos/0.png\nphotos/1.png\n")
    with tarfile.open("s0.tar", "w") as shard:
        shard.add("photos/0.png")
    return tmp_path


# What is there already is refused, and replaced with --overwrite; what is read is refused with it, too.
THERE = {
    "a file": (["predict", "run", "photos", "-o", "mine"], "exists already"),
    "a link to a file": (["predict", "run", "photos", "-o", "link"], "exists already"),
    "the .csv beside an array": (["embed", "run", "photos", "-o", "labels.npy"], "labels.csv exists already"),
    "a .csv beside images": (["predict", "run", "photos.npy", "-o", "photos.csv"], "photos.csv exists already"),
}  # fmt: skip
READ = {
    "the paths of features": ["predict", "given", "photos.npy", "-o", "photos.csv"],
    "an image": ["predict", "run", "photos", "-o", "photos/0.png"],
    "an image on standard input": ["predict", "run", "-", "-o", "photos/1.png"],
    "the image": ["predict", "run", "photos/0.png", "-o", "photos/0.png"],
    "a hard link to an image": ["predict", "run", "list.txt", "-o", "hard.csv"],
    "the list": ["predict", "run", "list.txt", "-o", "./list.txt"],
    "a shard": ["predict", "run", "s{0..0}.tar", "-o", "s0.tar"],
    "the array": ["embed", "run", "photos.npy", "-o", "photos.npy"],
    "the run": ["predict", "run", "photos", "-o", "run/run.json"],
    "the model": ["predict", "run", "photos", "-o", "run/model/config.json"],
}


@pytest.fixture
def before(place: Path) -> dict[str, bytes | Path]:
    """Return the content of ``place``, with some files of the user's."""
    for name in ("mine", "labels.csv", "photos.csv"):
        Path(name).write_text("mine")
    Path("link").symlink_to("mine")
    Path("hard.csv").hardlink_to("photos/0.png")
    return contents(place)


@pytest.mark.parametrize("name", THERE)
def test_what_is_there_is_replaced_by_overwrite_alone(
    place: Path, before: Mapping[str, object], name: str, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, said = THERE[name]
    with monkeypatch.context() as patch:  # it is refused before anything is computed
        patch.setattr("deepcluster.runs.predict.predict", lambda *_, **__: pytest.fail("it went to work"))
        assert said in ends([*arguments, "-q"], 5)
    assert contents(place) == before
    assert ends([*arguments, "--overwrite", "-q"], 0) == ""
    changed = {name for name, content in contents(place).items() if before.get(name) != content}
    assert changed == {Path(arguments[-1]).name} | ({"labels.csv"} if arguments[0] == "embed" else set())


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_never_replaced(
    place: Path, before: Mapping[str, object], name: str, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "an image on standard input":  # whose paths are known when the work has begun
        monkeypatch.setattr("deepcluster.runs.predict.predict", lambda *_, **__: pytest.fail("it went to work"))
    for options, code, said in ((["--overwrite"], 2, "one of the files that are read"), ([], 5, "exists already")):
        monkeypatch.setattr("sys.stdin", io.StringIO("photos/0.png\nphotos/1.png\n"))
        assert said in ends([*READ[name], *options, "-q"], code)
    assert contents(place) == before


NO_FILE = {
    "nothing": "",
    "the current folder": ".",
    "the root": "/",
    "300 bytes": LONG,
    "a folder of 300 bytes": f"{LONG}/a.csv",
    "no folder": "none/a.csv",
    "a link to nowhere": "nowhere",
    "a link to itself": "round",
    "below a file": "list.txt/a.csv",
    "the system's": "/proc/a.csv",
}


@pytest.mark.parametrize("out", NO_FILE.values(), ids=NO_FILE)
def test_a_place_where_no_file_can_be(place: Path, out: str, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nowhere").symlink_to("missing")
    Path("round").symlink_to("round")
    monkeypatch.setattr("deepcluster.runs.predict.predict", lambda *_, **__: pytest.fail("it went to work"))
    before = contents(place)
    assert ends(["predict", "run", "photos", "-o", out, "-q"], 5 if out else 2).startswith("error: ")
    assert contents(place) == before


@pytest.mark.parametrize("out", ["empty.csv", "x" * 251 + ".csv", "null", "log", "full"])
def test_what_may_be_written(place: Path, out: str, ends: Ends) -> None:
    """An empty file (of mktemp), a name of 255 bytes, devices, an open file by its number (as /dev/stdout)."""
    Path("empty.csv").touch()
    for device in ("null", "full"):  # by a link, lest a failure of this test harms the machine
        Path(device).symlink_to(f"/dev/{device}")
    with Path("log").open("w") as log:
        log.write("a line\n")
        log.flush()
        target = f"/proc/self/fd/{log.fileno()}" if out == "log" else out
        said = ends(["predict", "run", "photos", "-o", target, "-q"], 5 if out == "full" else 0)
    assert said == "" or "cannot write full (No space left" in said
    if out in ("null", "full"):
        assert Path(out).is_symlink()
    else:
        assert Path(out).read_bytes().startswith((b"a line\n" if out == "log" else b"") + ROW)


@pytest.mark.parametrize("name", ["fifo", "link"])
def test_a_fifo_is_written_into(place: Path, name: str, ends: Ends) -> None:
    """An array too: numpy would write to the number of a real file, and ask where in it it is."""
    os.mkfifo("fifo")
    Path("link").symlink_to("fifo")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(Path("fifo").read_bytes() for _ in range(2)), daemon=True)
    reader.start()
    ends(["predict", "run", "photos", "-o", name, "-q"], 0)
    deadline = time.monotonic() + 10
    while not received and time.monotonic() < deadline:  # until the reader has seen the end of the first
        time.sleep(0.01)
    write_output(Path(name), lambda file: np.save(file, np.arange(6.0)), binary=True)
    reader.join(10)
    np.save("file.npy", np.arange(6.0))
    assert stat.S_ISFIFO(os.lstat("fifo").st_mode) and Path("link").is_symlink()
    assert received[0].startswith(ROW) and received[0].count(b"\n") == 3
    assert received[1] == Path("file.npy").read_bytes()


# ---- files that are written whole -----------------------------------------------------------------------------------


def test_a_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    whole.write_whole(tmp_path / "a", lambda file: file.write("x"))
    (tmp_path / "b").touch()
    with new_folder(tmp_path / "c"):
        pass
    (tmp_path / "d").mkdir()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abcd"]
    assert modes[0] == modes[1] and modes[2] == modes[3]


# ---- a fit into a folder that has a run: it stays until there is another one, and the user's files always do ---------


FAST = small_fit("--rounds", "0")
TRAINED = small_fit("--rounds", "2")


def clusters_of(run: Path) -> object:
    """The number of clusters, of files that agree."""
    state = state_of(run)
    return state and state["clusters"]


def test_overwrite_leaves_files_that_are_not_of_the_run(run: Path, ends: Ends) -> None:
    """Also the images that are clustered, in the run folder."""
    mine = bystanders(run, write=True)
    images = save_drawings(run / "images-originals", 8, 16)
    before = contents(images)
    ends(["fit", images, "-o", run, *small_fit("-k", "2", "--rounds", "0"), "--overwrite"], 0)
    assert contents(images) == before and clusters_of(run) == 2 and not (run / "metrics.json").exists()
    assert bystanders(run) == mine


STARTS = {
    "an image as weights": (["--backbone", "compact", "--weights", "{image}"], 4),
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
    ends(["fit", others, "-o", other, *TRAINED, "--keep-checkpoints"], 0)
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
