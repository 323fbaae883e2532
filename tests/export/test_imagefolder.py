import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from deepcluster.errors import UsageError
from deepcluster.export import folders, imagefolder
from deepcluster.export.plan import INVENTORY, SUFFIXES, class_folders
from deepcluster.export.split import PARTS, balanced, split
from deepcluster.recipes.flags import read_shares
from deepcluster.storage.model_config import read_summary
from deepcluster.storage.run_folder import RunFolder
from tests.helpers.drawings import colour, write_image
from tests.helpers.image_files import talkative
from tests.helpers.names import NAMES
from tests.helpers.runs import originals, rows, tree
from tests.helpers.tiny import hand_run, photos_run, writable


def metadata(out):
    return rows(out / "train" / "metadata.csv")


def test_the_folder(tmp_path):
    clusters = {"a.png": 0, "sea/a.png": 0, "b.png": 1, "c.png": 1}
    run = photos_run(tmp_path, clusters, names={0: "=beach"}, junk=[1], labels={"a.png": "sand"}, by={"a.png": "drawn"})
    before = originals(tmp_path / "photos")
    imagefolder(run, tmp_path / "out")
    assert originals(tmp_path / "photos") == before
    assert tree(tmp_path / "out") == [
        "README.md", "inventory.csv", "train/001/b.png", "train/001/c.png", "train/beach/a-2.png", "train/beach/a.png",
        "train/metadata.csv",
    ]  # fmt: skip
    assert not any((tmp_path / "out" / path).is_symlink() for path in tree(tmp_path / "out"))
    assert ImageFolder(tmp_path / "out/train").classes == ["001", "beach"]
    same = {"distance": "0.000000", "margin": "1.000000", "is_outlier": "0"}
    # A name that a spreadsheet would run has the same guard as in clusters.csv.
    assert metadata(tmp_path / "out")[0] == {
        "file_name": "beach/a.png", "cluster": "0", "name": "'=beach", "by": "drawn", "junk": "0", **same,
        "label": "sand",
    }  # fmt: skip
    files = {row["file_name"]: row["junk"] for row in metadata(tmp_path / "out")}
    assert files == {"beach/a.png": "0", "beach/a-2.png": "0", "001/b.png": "1", "001/c.png": "1"}
    imagefolder(run, tmp_path / "left", outliers="leave")
    assert [row["file_name"] for row in metadata(tmp_path / "left")] == ["beach/a.png", "001/b.png"]


def test_the_card_says_how_the_labels_came_about(tmp_path):
    by = {"a.png": "drawn", "b.png": "answer", "c.png": "checked"}
    run = photos_run(tmp_path, {f"{name}.png": int(name > "b") for name in "abcde"}, names={0: "owl"}, by=by)
    imagefolder(run, tmp_path / "out")
    card, model = (tmp_path / "out/README.md").read_text(), read_summary(RunFolder(run))
    assert "| owl | 2 | 1 | 0 | 1 |" in card and "| 001 | 3 | 0 | 1 | 0 |" in card
    assert "2 labels are answers of a person (1 about" in card and "1 were checked by one, the other 2 are" in card
    assert "1 of 10 drawn" in card and model.digest in card and str(model.date) in card


def test_classes_have_the_names_of_the_clusters_and_equal_names_share_one():
    names = ["owl", "owl", "Owl", "a/b", "a:b", "test", "my test", "latest", "Eval_2", "metadata.csv", "..", "003", ""]
    names += ["हिन्दी (1).jpg", "__a::b[x]?.png", "\udcff.png"]
    rows = [{"cluster": f"{number}", "name": name} for number, name in enumerate(names)]
    assert [*class_folders(rows).values()] == [
        "owl", "owl", "Owl-2", "a_b", "a_b-2", "'test'", "my 'test'", "latest", "'Eval'_2", "metadata-2.csv", "image",
        "003", "012", "हिन्दी (1).jpg", "a__b_x__.png", "image.png",
    ]  # fmt: skip


