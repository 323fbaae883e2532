"""Whole commands that are killed, started wrongly or given strange folders: what is the user's stays as it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deepcluster.cli import run_command
from deepcluster.storage.run_folder import open_run
from tests.commands import Commands
from tests.drawings import save_drawings
from tests.helpers.runs import change_record, contents, record, state_of

pytestmark = pytest.mark.slow

FAST = ("--image-size", "16", "--rounds", "0", "--precision", "fp32", "--quiet")
TRAINED = ("--image-size", "16", "--rounds", "2", "--epochs", "1", "--pseudo-labels", "6", "--precision", "fp32", "-q")
# What a user may keep in a run folder, under names that are nearly ours.
BYSTANDERS = (
    "images-2024/a.jpg", "images-raw/b.jpg", ".images-1/c.jpg", ".notes.tmp", ".metrics.json.7.tmp",
    "evaluation-mine.json", "notes.txt", "run/run.json", "model/mine.txt", "model/weights.bin", "checkpoints/notes.md",
    "checkpoints/step100/opt.pt", ".deepcluster-export-7.tmp/x", ".deepcluster-0123456789abcdef/x",
)  # fmt: skip
# What changes a disk: a kill between any two of these is one at any moment that matters.
CHANGES = "os:rename os:replace os:unlink os:rmdir os:mkdir"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_drawings(tmp_path_factory.mktemp("attacks") / "images", 8, 16)


@pytest.fixture(scope="module")
def bases(command: Commands, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run without rounds, and one with two."""
    folder = tmp_path_factory.mktemp("bases")
    for name, options in (("fast", FAST), ("trained", TRAINED)):
        assert command("fit", images, "-o", folder / name, "-k", "4", *options)[0] == 0
    return {name: folder / name for name in ("fast", "trained")}


