"""How good are the clusters? Methods side by side on class folders, over seeds; the labels only score.

    python benchmarks/quality.py NAME IMAGES -k K [--test IMAGES] [--methods ...] [--seeds 0 1 2] [--minutes 60]
                                 [--whole CLASS --share 0.1] [--hold-out 0.2]
                                 [--backbone timm:NAME --weights FILE] [-- options of deepcluster fit]

Prints ACC, NMI, AMI, ARI (mean and standard deviation over the seeds), seconds, and with --test the accuracy of 20
nearest neighbours on those images by the features. results/quality-NAME.json grows by every run, so a long comparison
can be made in parts; ``--methods`` without a name prints what is there.

pixels, pca: scikit-learn's k-means on the pixels (at most 32 px), or on their 50 principal components. untrained: the
network of auto before its first round. v1, v2, classic, auto: the recipes, v1 and v2 with the compact network at --size
px and K = 10 k; they end by --time-limit. classic-3: with three clusterings of growing numbers of clusters.
v1-official, v1-none: v1 with the sampling of the released code, and without any.
dec, idec, dcn: ClustPy's, with their own defaults, the epochs cut down where 100 + 150 do not fit into --minutes (one
seed is enough).
--whole makes a copy in which one class is kept and of the others a share, to see what balancing does. --hold-out keeps
a share of each class out of the run and gives it to `predict`: the NMI of these images is the column held_out.
With --backbone and --weights, auto and untrained start from that network, and there are its frozen features, at the
image size of auto and of length 1: frozen, k-means (10 starts) on them; frozen-umap, on 10 dimensions of
UMAP (pip install umap-learn) of them.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import METRICS, RESULTS, fit, save, spread

Run = Callable[[argparse.Namespace, int], dict[str, float]]
NEIGHBOURS, TEMPERATURE = 20, 0.1
CLUSTPY_EPOCHS = (100, 150)  # its defaults: pretraining, clustering


def pixels(images: str, most: int = 32) -> tuple[npt.NDArray[np.float32], list[str]]:
    """The pixels, N x 3 S^2 in [0, 1] with S the side of the images, at ``most`` that; and the labels."""
    from deepcluster.images import find
    from deepcluster.images.labels import true_labels
    from deepcluster.images.preview import preview
    from deepcluster.images.store import read_once

    source = find(images)
    labels = true_labels("folders", source)
    size = min(most, preview(source).short_side)
    with tempfile.TemporaryDirectory() as folder:
        store = read_once(source, size, folder=Path(folder))
        rows = store.images.permute(0, 2, 3, 1).numpy().reshape(len(store.kept), -1).astype(np.float32) / 255
    return rows, [labels[i] for i in store.kept]


def scored(labels: list[str], found: npt.NDArray[Any], begin: float) -> dict[str, float]:
    from deepcluster.clustering.agreement import scores

    numbers = np.unique(labels, return_inverse=True)[1]
    return {**scores(numbers, found), "seconds": round(time.perf_counter() - begin, 1)}


# ---- methods --------------------------------------------------------------------------------------------------------


def on_pixels(options: argparse.Namespace, seed: int, *, components: int = 0) -> dict[str, float]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    rows, labels = pixels(options.images)
    begin = time.perf_counter()
    if components:
        rows = PCA(components, random_state=seed).fit_transform(rows)
    return scored(labels, KMeans(options.k, n_init=3, random_state=seed).fit_predict(rows), begin)


def frozen(options: argparse.Namespace, seed: int, *, umap: bool = False) -> dict[str, float]:
    """k-means on the features of the network as it was given, which are computed once and kept while this runs."""
    from sklearn.cluster import KMeans

    begin = time.perf_counter()
    rows, labels = features(options.images, options.backbone, options.weights)
    if umap:
        from umap import UMAP

        rows = UMAP(n_components=10, random_state=seed).fit_transform(rows)
    return scored(labels, KMeans(options.k, n_init=10, random_state=seed).fit_predict(rows), begin)


@cache
def features(images: str, backbone: str, weights: str) -> tuple[npt.NDArray[np.float32], list[str]]:
    from torch.nn import functional as F

    from deepcluster.images import find
    from deepcluster.images.labels import true_labels
    from deepcluster.images.preview import preview
    from deepcluster.images.store import read_once
    from deepcluster.learning.features import extract
    from deepcluster.nets.backbone import build
    from deepcluster.runs.job import Request, plan

    source = find(images)
    labels = true_labels("folders", source)
    options = {"backbone": backbone, "weights": weights}
    recipe = plan(source, preview(source), Request(n_clusters=2, options=options, device="cpu")).recipe
    network = build(backbone, image_size=recipe.image_size, weights=weights)
    with tempfile.TemporaryDirectory() as folder:
        store = read_once(source, recipe.store_size, folder=Path(folder))
        rows = F.normalize(extract(network, store.images, size=recipe.image_size), dim=1)
    return rows.numpy(), [labels[i] for i in store.kept]


def command(options: argparse.Namespace, seed: int, *, arguments: tuple[str, ...]) -> dict[str, float]:
    """`deepcluster fit` in a process of its own; scores are those of clusters.csv."""
    settings = ["-k", str(options.k), "--labels", "folders", "--seed", str(seed)]
    settings += ["--time-limit", f"{options.minutes}m"]
    if {"v1", "v2"} & set(arguments):
        settings += ["--backbone", "compact", "--image-size", str(options.size), "--pseudo-labels", str(10 * options.k)]
    elif options.weights:
        settings += ["--backbone", options.backbone, "--weights", options.weights]
    settings += [*arguments, *options.passed]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = fit(options.images, settings, out=run)
        kept = {name: result[name] for name in (*METRICS, "seconds", "rounds", "peak_memory_mb")}
        kept |= {"start_nmi": result["baseline_nmi"]} if "baseline_nmi" in result else {}
        kept |= {"held_out": held_out(run, options.held)} if options.held else {}
        return kept | ({"knn": neighbours(run, options.test)} if options.test else {})


def held_out(run: Path, images: str) -> float:
    """NMI of the clusters that `predict` gives to images that were not trained on."""
    import csv
    import io

    from deepcluster.clustering.agreement import nmi

    command = [sys.executable, "-m", "deepcluster", "predict", str(run), images, "-o", "-"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    return nmi([row["path"].split("/")[0] for row in rows], [row["cluster"] for row in rows])


def neighbours(run: Path, test: str) -> float:
    """Accuracy on ``test`` of the weighted vote of the nearest training images, by the features of the run."""
    import torch

    file = run / "test.npy"
    subprocess.run(
        [sys.executable, "-m", "deepcluster", "embed", str(run), test, "-o", str(file), "--overwrite"], check=True
    )
    import csv

    with (run / "clusters.csv").open() as table:
        known = [row["label"] for row in csv.DictReader(table) if row["status"] == "ok"]
    wanted = pixels(test, 8)[1]
    names = sorted({*known, *wanted})
    labels = torch.tensor([names.index(label) for label in known])
    truth = torch.tensor([names.index(label) for label in wanted])
    rows, queries = (torch.from_numpy(np.load(path)) for path in (run / "features.npy", file))
    right = 0
    for part, answer in zip(queries.split(500), truth.split(500), strict=True):
        likeness, nearest = (part @ rows.T).topk(NEIGHBOURS, 1)
        votes = torch.zeros(len(part), len(names)).scatter_add_(1, labels[nearest], (likeness / TEMPERATURE).exp())
        right += int((votes.argmax(1) == answer).sum())
    return right / len(truth)


def clustpy(options: argparse.Namespace, seed: int, *, name: str) -> dict[str, float]:
    """One of ClustPy's methods in a process of its own, which is stopped half a minute after the time limit."""
    script = [sys.executable, __file__, "--clustpy", name, options.images, str(options.k), str(seed)]
    limit = 60 * options.minutes
    done = subprocess.run(
        [*script, str(limit)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=limit * 1.5 + 60,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def clustpy_process(name: str, images: str, k: str, seed: str, limit: str) -> None:
    import clustpy.deep

    method = getattr(clustpy.deep, name.upper())
    rows, labels = pixels(images)

    def run(epochs: tuple[int, int]) -> tuple[npt.NDArray[Any], float]:
        begin = time.perf_counter()
        model = method(
            int(k), pretrain_epochs=epochs[0], clustering_epochs=epochs[1], random_state=int(seed), device="cpu"
        )
        return model.fit(rows).labels_, time.perf_counter() - begin

    one, two = run((1, 1))[1], run((2, 2))[1]  # their difference is an epoch of each, without the start
    share = min(1.0, 0.9 * float(limit) / (sum(CLUSTPY_EPOCHS) / 2 * max(two - one, 1e-3) + one))
    epochs = tuple(max(1, round(share * number)) for number in CLUSTPY_EPOCHS)
    begin = time.perf_counter()
    found, _ = run((epochs[0], epochs[1]))
    result = scored(labels, found, begin)
    print(json.dumps({**result, "pretrain_epochs": epochs[0], "clustering_epochs": epochs[1]}))


V1 = ("--recipe", "v1", "--set", "margin=1")
METHODS: dict[str, Run] = {
    "frozen": frozen,
    "frozen-umap": partial(frozen, umap=True),
    "pixels": on_pixels,
    "pca": partial(on_pixels, components=50),
    "untrained": partial(command, arguments=("--rounds", "0")),
    "v1": partial(command, arguments=V1),
    "v1-official": partial(command, arguments=(*V1, "--set", "sampling=official")),
    "v1-none": partial(command, arguments=(*V1, "--set", "sampling=none")),
    "v2": partial(command, arguments=("--recipe", "v2", "--set", "margin=1")),
    "classic": partial(command, arguments=("--recipe", "classic")),
    "classic-3": partial(command, arguments=("--recipe", "classic", "--set", "heads=3", "head_growth=2")),
    "auto": partial(command, arguments=()),
    **{name: partial(clustpy, name=name) for name in ("dec", "idec", "dcn")},
}
FROM_SCRATCH = ["pixels", "pca", "untrained", "v1", "v2", "classic", "auto", "dec", "idec", "dcn"]


# ---- the comparison -------------------------------------------------------------------------------------------------


@contextmanager
def copied(images: str, whole: str | None, share: float, out: float, seed: int) -> Iterator[tuple[str, str]]:
    """Two folders with copies: all images of the class ``whole`` and a share of those of each other class, but for a
    share ``out`` of each, which is in the second folder."""
    with tempfile.TemporaryDirectory() as folder:
        for of in sorted(path for path in Path(images).resolve().iterdir() if path.is_dir()):
            files = sorted(path for path in of.iterdir() if path.is_file())
            if whole and of.name != whole:
                files = random.Random(0).sample(files, round(share * len(files)))
            kept_out = set(random.Random(seed).sample(files, round(out * len(files))))
            for file in files:
                place = Path(folder) / ("out" if file in kept_out else "in") / of.name / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
        yield f"{folder}/in", f"{folder}/out"


def runs(file: Path) -> list[dict[str, Any]]:
    """What is there already, another comparison that runs beside this one included."""
    return list(json.loads(file.read_text())["runs"]) if file.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    columns = [
        name for name in (*METRICS, "start_nmi", "held_out", "knn", "seconds") if any(name in row for row in rows)
    ]
    lines = [f"{'':14}{'seeds':>8}" + "".join(f"{name.upper():>17}" for name in columns)]
    for method in METHODS:
        of = [row for row in rows if row["method"] == method]
        if of:
            cells = [spread([row[name] for row in of]) if name in of[0] else "" for name in columns]
            lines.append(f"{method:14}{len(of):>8}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    own, _, passed = "\0".join(sys.argv[1:]).partition("\0--\0")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="results/quality-NAME.json is written")
    parser.add_argument("images")
    parser.add_argument("-k", type=int, required=True)
    parser.add_argument("--test")
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=METHODS,
        default=FROM_SCRATCH,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=32, help="px, for v1 and v2")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--whole")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--hold-out", type=float, default=0.0)
    parser.add_argument("--backbone", default="")
    parser.add_argument("--weights", default="")
    options = parser.parse_args(own.split("\0"))
    options.passed = passed.split("\0") if passed else []
    file = RESULTS / f"quality-{options.name}.json"
    original = options.images
    for method in options.methods:
        for seed in options.seeds if method not in ("dec", "idec", "dcn") else options.seeds[:1]:
            options.held = ""
            if options.whole or options.hold_out:
                copies = copied(original, options.whole, options.share, options.hold_out, seed)
                with copies as (options.images, out):
                    options.held = out if options.hold_out else ""
                    result = METHODS[method](options, seed)
            else:
                result = METHODS[method](options, seed)
            rows = [row for row in runs(file) if (row["method"], row["seed"]) != (method, seed)]
            rows.append({"method": method, "seed": seed, "options": " ".join(options.passed), **result})
            save(f"quality-{options.name}", {"runs": rows})
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(runs(file)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--clustpy"]:
        clustpy_process(*sys.argv[2:])
    else:
        main()
