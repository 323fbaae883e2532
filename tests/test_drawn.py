"""Map, tree and thumbnails in the run folder: read back as written, refused when damaged, made when missing."""

import json
import re
from pathlib import Path

import pytest

from deepcluster.errors import DiskError
from deepcluster.groups.tree import Tree
from deepcluster.runs import page as drawn
from deepcluster.runs.recut import recut
from deepcluster.storage.run_folder import RunFolder
from tests.tiny import writable

TREE = Tree(groups=(0, 0, 12), merges=((0, 1), (3, 2)), sizes=(2, 3, 4, 5, 9), medoids=(0, 3, 8, 3, 8))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("groups", [0, 0]), ("groups", [0, 0, -1]), ("groups", [0, 0, "1"]), ("groups", [0, 0, True]), ("groups", []),
        ("merges", [[0, 1], [0, 2]]), ("merges", [[0, 1], [4, 2]]), ("merges", [[3, 1], [0, 2]]), ("merges", [[0, 1]]),
        ("merges", [[0, 1, 2], [3]]), ("merges", [0, 1]), ("merges", {}), ("sizes", [1, 2, 3, 4]),
        ("sizes", [1, 2, 3, 4, 10]), ("medoids", [0, 3, 8, 3, 9]), ("medoids", [0, 3, 8, 3, 1e3]),
    ],
)  # fmt: skip
def test_a_tree_comes_back_and_what_is_none_is_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = writable(tmp_path)
    assert drawn.read_tree(folder, 9) is None
    drawn.write_tree(folder, TREE)
    assert drawn.read_tree(folder, 9) == TREE
    table = json.loads((tmp_path / "tree.json").read_text())
    (tmp_path / "tree.json").write_text(json.dumps(table | {key: value}))
    with pytest.raises(DiskError, match=r"tree\.json"):
        drawn.read_tree(folder, 9)


def parts(run: Path) -> set[str]:
    return set(re.findall('id="(clusters|map|groups)"', (run / "report.html").read_text()))


def test_the_report_makes_map_and_tree_if_a_run_has_none(run: Path) -> None:
    before = {name: (run / name).read_bytes() for name in ("map.npy", "tree.json")}
    for name in (*before, "thumbnails.webp", "duplicates.csv"):
        (run / name).unlink()
    drawn.report(run)
    assert {name: (run / name).read_bytes() for name in before} == before  # made as the fit would have
    assert parts(run) == {"clusters", "map", "groups"}
    for name in (*before, "features.npy"):
        (run / name).unlink()
    drawn.report(run)
    assert parts(run) == {"clusters"}


def test_recut_draws_another_tree_and_keeps_the_map(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "map.npy").read_bytes()
    recut(run, 2)
    tree = drawn.read_tree(RunFolder(run), 48)
    assert tree is not None and set(tree.groups) == {0, 1}
    assert (run / "map.npy").read_bytes() == before
    monkeypatch.setattr(drawn, "MAX_IN_TREE", 1)
    recut(run, 3)  # of very many groups there is no tree, nor the old one
    assert not (run / "tree.json").exists() and parts(run) == {"clusters", "map"}