@pytest.fixture
def proj(bases: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the first, with bystanders."""
    return with_bystanders(Path(shutil.copytree(bases["fast"], tmp_path / "proj")))


def with_bystanders(run: Path) -> Path:
    for name in BYSTANDERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"mine: {name}")
    return run


def check_bystanders(run: Path) -> None:
    changed = [name for name in BYSTANDERS if not (run / name).is_file() or (run / name).read_text() != f"mine: {name}"]
    assert changed == []


def check_whole(run: Path) -> int:
    """The files of a run are of one state; the number of its clusters."""
    state = state_of(run)
    assert state is not None
    return int(str(state["clusters"]))


# ---- what is the user's ---------------------------------------------------------------------------------------------


def test_overwrite_leaves_what_it_did_not_make(command, images, proj):
    """Also the images that are clustered, in a folder images-2024 of the run folder."""
    own = save_drawings(proj / "images-originals", 8, 16)
    before = contents(own)
    assert command("fit", own, "-o", proj, "-k", "3", *FAST, "--overwrite") == (0, "")
    assert contents(own) == before and check_whole(proj) == 3
    check_bystanders(proj)


STARTS = {
    "too many groups": (["-k", "400"], 3),
    "an option that there is not": (["-k", "3", "--set", "nope=1"], 2),
    "a value that cannot be": (["-k", "3", "--lr", "-1"], 2),
    "weights that are none": (["-k", "3", "--backbone", "compact", "--weights", "{images}/0/00.png"], 4),
    "labels that are not there": (["-k", "3", "--labels", "nowhere.csv"], 2),
    "a recipe that is not there": (["-k", "3", "--recipe", "nowhere.toml"], 2),
    "a device that is not there": (["-k", "3", "--device", "cuda:99"], 2),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_failed_start_leaves_the_old_run(command, images, proj, start):
    before = contents(proj)
    options, expected = STARTS[start]
    given = [option.format(images=images) for option in options]
    code, said = command("fit", images, "-o", proj, *given, "--image-size", "16", "--rounds", "0", "--overwrite")
    assert code == expected, said
    assert contents(proj) == before


def test_too_few_usable_images_leave_the_old_run(command, proj, tmp_path):
    few = save_drawings(tmp_path / "few", 8, 16)
    for path in sorted(few.rglob("*.png"))[4:]:
        path.write_text("no image")
    before = contents(proj)
    assert command("fit", few, "-o", proj, "-k", "20", *FAST, "--overwrite")[0] == 3
    assert contents(proj) == before


@pytest.mark.parametrize("what", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_stopped_while_it_reads_the_old_run_stays_and_the_advice_is_right(command, images, proj, what):
    """--resume was advised, which takes the old run for the one that was asked for."""
    before = contents(proj)
    arguments = ["fit", images, "-o", proj, "-k", "3", *FAST, "--overwrite"]
    code, said = command(*arguments, trap=(what, "deepcluster.images.store:square", 5))
    assert code == (-9 if what == "SIGKILL" else 75)
    assert "--resume" not in said and ("run it again" in said or code == -9)
    assert check_whole(proj) == 4
    assert command(*arguments) == (0, "")
    assert check_whole(proj) == 3
    assert before.keys() >= {name for name in contents(proj) if name not in BYSTANDERS}
    check_bystanders(proj)


def test_overwrite_where_there_is_nothing_yet(command, images, tmp_path):
    """It ended with 5 and the name of the folder."""
    assert command("fit", images, "-o", tmp_path / "new", "-k", "3", *FAST, "--overwrite") == (0, "")


@pytest.mark.parametrize("listed", ["proj/thumbnails.webp", "a link.png"])
def test_images_that_would_be_removed_are_refused(images, proj, tmp_path, listed, capsys):
    """IMAGES inside what --overwrite replaces."""
    (tmp_path / "a link.png").symlink_to(proj / "thumbnails.webp")
    (tmp_path / "list.txt").write_text(f"{tmp_path / listed}\n{images / '0/00.png'}\n")
    before = contents(proj)
    assert run_command(["fit", str(tmp_path / "list.txt"), "-o", str(proj), "-k", "2", *FAST, "--overwrite"]) == 2
    assert "is one of IMAGES" in capsys.readouterr().err
    assert contents(proj) == before


def test_run_folders_are_no_images(command, tmp_path):
    """`cd photos; deepcluster fit .` twice; and a run in it that was killed goes on."""
    inside = save_drawings(tmp_path / "in", 8, 16)
    for name in ("a", "b"):
        assert command("fit", inside, "-o", inside / "runs" / name, "-k", "3", *FAST)[0] == 0
    rows = [open_run(inside / "runs" / name).read_rows("clusters.csv") for name in ("a", "b")]
    assert rows[0] == rows[1] and len(rows[0]) == len([*inside.glob("*/*.png")])
    run = inside / "run"
    arguments = ["fit", inside, "-o", run, "-k", "3", *TRAINED]
    assert command(*arguments, trap=("SIGKILL", "deepcluster.runs.page:render", 1))[0] == -9
    assert command(*arguments, "--resume") == (0, "")
    assert check_whole(run) == 3
    assert run_command(["fit", str(run), "-o", str(tmp_path / "r"), "-k", "2", *FAST]) == 3


# ---- one state ------------------------------------------------------------------------------------------------------

EDITS = {"schema_version": 1, "merge": [[0, 1]], "names": {"0": "beach"}}
COMMANDS = {
    "recut": (["recut", "{run}", "-k", "2", "-q"], 2),
    "apply": (["apply", "{run}", "{edits}", "-q"], 3),
    "report": (["report", "{run}"], 4),
    "fit --overwrite": (["fit", "{images}", "-o", "{run}", "-k", "3", *FAST, "--overwrite"], 3),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_change_of_the_disk(command, images, proj, tmp_path, name):
    """The old state or the new one, complete; and the same command again ends as if nothing had been."""
    arguments, after = COMMANDS[name]
    edits = tmp_path / "edits.json"
    edits.write_text(json.dumps(EDITS | {"cut": record(proj)["cut"]}))
    seen, stride = [], 1 if name == "report" else 3
    for count in range(1, 1000, stride):
        run = Path(shutil.copytree(proj, tmp_path / f"run{count}"))
        given = [each.format(run=run, edits=edits, images=images) for each in arguments]
        code, said = command(*given, trap=("SIGKILL", CHANGES, count))
        status = open_run(run).read_record().status
        if status == "done":
            seen.append(check_whole(run))
            assert seen[-1] in (4, after)
        else:  # the images of the new run are read, and it goes on from there
            assert name == "fit --overwrite"
        if code == -9 and count % 2:
            resumed = [each.replace("--overwrite", "--resume") for each in given]
            assert command(*(resumed if status == "running" else given))[0] == 0
            assert check_whole(run) == after
        check_bystanders(run)
        shutil.rmtree(run)
        if code != -9:
            assert code == 0, said
            break
    assert seen[-1] == after and len(seen) > 3
    assert seen == sorted(seen, key=lambda groups: groups == after), "one moment divides old from new"


@pytest.mark.parametrize("to", ["folders", "imagefolder"])
def test_a_killed_export_is_no_export(command, proj, tmp_path, to):
    """There is none, or all of it; and it can be made again, beside what the killed one left."""
    out, whole = tmp_path / "out" / "made", 0
    for count in range(1, 1000, 7):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        out.parent.mkdir()
        code, _ = command("export", proj, "--to", to, "-o", out, "-q", trap=("SIGKILL", f"{CHANGES} os:symlink", count))
        if out.exists():
            whole = whole or len(contents(out))
            assert len(contents(out)) == whole
        elif count % 2:
            assert command("export", proj, "--to", to, "-o", out, "-q") == (0, "")
        if code == 0:
            break
    assert whole
    check_bystanders(proj)


def test_a_sorted_table_is_found(proj, capsys):
    table = proj / "clusters.csv"
    header, *rows = table.read_text().splitlines(keepends=True)
    table.write_text(header + "".join(sorted(rows, key=lambda row: row.split(",")[2])))
    for arguments in (["recut", str(proj), "-k", "3"], ["report", str(proj)]):
        assert run_command(arguments) == 5
        assert "changed since it was written" in capsys.readouterr().err


# ---- resuming -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(bases: dict[str, Path], tmp_path: Path) -> Path:
    """The trained run, as if it had been stopped before its end."""
    run = Path(shutil.copytree(bases["trained"], tmp_path / "stopped"))
    change_record(run, status="stopped")
    return run


def test_a_checkpoint_of_another_run_is_refused(command, images, stopped, tmp_path):
    """Of the same size, options and seed."""
    other = tmp_path / "other"
    assert command("fit", save_drawings(tmp_path / "others", 8, 16, seed=5), "-o", other, "-k", "4", *TRAINED)[0] == 0
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(other / "checkpoints", stopped / "checkpoints")
    before = contents(stopped)
    code, said = command("fit", images, "-o", stopped, "-k", "4", *TRAINED, "--resume")
    records = [record(run)["run"] for run in (other, stopped)]
    assert code == 4 and all(name in said for name in records)
    assert contents(stopped) == before


# ---- surroundings ---------------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_is_a_signal(command, proj, tmp_path):
    """SIGHUP left a hidden folder behind."""
    (tmp_path / "out").mkdir()
    arguments = ["export", proj, "--to", "folders", "-o", tmp_path / "out" / "x", "-q"]
    code, said = command(*arguments, trap=("SIGHUP", "os:symlink", 2))
    assert (code, said) == (75, "error: stopped by SIGHUP\n")
    assert [*(tmp_path / "out").iterdir()] == []


def test_more_than_3000_groups(command, tmp_path):
    """Every -k above 3,000 ended with 1 after all training, and recut left a mixed run."""
    pixels = np.random.default_rng(0).integers(0, 255, (3010, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    run, options = tmp_path / "run", ["--image-size", "8", "--rounds", "0", "--precision", "fp32", "-q"]
    assert command("fit", tmp_path / "a.npy", "-o", run, "-k", "5", *options)[0] == 0
    assert command("recut", run, "-k", "3001", "-q")[0] == 0
    assert check_whole(run) == 3001
