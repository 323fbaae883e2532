"""Runs of other versions: a stored run of each schema is read, and one that cannot be read is not called damaged."""

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deepcluster.cli import run_command
from deepcluster.errors import ModelError
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.content import FILES
from deepcluster.storage.run_folder import open_run
from deepcluster.storage.steps import read_steps
from tests.helpers.runs import change_record, record, rows, state_of
from tests.tiny import change_config

DATA = Path(__file__).parent / "data/runs"
COMMANDS = ("report", "evaluate --labels folders", "apply --undo", "apply --redo", f"update {DATA}/added", "recut -k 2")
COMMANDS += ("export --to folders -o sorted", "export --to parquet -o table.parquet")
# Columns, as if older versions had none of these.
NEWER = {"clusters.csv": "label", "cluster_summary.csv": "junk", "history.csv": "lr", "skipped.csv": "reason"}
NEWER |= {"added.csv": "label", "duplicates.csv": "distance"}


@pytest.fixture(params=sorted(path.name for path in DATA.glob("schema-*")))
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a stored run, whose images are those in tests/data/runs."""
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(DATA / request.param, "run"))
    weights = run / "model/model.safetensors"
    weights.write_bytes(gzip.decompress(weights.with_suffix(".safetensors.gz").read_bytes()))
    for name in ("run.json", "added.csv"):
        (run / name).write_text((run / name).read_text().replace("/stored", str(DATA)))
    return run


@pytest.mark.parametrize("is_older", [False, True])
def test_all_commands_read_runs_of_all_schemas_also_without_newer_parts(stored, prints, ends, monkeypatch, is_older):
    """Newer are columns and an entry for an undo; older is the option probe. Only declared columns may be missing."""
    for name, column in NEWER.items() if is_older else ():
        table = [{key: cell for key, cell in row.items() if key != column} for row in rows(stored / name)]
        (stored / name).write_text("\n".join(",".join(line) for line in (table[0], *(row.values() for row in table))))
        assert column in ends(["report", stored], 5)
        monkeypatch.setitem(FILES, name, replace(FILES[name], newer=(*FILES[name].newer, column)))
    if is_older:
        former = stored / "former.safetensors"
        former.write_bytes(former.read_bytes().replace(b'"verdict"', b'"retired"'))
    clusters = (stored / "clusters.csv").read_text()
    placed = [line.split(",")[:2] for line in prints("predict", stored, DATA / "photos").splitlines()[1:]]
    assert len(placed) == 18 and all(f"\n{path},ok,{cluster}," in clusters for path, cluster in placed)
    prints("fit", DATA / "photos", "-k", "3", "--seed", "5", "-o", stored, "--resume")
    for command, *options in map(str.split, COMMANDS):
        prints(command, stored, *options)
    assert state_of(stored) and "rows_sha256" in record(stored)  # `rows` before


@pytest.mark.parametrize(("version", "advice"), [(0, "use that version, or fit again"), (99, "update deepcluster")])
def test_another_schema_is_named_with_a_way_out(stored, ends, version, advice):
    (stored / "checkpoints/000001.json").write_text(f'{{"schema_version": {version}, "sha256": ""}}')
    with pytest.raises(ModelError) as error:
        Checkpoints(stored / "checkpoints").latest()
    change_config(stored / "model", schema_version=version)
    said = [str(error.value), ends(["predict", stored, DATA / "photos"], 4)]
    change_record(stored, schema_version=version)
    said += [ends(command, 5) for command in (["report", stored], ["fit", DATA, "-o", stored, "--overwrite"])]
    for text in said:
        assert f"schema_version {version}" in text and advice in text and "damaged" not in text, text


@pytest.mark.parametrize("is_edited", [False, True])
def test_a_run_with_two_levels_is_read_and_one_line_leaves_the_names_of_its_groups_out(is_edited, tmp_path, capsys):
    """Its merge, move, marks and names of clusters stay, and so do the steps back; so do edits of an older page."""
    run = Path(shutil.copytree(DATA / f"two-levels{'-edited' * is_edited}", tmp_path / "run"))
    before = [(row["cluster"], row["name"], row["junk"]) for row in rows(run / "cluster_summary.csv")]
    (tmp_path / "edits.json").write_text('{"schema_version": 1, "names": {"3": "sky"}, "group_names": {"0": "left"}}')

    def told(*command) -> str:
        assert run_command([*map(str, command)]) == 0
        return capsys.readouterr().err

    for command in (
        ("report", run),
        ("predict", run, run / "features.npy"),
        ("export", run, "--to", "parquet", "-o", tmp_path / "out"),
    ):
        assert told(*command).count("left, middle, right") == is_edited, command
    assert told("apply", run, tmp_path / "edits.json").count("in these edits are left out") == 1
    assert [(row["cluster"], row["name"], row["junk"]) for row in rows(run / "cluster_summary.csv")] == [
        (cluster, "sky" if cluster == "3" else name, junk) for cluster, name, junk in before
    ]
    assert not {"group", "group_name"} & {*rows(run / "clusters.csv")[0], *rows(run / "cluster_summary.csv")[0]}
    older = read_steps(open_run(run))[0][1:]  # without that of the apply here
    assert {(step.about["moved"], step.about["at"]) for step in older} == {(0, "")} or not is_edited
    assert told("apply", run, "--undo", "all") == "" and len(rows(run / "cluster_summary.csv")) == 9
    assert state_of(run)


def test_an_interrupted_run_goes_on_without_options_that_are_gone(stored, prints):
    recipe = (stored / "recipe.toml").read_text()
    assert "\nguess = " in recipe
    (stored / "recipe.toml").write_text(
        recipe.replace("/stored/weights.safetensors", "").replace("rounds = 1", "rounds = 0")
    )
    change_record(stored, status="running")
    prints("fit", DATA / "photos", "-k", "3", "--seed", "5", "-o", stored, "--resume")
    assert record(stored)["status"] == "done"
