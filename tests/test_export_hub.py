import contextlib
import io
import json
import platform
import re

import numpy as np
import pytest
import torch

import deepcluster
from deepcluster.cli import run_command
from deepcluster.errors import DiskError
from deepcluster.export.hub import hub, markdown_text
from deepcluster.images import find
from deepcluster.images.store import read_once
from deepcluster.storage import model_files as models
from deepcluster.storage.run_folder import RunFolder
from tests.exports import hand_run, tree, write_image
from tests.tiny import tiny_model

HOSTILE = "a|b\n<img src=x onerror=alert(1)> [x](http://evil) `c` \udcff"


@pytest.fixture
def run(tmp_path):
    for i in range(3):
        write_image(tmp_path / "private photos" / f"holiday{i}.png", i)
    clusters = {"holiday0.png": 0, "holiday1.png": 1, "holiday2.png": 1}
    run = hand_run(tmp_path / "run", str(tmp_path / "private photos"), clusters, names={1: HOSTILE}, junk=[1])
    models.save(tiny_model(names=("", HOSTILE)), run / "model")
    (run / "recipe.toml").write_text('rounds = 0\nweights = "/home/me/secret folder/weights.safetensors"\nlr = 0.1\n')
    record = json.loads((run / "run.json").read_text()) | {
        "images_count": 1234, "verdict": "The groups are clear.", "command": f"deepcluster fit {tmp_path}",
        "environment": {"torch": "2.13.0", "python": "3.11.7", "platform": f"Linux-{platform.node()}"},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_the_model_is_the_same(run, tmp_path):
    hub(run, tmp_path / "out")
    assert tree(tmp_path / "out") == ["README.md", "config.json", "model.safetensors"]
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, original = deepcluster.load(tmp_path / "out"), deepcluster.load(run)
    assert torch.equal(found.transform(images), original.transform(images))
    assert (found.names, found.junk) == (original.names, original.junk)


def test_the_card(run, tmp_path):
    hub(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    front = re.match(r"---\n((?:[a-z_]+: [a-z-]+\n|tags:\n|- [a-z-]+\n)+)---\n\n# 2 clusters of images\n", text)
    assert front and "library_name: deepcluster" in front[1]
    assert "1,234 images were clustered, after 0 rounds" in text
    assert "The groups are clear." in text
    assert "There were no labels" in text
    assert 'weights = "weights.safetensors"' in text
    assert "torch 2.13.0, python 3.11.7" in text
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) == 2
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6, 6]
    assert "marked as junk" in rows[1]


def test_the_card_tells_nothing_of_the_owner(run, tmp_path):
    hub(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text() + (tmp_path / "out" / "config.json").read_text()
    for secret in (str(tmp_path), "/home/me", "secret folder", "holiday", "private photos", platform.node()):
        assert secret not in text


def test_names_are_inert(run, tmp_path):
    hub(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "<img" not in text
    assert re.search(r"(?<!\\)\[x\]", text) is None
    assert "&lt;img" in text and r"a\|b\\x0a" in text and r"\\xff" in text


def test_metrics(run, tmp_path):
    RunFolder(run).write_json("metrics.json", {"acc": 0.5, "nmi": 0.25, "baseline_nmi": 0.125, "labelled": 3})
    hub(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| NMI | 0.250 | 0.125 |" in text
    assert "| accuracy (best matching) | 0.500 | \u2013 |" in text
    assert "ARI" not in text


def test_the_code_in_the_card_runs(run, tmp_path, monkeypatch):
    hub(run, tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert code
    (tmp_path / "private photos").rename(tmp_path / "out" / "photos")
    monkeypatch.chdir(tmp_path / "out")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code[1], {})
    model = deepcluster.load(run)
    store = read_once(find(tmp_path / "out" / "photos"), model.store_size)
    clusters = model.place(model.transform(store.images)).cluster.tolist()
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("holiday")]
    assert [int(line.split()[1]) for line in lines] == clusters


def test_what_is_there_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert run_command(["export", str(run), "--to", "hub", "-o", str(tmp_path / "out")]) == DiskError.exit_code
    assert tree(tmp_path / "out") == ["mine"]
    assert run_command(["export", str(run), "--to", "hub", "-o", str(tmp_path / "new")]) == 0
    assert "hf upload USER/NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("recipe.toml", b"rounds = ", 5),
        ("recipe.toml", b"\xff", 5),
        ("run.json", b"{}", 5),
        ("metrics.json", b"[]", 5),
        ("cluster_summary.csv", b"a,b\n1,2\n", 5),
        ("model/config.json", b"{}", 4),
    ],
)
def test_a_damaged_run(run, tmp_path, name, content, code, capsys):
    (run / name).write_bytes(content)
    assert run_command(["export", str(run), "--to", "hub", "-o", str(tmp_path / "out")]) == code
    assert capsys.readouterr().err.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["private photos", "run"]


def test_odd_values_in_a_run_do_not_break_the_card(run, tmp_path):
    record = json.loads((run / "run.json").read_text())
    record |= {"rounds": "many", "images_count": None, "environment": ["x"], "verdict": 3}
    (run / "run.json").write_text(json.dumps(record))
    RunFolder(run).write_json("metrics.json", {"acc": "high", "nmi": [1], "labelled": {}})
    hub(run, tmp_path / "out")
    assert "? images were clustered" in (tmp_path / "out" / "README.md").read_text()
    assert np.isfinite(deepcluster.load(tmp_path / "out").fine_centroids.numpy()).all()


@pytest.mark.parametrize(
    "name",
    ["https://evil.example/x", "ftp://a", "see HTTP://a", "www.evil.example", "WWW.a", "@admin", "me@evil.example",
     "evil.example", "#12", "GH-12", "a ` `` https://b", "mailto:a"],
)  # fmt: skip
def test_no_name_becomes_a_link_by_itself(name):
    """GitHub and the Hub make links of bare addresses, but none of code."""
    text = markdown_text(name)
    fence = re.match("`+", text)[0]
    assert text.startswith(f"{fence} ") and text.endswith(f" {fence}") and len(fence) * 2 < len(text)
    assert re.search(f"(?<!`){fence}(?!`)", text[len(fence) : -len(fence)]) is None


@pytest.mark.parametrize("name", ["beach", "2.13.0", "dogs & cats", "no. 3", "a/b", "caf\u00e9"])
def test_ordinary_names_are_no_code(name):
    assert markdown_text(name) == name.replace("&", "&amp;")
