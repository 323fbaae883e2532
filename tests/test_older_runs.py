"""Runs of other versions: a stored run of each schema is read, and one that cannot be read is not called damaged."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepcluster.errors import ModelError
from deepcluster.records import State
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.content import FILES
from tests.helpers.runs import change_record, rows, state_of
from tests.tiny import change_config

DATA = Path(__file__).parent / "data/runs"
COMMANDS = (
    "doctor {run}", "report {run}", "similar {run} red/1.png", "evaluate {run} --labels folders", "apply {run} --undo",
    "export {run} --to folders -o {run}-sorted", "update {run} {data}/added", "recut {run} -k 2",
    "export {run} --to parquet -o {run}.parquet",
)  # fmt: skip


@pytest.fixture(params=sorted(path.name for path in DATA.glob("schema-*")))
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a stored run, whose images are those in tests/data/runs."""
    run = Path(shutil.copytree(DATA / request.param, tmp_path / "run"))
    weights = run / "model/model.safetensors"
    weights.write_bytes(gzip.decompress(weights.with_suffix(".safetensors.gz").read_bytes()))
    for name in ("run.json", "added.csv"):
        (run / name).write_text((run / name).read_text().replace("/stored", str(DATA)))
    return run


def check_all_commands(run: Path, prints: Callable[..., str]) -> None:
    clusters = (run / "clusters.csv").read_text()
    placed = [line.split(",")[:2] for line in prints("predict", run, DATA / "photos").splitlines()[1:]]
    assert len(placed) == 18 and all(f"\n{path},ok,{cluster}," in clusters for path, cluster in placed)
    for command in COMMANDS:
        prints(*command.format(run=run, data=DATA).split())
    assert state_of(run)
    assert tuple(rows(run / "clusters.csv")[0]) == FILES["clusters.csv"].columns


def test_a_stored_run_of_each_schema_is_read_by_all_commands(stored, prints):
    check_all_commands(stored, prints)


NEWER = {"clusters.csv": "label", "cluster_summary.csv": "junk", "history.csv": "lr", "skipped.csv": "reason",
         "added.csv": "label", "duplicates.csv": "distance"}  # fmt: skip


def test_columns_options_and_entries_of_other_versions(stored, prints, ends, monkeypatch):
    """Only a column that is declared as newer may be missing."""
    for name, column in NEWER.items():
        table = [{key: cell for key, cell in row.items() if key != column} for row in rows(stored / name)]
        (stored / name).write_text("\n".join(",".join(line) for line in (table[0], *(row.values() for row in table))))
        assert f"is damaged (it has no column {column})" in ends(["report", stored], 5)
        monkeypatch.setitem(FILES, name, replace(FILES[name], newer=(*FILES[name].newer, column)))
    with (stored / "recipe.toml").open("a") as file:
        file.write("retired = 1\n")
    former = load_file(stored / "former.safetensors")
    about = json.loads(former["about"].numpy().tobytes())
    del about["record"]["verdict"]
    about["record"]["later"] = 1
    former["about"] = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    save_file(former, stored / "former.safetensors")
    check_all_commands(stored, prints)


@pytest.mark.parametrize(("version", "advice"), [(0, "use that version, or fit again"), (99, "update deepcluster")])
def test_another_schema_is_named_with_a_way_out(stored, ends, version, advice):
    Checkpoints(stored / "checkpoints").write(State(1), {}, {})
    checkpoint = stored / "checkpoints/000001.json"
    checkpoint.write_text(checkpoint.read_text().replace('"schema_version": 4', f'"schema_version": {version}'))
    with pytest.raises(ModelError) as error:
        Checkpoints(stored / "checkpoints").latest()
    change_config(stored / "model", schema_version=version)
    said = [str(error.value), ends(["predict", stored, DATA / "photos"], 4)]
    change_record(stored, schema_version=version)
    said += [ends(command, 5) for command in (["report", stored], ["fit", DATA, "-o", stored, "--overwrite"])]
    for text in said:
        assert f"schema_version {version}" in text and advice in text and "damaged" not in text, text