def clustered(sizes, alike=()):
    """Paths of images with their cluster, and the sets of near-duplicates among them."""
    cluster_of = {f"{cluster}-{i}": cluster for cluster, size in sizes.items() for i in range(size)}
    return cluster_of, {path: f"{number}" for number, paths in enumerate(alike) for path in paths}


def by_part(cluster_of, part_of):
    return Counter((part, cluster_of[path]) for path, part in part_of.items())


@pytest.mark.parametrize(
    ("sizes", "alike", "shares", "counts"),
    [  # train, validation and test of each cluster
        ({"0": 100, "1": 50}, [], (0.8, 0.1, 0.1), {"0": (80, 10, 10), "1": (40, 5, 5)}),
        ({"0": 3, "1": 2, "2": 1}, [], (0.8, 0.1, 0.1), {"0": (1, 1, 1), "1": (1, 1, 0), "2": (1, 0, 0)}),
        ({"0": 10}, [["0-0", "0-1", "0-2"], ["0-5", "0-6"]], (0.5, 0.2, 0.3), {"0": (5, 2, 3)}),
        ({"0": 60}, [[f"0-{i}" for i in range(50)]], (0.8, 0.1, 0.1), {"0": (50, 5, 5)}),
        ({"0": 60}, [[f"0-{i}" for i in range(59)]], (0.8, 0.1, 0.1), {"0": (59, 1, 0)}),
        ({"0": 10}, [], (0.8, 0, 0.2), {"0": (8, 0, 2)}),
        # Near-duplicates in two clusters: both have just three sets, so the two pairs part them.
        ({"0": 3, "1": 3}, [["0-0", "1-0"], ["0-1", "1-1"]], (0.4, 0.3, 0.3), {"0": (1, 1, 1), "1": (1, 1, 1)}),
    ],
)
def test_parts_by_hand(sizes, alike, shares, counts):
    cluster_of, set_of = clustered(sizes, alike)
    sizes_of_parts = by_part(cluster_of, split(cluster_of, shares, set_of, seed=0))
    assert {cluster: tuple(sizes_of_parts[part, cluster] for part in PARTS) for cluster in sizes} == counts


@given(st.data())
def test_no_near_duplicate_is_in_another_part_and_no_cluster_is_lost(data):
    sizes = data.draw(st.dictionaries(st.sampled_from("0123"), st.integers(1, 20), min_size=1))
    cluster_of, _ = clustered(sizes)
    set_of = data.draw(st.dictionaries(st.sampled_from([*cluster_of]), st.sampled_from("abcdef")))
    part_of = split(cluster_of, (0.6, 0.2, 0.2), set_of, data.draw(st.integers(0, 9)))
    assert part_of.keys() == cluster_of.keys()
    assert len({(set_of[path], part_of[path]) for path in set_of}) == len({*set_of.values()})
    for cluster in sizes:
        paths = [path for path in cluster_of if cluster_of[path] == cluster]
        alone = [path for path in paths if path not in set_of]
        if len(alone) >= 3:
            assert {part_of[path] for path in paths} == {*PARTS}


def test_a_part_and_a_sample_are_drawn_by_the_seed():
    cluster_of, _ = clustered({"0": 100, "1": 7, "2": 100})
    one, same, other = (split(cluster_of, (0.8, 0.1, 0.1), {}, seed) for seed in (1, 1, 2))
    assert one == same != other
    assert by_part(cluster_of, one) == by_part(cluster_of, other)
    one, same, other = (balanced(cluster_of, 47, seed) for seed in (1, 1, 2))
    assert one == same != other
    # 20 each, and the 7 that there are.
    assert Counter(cluster_of[path] for path in one) == {"0": 20, "1": 7, "2": 20}
    assert balanced(cluster_of, 999, 0) == {*cluster_of}


