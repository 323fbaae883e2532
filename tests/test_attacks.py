"""The findings of the attack on version 0.1 (fault injection of whole commands), and others of the same kinds.

A finding is here, by its name in the docstring, or it is where a quick test of the module concerned holds it:

| finding | test |
|---|---|
| L4, L7, C8 outputs that are devices, FIFOs, inputs | test_output, test_surroundings::test_names_of_300_bytes |
| L5 a stranger's run.json | test_generation::test_a_folder_with_a_run_json_is_not_yet_a_run_folder |
| W1 to W6 signals inside decoding, indexing, loading, each write | test_signals |
| W11 another schema_version | test_generation::test_another_schema_version_is_refused_with_both |
| W14 readers beside a writer | test_generation::test_readers_beside_a_writer_see_one_state |
| W16 an empty argument | test_surroundings::test_an_empty_argument_is_none |
| S1 pickles of a peer | test_processes::test_a_pickle_from_another_process_is_no_json, test_safety_source |
| S2 overlapping records | test_safety_pickles::test_a_record_that_is_there_many_times_is_refused_with_both_numbers |
| S3 memory of odd modes | test_faults_images::test_what_the_limit_lets_in_is_converted_in_strips, test_decode |
| S4 npz bombs | test_source::test_an_npz_is_unpacked_only_where_its_headers_fit |
| S5 edits of many numbers | test_edits::test_edits_of_many_numbers_take_no_quadratic_work |
| S6 commands to copy | test_cli (the printed commands are quoted) |
| S7 control characters | test_cli::test_control_characters_of_names_reach_a_file_and_no_terminal |
| S8 names that become links | test_export_hub::test_no_name_becomes_a_link_by_itself |
| S9 metadata in exports | test_export_metadata |
| S10 files without end | test_safety_model, test_safety_run::test_what_is_no_file_is_not_waited_for |
| C1, C3, C9 full and closed streams, long numbers | test_surroundings |
| C2 an array that shrinks | test_surroundings::test_a_fit_of_an_array_that_shrinks |
| C4 a damaged history, a file for a folder | test_surroundings |
| C5 no temporary folder | test_surroundings::test_predict_needs_no_folder_for_temporary_files |
| C6 a scratch folder of another export | test_output::test_an_export_leaves_the_scratch_folder_of_another_alone |
| C10, C11 a closed pipe, signals while it is imported | test_signals |
| C12, C13 lists and tables of other programs, advice | test_surroundings |
| C14 weights that are not finite | test_safety_pickles::test_weights_that_are_not_finite_are_a_fault_of_their_file |
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.cli import run_command
from deepcluster.storage import model_files as models
from deepcluster.storage.run_folder import open_run
from tests.commands import Commands
from tests.drawings import drawings

pytestmark = pytest.mark.slow

FAST = ("--image-size", "16", "--rounds", "0", "--precision", "fp32", "--quiet")
TRAINED = ("--image-size", "16", "--rounds", "2", "--epochs", "1", "--pseudo-labels", "6", "--precision", "fp32", "-q")
# What a user may keep in a run folder, under names that are nearly ours.
BYSTANDERS = (
    "images-2024/a.jpg", "images-raw/b.jpg", ".images-1/c.jpg", ".notes.tmp", ".metrics.json.7.tmp", "filters-mine.png",
    "evaluation-mine.json", "notes.txt", "run/run.json", "model/mine.txt", "model/weights.bin", "checkpoints/notes.md",
    "checkpoints/step100/opt.pt", ".deepcluster-export-7.tmp/x", ".deepcluster-0123456789abcdef/x",
)  # fmt: skip
# What changes a disk: a kill between any two of these is one at any moment that matters.
CHANGES = "os:rename os:replace os:unlink os:rmdir os:mkdir"


def pictures(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(drawings(8, 16, seed)[0].permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("attacks") / "images")


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


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder, by what is in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def change_record(run: Path, **values: object) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | values))


def check_whole(run: Path) -> int:
    """The files of a run are of one state; the number of its clusters."""
    folder = open_run(run)
    rows = [row for row in folder.read_clusters() if row["status"] == "ok"]
    model = models.load(run)
    features = folder.read_array("features.npy", len(rows), model.reduction.projection.shape[1])
    placed = model.place(torch.from_numpy(features)).cluster.tolist()
    assert placed == [int(row["cluster"]) for row in rows], "predict and clusters.csv disagree"
    summary = folder.read_rows("cluster_summary.csv")
    assert [int(row["cluster"]) for row in summary] == sorted({*placed})
    assert [row["name"] for row in summary] == [model.names[int(row["cluster"])] for row in summary]
    assert len(summary) == folder.read_record().clusters
    assert folder.has("report.html")
    return len(summary)


# ---- what is the user's ---------------------------------------------------------------------------------------------


def test_overwrite_leaves_what_it_did_not_make(command, images, proj):
    """L1, L5, C7: also the images that are clustered, in a folder images-2024 of the run folder."""
    own = pictures(proj / "images-originals")
    before = digests(own)
    assert command("fit", own, "-o", proj, "-k", "3", *FAST, "--overwrite") == (0, "")
    assert digests(own) == before and check_whole(proj) == 3
    check_bystanders(proj)


def test_resume_leaves_what_it_did_not_make(command, images, proj):
    """L2."""
    change_record(proj, status="stopped")
    assert command("fit", images, "-o", proj, "-k", "4", *FAST, "--resume") == (0, "")
    assert check_whole(proj) == 4
    check_bystanders(proj)


@pytest.mark.parametrize("name", ["recut", "apply", "report", "filters"])
def test_no_other_command_touches_bystanders(command, images, proj, tmp_path, name):
    """L5; a picture called like a sheet of filters broke every report."""
    edits = tmp_path / "edits.json"
    edits.write_text('{"schema_version": 1, "names": {"0": "one"}}')
    arguments = {
        "recut": ["recut", proj, "-k", "2", "-q"],
        "apply": ["apply", proj, edits, "-q"],
        "report": ["report", proj],
        "filters": ["evaluate", proj, "--protocol", "filters", "--epochs", "1", "--layers", "conv1", "-q"],
    }[name]
    code, said = command(*arguments)
    assert code == 0 or (name == "filters" and code == 2), said
    check_bystanders(proj)


STARTS = {
    "too many groups": (["-k", "400"], 3),
    "an option that there is not": (["-k", "3", "--set", "nope=1"], 2),
    "a value that cannot be": (["-k", "3", "--lr", "-1"], 2),
    "weights that are none": (["-k", "3", "--backbone", "compact", "--weights", "{images}/00.png"], 4),
    "labels that are not there": (["-k", "3", "--labels", "nowhere.csv"], 2),
    "a recipe that is not there": (["-k", "3", "--recipe", "nowhere.toml"], 2),
    "a device that is not there": (["-k", "3", "--device", "cuda:99"], 2),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_failed_start_leaves_the_old_run(command, images, proj, start):
    """L6."""
    before = digests(proj)
    options, expected = STARTS[start]
    given = [option.format(images=images) for option in options]
    code, said = command("fit", images, "-o", proj, *given, "--image-size", "16", "--rounds", "0", "--overwrite")
    assert code == expected, said
    assert digests(proj) == before


def test_too_few_usable_images_leave_the_old_run(command, proj, tmp_path):
    """L6 06."""
    few = pictures(tmp_path / "few")
    for path in sorted(few.iterdir())[4:]:
        path.write_text("no image")
    before = digests(proj)
    assert command("fit", few, "-o", proj, "-k", "20", *FAST, "--overwrite")[0] == 3
    assert digests(proj) == before


@pytest.mark.parametrize("what", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_stopped_while_it_reads_the_old_run_stays_and_the_advice_is_right(command, images, proj, what):
    """L6; --resume was advised, which takes the old run for the one that was asked for."""
    before = digests(proj)
    arguments = ["fit", images, "-o", proj, "-k", "3", *FAST, "--overwrite"]
    code, said = command(*arguments, trap=(what, "deepcluster.images.store:square", 5))
    assert code == (-9 if what == "SIGKILL" else 75)
    assert "--resume" not in said and ("--overwrite" in said or code == -9)
    assert check_whole(proj) == 4
    assert command(*arguments) == (0, "")
    assert check_whole(proj) == 3
    assert before.keys() >= {name for name in digests(proj) if name not in BYSTANDERS}
    check_bystanders(proj)


def test_overwrite_where_there_is_nothing_yet(command, images, tmp_path):
    """It ended with 5 and the name of the folder."""
    assert command("fit", images, "-o", tmp_path / "new", "-k", "3", *FAST, "--overwrite") == (0, "")


@pytest.mark.parametrize("listed", ["proj/sizes.png", "proj/thumbnails.webp", "a link.png"])
def test_images_that_would_be_removed_are_refused(images, proj, tmp_path, listed, capsys):
    """L1: IMAGES inside what --overwrite replaces."""
    (tmp_path / "a link.png").symlink_to(proj / "sizes.png")
    (tmp_path / "list.txt").write_text(f"{tmp_path / listed}\n{images / '00.png'}\n")
    before = digests(proj)
    assert run_command(["fit", str(tmp_path / "list.txt"), "-o", str(proj), "-k", "1", *FAST, "--overwrite"]) == 2
    assert "is one of IMAGES" in capsys.readouterr().err
    assert digests(proj) == before


def test_run_folders_are_no_images(command, tmp_path):
    """W8, W9: `cd photos; deepcluster fit .` twice; and a run in it that was killed goes on."""
    inside = pictures(tmp_path / "in")
    for name in ("a", "b"):
        assert command("fit", inside, "-o", inside / "runs" / name, "-k", "3", *FAST)[0] == 0
    rows = [open_run(inside / "runs" / name).read_rows("clusters.csv") for name in ("a", "b")]
    assert rows[0] == rows[1] and len(rows[0]) == len([*inside.glob("*.png")])
    run = inside / "run"
    arguments = ["fit", inside, "-o", run, "-k", "3", *TRAINED]
    assert command(*arguments, trap=("SIGKILL", "deepcluster.runs.report:render", 1))[0] == -9
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
    """L3, W6, W7: the old state or the new one, complete; and the same command again ends as if nothing had been."""
    arguments, after = COMMANDS[name]
    edits = tmp_path / "edits.json"
    edits.write_text(json.dumps(EDITS | {"cut": json.loads((proj / "run.json").read_text())["cut"]}))
    seen, stride = [], 1 if name == "report" else 3
    for count in range(1, 1000, stride):
        run = Path(shutil.copytree(proj, tmp_path / f"run{count}"))
        given = [each.format(run=run, edits=edits, images=images) for each in arguments]
        code, said = command(*given, trap=("SIGKILL", CHANGES, count))
        record = open_run(run).read_record()
        if record.status == "done":
            seen.append(check_whole(run))
            assert seen[-1] in (4, after)
        else:  # the images of the new run are read, and it goes on from there
            assert name == "fit --overwrite"
        if code == -9 and count % 2:
            resumed = [each.replace("--overwrite", "--resume") for each in given]
            assert command(*(resumed if record.status == "running" else given))[0] == 0
            assert check_whole(run) == after
        check_bystanders(run)
        shutil.rmtree(run)
        if code != -9:
            assert code == 0, said
            break
    assert seen[-1] == after and len(seen) > 3
    assert seen == sorted(seen, key=lambda groups: groups == after), "one moment divides old from new"


@pytest.mark.parametrize("to", ["folders", "imagefolder", "hub"])
def test_a_killed_export_is_no_export(command, proj, tmp_path, to):
    """C6, C7: there is none, or all of it; and it can be made again, beside what the killed one left."""
    out, whole = tmp_path / "out" / "made", 0
    for count in range(1, 1000, 7):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        out.parent.mkdir()
        code, _ = command("export", proj, "--to", to, "-o", out, "-q", trap=("SIGKILL", f"{CHANGES} os:symlink", count))
        if out.exists():
            whole = whole or len(digests(out))
            assert len(digests(out)) == whole
        elif count % 2:
            assert command("export", proj, "--to", to, "-o", out, "-q") == (0, "")
        if code == 0:
            break
    assert whole
    check_bystanders(proj)


def test_a_sorted_table_is_found(proj, capsys):
    """W10."""
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


OTHERS = {
    "-k": (["-k", "5"], 2, "n_clusters was 4 and is 5"),
    "--seed": (["-k", "4", "--seed", "3"], 2, "seed was 0 and is 3"),
    "an option": (["-k", "4", "--set", "dims=7"], 2, "dims was"),
    "the learning rate": (["-k", "4", "--lr", "0.001"], 2, "lr was"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("state", ["stopped", "done"])
def test_other_options_are_refused_and_change_nothing(images, stopped, other, state, capsys):
    """W15, of finished runs and of others; the refused command was written into run.json and recipe.toml."""
    change_record(stopped, status=state)
    before = digests(stopped)
    options, expected, said = OTHERS[other]
    assert run_command(["fit", str(images), "-o", str(stopped), *options, *TRAINED, "--resume"]) == expected
    assert said in capsys.readouterr().err
    assert digests(stopped) == before


def test_another_recipe_is_refused_and_its_own_is_not(images, bases, tmp_path, capsys):
    """W15."""
    run = Path(shutil.copytree(bases["trained"], tmp_path / "run"))
    for recipe, expected in (("v1", 2), (str(run / "recipe.toml"), 0)):
        assert run_command(["fit", str(images), "-o", str(run), "-k", "4", "--recipe", recipe, "--resume"]) == expected
    said = capsys.readouterr()
    assert "--resume: backbone was 'compact' and is 'alexnet' now" in said.err and "finished already" in said.out


@pytest.mark.parametrize("state", ["stopped", "done"])
@pytest.mark.parametrize("how", ["other pixels", "other names", "no checkpoints"])
def test_other_images_are_refused_and_change_nothing(stopped, tmp_path, state, how, capsys):
    """W15 of images: a finished run was taken for one of any images of the same names."""
    change_record(stopped, status=state)
    others = pictures(tmp_path / "others", seed=0 if how == "other names" else 7)
    if how == "other names":
        (others / "00.png").rename(others / "zz.png")
    if how == "no checkpoints":
        if state == "stopped":
            pytest.skip("such a run begins anew")
        shutil.rmtree(stopped / "checkpoints")
    before = digests(stopped)
    assert run_command(["fit", str(others), "-o", str(stopped), "-k", "4", *TRAINED, "--resume"]) == 3
    assert "not those that the run began with" in capsys.readouterr().err
    assert digests(stopped) == before


def test_a_finished_run_stays_where_its_images_have_moved(images, stopped, tmp_path, capsys):
    """And is not computed again."""
    change_record(stopped, status="done")
    moved, before = Path(shutil.copytree(images, tmp_path / "moved")), digests(stopped)
    options = [option for option in TRAINED if option != "-q"]
    assert run_command(["fit", str(moved), "-o", str(stopped), "-k", "4", *options, "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert digests(stopped) == before


def test_a_checkpoint_of_another_run_is_refused(command, images, stopped, tmp_path):
    """W12: of the same size, options and seed."""
    other = tmp_path / "other"
    assert command("fit", pictures(tmp_path / "others", seed=5), "-o", other, "-k", "4", *TRAINED)[0] == 0
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(other / "checkpoints", stopped / "checkpoints")
    before = digests(stopped)
    code, said = command("fit", images, "-o", stopped, "-k", "4", *TRAINED, "--resume")
    records = [json.loads((run / "run.json").read_text())["run"] for run in (other, stopped)]
    assert code == 4 and all(name in said for name in records)
    assert digests(stopped) == before


@pytest.mark.parametrize("rows", [0, 1])
def test_a_history_that_has_lost_rounds_is_refused(images, stopped, rows, capsys):
    """W13."""
    history = stopped / "history.csv"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[: 1 + rows]))
    assert run_command(["fit", str(images), "-o", str(stopped), "-k", "4", *TRAINED, "--resume"]) == 5
    assert "and the checkpoint comes after 2" in capsys.readouterr().err


# ---- surroundings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["thumbnails.webp", "map.npy", "tree.json", "metrics.json"])
def test_what_the_report_can_do_without(proj, name, capsys):
    """C13: a run that is fine was called damaged, and a new fit with --overwrite advised."""
    (proj / name).write_text("")
    assert run_command(["report", str(proj)]) == 5
    said = capsys.readouterr().err
    assert name in said and "remove it" in said and "--overwrite" not in said
    (proj / name).unlink()
    assert run_command(["report", str(proj)]) == 0


def test_a_damaged_table_is_no_reason_to_destroy_the_run(proj, capsys):
    """C13."""
    (proj / "clusters.csv").write_text("")
    assert run_command(["report", str(proj)]) == 5
    assert "--overwrite" not in capsys.readouterr().err


def test_a_connection_that_breaks_is_a_signal(command, proj, tmp_path):
    """C6: SIGHUP left a hidden folder behind."""
    (tmp_path / "out").mkdir()
    arguments = ["export", proj, "--to", "folders", "-o", tmp_path / "out" / "x", "-q"]
    code, said = command(*arguments, trap=("SIGHUP", "os:symlink", 2))
    assert (code, said) == (75, "error: stopped by SIGHUP\n")
    assert [*(tmp_path / "out").iterdir()] == []


def test_help_that_nobody_reads(proj):
    """C10: rich ended the process with 1."""
    reading, writing = os.pipe()
    os.close(reading)
    script = "import sys; from deepcluster.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", script, "fit", "--help"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_more_than_3000_groups(command, tmp_path):
    """C0: every -k above 3,000 ended with 1 after all training, and recut left a mixed run."""
    pixels = np.random.default_rng(0).integers(0, 255, (3010, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    run, options = tmp_path / "run", ["--image-size", "8", "--rounds", "0", "--precision", "fp32", "-q"]
    assert command("fit", tmp_path / "a.npy", "-o", run, "-k", "5", *options)[0] == 0
    assert command("recut", run, "-k", "3001", "-q")[0] == 0
    assert check_whole(run) == 3001
