"""Forty images dragged in the file manager against the same forty rows of a table: how many others follow?

    python benchmarks/dragged.py FOLDER... [--seeds 0 1 2]

FOLDERs have folders of kinds. 650 of their photographs are fitted. A simulated person names the folder of each cluster
of the export by the kind of most of its images, and drags 40 images that lie wrong, drawn by the seed, into the folder
of their kind; another run is taught the same names and images as a table. results/dragged.json gets a row for each.
"""

import random
import shutil
from collections import Counter
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from common import fit, parser_of, save

from deepcluster.export import folders
from deepcluster.export.read_back import teach_folder
from deepcluster.runs.apply import apply
from deepcluster.runs.run import read_run
from deepcluster.runs.teach import Answer, teach
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.run_folder import open_run

PHOTOGRAPHS, DRAGGED = 650, 40


def kind(path: str) -> str:
    return path.partition("__")[2].rpartition(".")[0]


def right(run: Path) -> dict[str, bool]:
    """Tell of each image if it has the name of its kind."""
    now = read_run(open_run(run))
    return {path: name == kind(path) for path, name in zip(now.rows.paths, now.names, strict=True)}


def drag(tree: Path, names: dict[int, str], paths: dict[str, Path], moved: list[str]) -> None:
    """Rename the folder of each cluster and move images to the first folder of their kind, or to a new one."""
    folder_of: dict[str, Path] = {}
    for number, name in names.items():
        folder = (tree / f"{number:03}").rename(tree / f"{number:03}-{name}")
        folder_of.setdefault(name, folder)
    for path in moved:
        old = paths[path]
        target = folder_of.get(kind(path), tree / kind(path))
        target.mkdir(exist_ok=True)
        (tree / f"{old.parent.name}-{names[int(old.parent.name)]}" / old.name).rename(target / old.name)


def measured(fitted: Path, folder: Path, seed: int) -> list[dict[str, Any]]:
    now = read_run(open_run(fitted))
    clusters = dict(zip(now.rows.paths, now.placement.cluster.tolist(), strict=True))
    names = {}
    for number in sorted({*clusters.values()}):
        ((names[number], _),) = Counter(kind(path) for path, at in clusters.items() if at == number).most_common(1)
    wrong = [path for path, at in clusters.items() if names[at] != kind(path)]
    moved = random.Random(seed).sample(wrong, DRAGGED)
    by_folder, by_table, tree = folder / "by_folder", folder / "by_table", folder / "sorted"
    shutil.copytree(fitted, by_folder)
    shutil.copytree(fitted, by_table)
    drag(tree, names, {row["path"]: tree / row["exported_path"] for row in folders(by_folder, tree)}, moved)
    teach_folder(by_folder, tree)
    apply(by_table, Edits(names=names))
    before = right(by_table)
    teach(by_table, [Answer(path, name=kind(path)) for path in moved])
    rows = []
    for way, run in (("folder", by_folder), ("table", by_table)):
        after = right(run)
        followed = sum(after[path] - before[path] for path in after if path not in moved)
        shares = {"before": mean(before.values()), "right": mean(after.values())}
        rows.append({"seed": seed, "way": way, **shares, "followed": followed})
    return rows


def main() -> None:
    parser = parser_of(__doc__, seeds=(0, 1, 2))
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args()
    files = sorted(file.resolve() for folder in args.folders for file in folder.rglob("*.jpg"))
    with TemporaryDirectory() as at:
        photos, fitted = Path(at) / "photos", Path(at) / "run"
        photos.mkdir()
        for i, file in enumerate(random.Random(0).sample(files, PHOTOGRAPHS)):
            shutil.copy(file, photos / f"{i:03}__{file.parent.name}{file.suffix}")
        fit(photos, ["--quiet"], fitted)
        rows = [row for seed in args.seeds for row in measured(fitted, Path(at) / str(seed), seed)]
    for row in rows:
        print(row)
    save("dragged", {"runs": rows})


if __name__ == "__main__":
    main()