def test_a_split_data_set(tmp_path, prints):
    clusters = {f"{i:02}.png": i % 2 for i in range(40)}
    run = photos_run(tmp_path, clusters, names={0: "test"}, junk=[1])
    alike = ["00.png", "01.png", "02.png", "03.png"]
    with pytest.warns(match=r"duplicates\.csv"):
        imagefolder(run, tmp_path / "unknown", split=".8,.1,.1")
    writable(run).write_rows("duplicates.csv", [{"set": 0, "path": path, "distance": 0} for path in alike])
    out = tmp_path / "out"
    prints("export", run, "--to", "imagefolder", "-o", out, "--split", ".5,.2,.3", "-n", "36", "--seed", "3")
    assert {entry.name for entry in out.iterdir()} == {*PARTS, INVENTORY, "README.md"}
    for part, size in zip(PARTS, (18, 8, 10), strict=True):
        assert Counter(ImageFolder(out / part).targets) == {0: size // 2, 1: size // 2}
        assert {row["file_name"] for row in rows(out / part / "metadata.csv")} == {*tree(out / part)} - {"metadata.csv"}
    exported = {row["path"]: row["exported_path"].partition("/")[0] for row in rows(out / INVENTORY) if row["path"]}
    assert sum(not part for part in exported.values()) == 4
    assert len({exported[path] for path in alike} - {""}) == 1
    folders(run, tmp_path / "sorted", split=[0.8, 0.1, 0.1])
    assert {str(Path(path).parent) for path in tree(tmp_path / "sorted")} >= {"test/000-test", "train/_junk/001"}
    card = (out / "README.md").read_text()
    assert "| class | train | validation | test |" in card and "| 'test' | 9 | 4 | 5 | 0 | 0 | 0 |" in card
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    assert {part: len(rows) for part, rows in loaded.items()} == {"train": 18, "validation": 8, "test": 10}


@pytest.mark.parametrize("text", ["", ".8", ".8,.2", ".8,.1,.2", ".8,.3,-.1", "0,.5,.5", "a,b,c", "nan,.5,.5"])
def test_shares_that_are_none(text, tmp_path, ends):
    with pytest.raises(UsageError, match="train"):
        read_shares(text)
    assert "--split" in ends(["export", tmp_path, "--to", "folders", "-o", tmp_path / "x", f"--split={text}"], 2)


def test_datasets_loads_hostile_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = ["sub/plain.png", "test/b.png", *map(os.fsdecode, NAMES)]
    for i, path in enumerate(paths):
        write_image(tmp_path / "test" / "photos" / path, i)
    clusters = {path: i % 3 for i, path in enumerate(paths)}
    names = {0: "test", 1: "../train/\n=x", 2: "my eval, [3]*"}
    run = hand_run(tmp_path / "run", str(tmp_path / "test" / "photos"), clusters, names=names, skipped=["x.doc"])
    out = tmp_path / "test" / "val-out"
    imagefolder(run, out)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    rows = {tuple(np.asarray(row["image"].convert("RGB"))[0, 0].tolist()): row for row in loaded["train"]}
    assert len(rows) == len(paths)
    for i in range(len(paths)):
        row = rows[colour(i)]
        assert row["image"].size == (4 + i % 3, 4)
        assert (row["cluster"], row["name"]) == (i % 3, names.get(i % 3))
        assert (row["distance"], row["margin"], row["is_outlier"], row["junk"]) == (0, 1, i % 2, 0)


def test_every_suffix_that_is_kept_is_known_to_datasets():
    module = pytest.importorskip("datasets.packaged_modules.imagefolder.imagefolder")
    assert set(module.IMAGE_EXTENSIONS) >= SUFFIXES


def test_copies_are_the_files_themselves_and_a_line_says_what_is_in_them(tmp_path, prints):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "photo"):
        (tmp_path / "photos" / name).write_bytes(talkative()["turned.jpg"])
    run = hand_run(tmp_path / "run", str(tmp_path / "photos"), {"a.jpg": 0, "photo": 0})
    assert "Metadata" in prints("export", run, "--to", "imagefolder", "-o", tmp_path / "out")
    assert (tmp_path / "out/train/000/a.jpg").read_bytes() == talkative()["turned.jpg"]
    with Image.open(tmp_path / "out/train/000/photo.png") as image:  # `datasets` knows images by their suffixes
        assert (image.format, image.size) == ("PNG", (40, 60))
    assert "label" not in metadata(tmp_path / "out")[0]  # no image has one
