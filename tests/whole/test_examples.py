"""The examples run, as a reader would run them."""

import copy
import csv
import json
import os
import re
import runpy
import socket
import struct
import sys
from select import select
from threading import Thread
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote_to_bytes
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans as SklearnKMeans
from torch import nn
from torch.optim import SGD
from torchvision.transforms.functional import five_crop

from deepcluster.clustering import kmeans, whiten
from deepcluster.export import onnx
from deepcluster.images.views import Augmentation
from deepcluster.learning.draws import each_once, uniform_over_clusters
from deepcluster.learning.training import Learning, PseudoLabels, body_optimizer, train_on_pseudo_labels
from deepcluster.nets.network import as_network, build
from deepcluster.nets.weights import shapes_only
from deepcluster.runs.run import placement_columns
from deepcluster.runs.teach import read_answers
from deepcluster.storage.run_folder import RunFolder
from tests.helpers.drawings import KINDS, draw, few_digits, write_image
from tests.helpers.image_files import HEIC, dng, files_of_all_modes, stored
from tests.helpers.pages import ROOT
from tests.helpers.ranks import WAIT
from tests.helpers.runs import predicted
from tests.helpers.tiny import photos_run, tiny_run, write_clusters

EXAMPLES = ROOT / "examples"
slow = pytest.mark.slow


@pytest.fixture
def output_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def output(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.syspath_prepend((EXAMPLES / name).parent)  # as python does
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return output


@pytest.fixture(scope="module")
def linear() -> dict[str, Any]:
    """The names of the linear protocol by layers."""
    return runpy.run_path(str(EXAMPLES / "research/linear.py"))


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


SLOW = [pytest.param(name, marks=slow) for name in ("own_loop.py", "change_a_step.py", "own_network.py")]


@pytest.mark.parametrize("name", ["from_scratch.py", *SLOW])
def test_an_example_of_rounds_tells_digits_apart(output_of, digits, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # from_scratch.py draws on the screen without it
    has_run = name == "change_a_step.py"
    lines = output_of(name, "1", *[str(tmp_path / "run")] * has_run)
    assert (tmp_path / "run/report.html").exists() == has_run
    assert "nan" not in lines[0]
    assert float(re.findall(r"(?:nmi|NMI.*?) ([.\d]+)", "\n".join(lines))[-1]) > 0.3
    assert name != "own_network.py" or lines[-1].endswith("True")


def test_power_iteration_by_hand(output_of, tmp_path):
    """The middle row of three near ones gets the largest mass, and a row without ties joins its nearest row."""
    step = runpy.run_path(str(EXAMPLES / "research/pic.py"))["power_iteration"]
    rows = torch.tensor([[0.0], [0.1], [0.25], [10.0], [10.1], [10.25], [100.0]])
    (clustering,) = step(rows, [5], None, seed=0, round=0)
    assert clustering.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]

    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (36, 16, 16, 3), np.uint8))
    (tmp_path / "small.toml").write_text('base = "classic"\nrounds = 1\nepochs = 1\nimage_size = 16\n')
    output_of("research/pic.py", *(str(tmp_path / name) for name in ("x.npy", "run", "small.toml")))
    assert "power_iteration" in json.loads((tmp_path / "run/run.json").read_text())["steps"]["own clustering"]


def test_k_means_of_another_library(monkeypatch):
    """cuML, which needs a GPU, is a stand-in with its documented interface."""
    cluster = ModuleType("cuml.cluster")
    cluster.KMeans = lambda output_type, **options: SklearnKMeans(**options)
    monkeypatch.setitem(sys.modules, "cuml", ModuleType("cuml"))
    monkeypatch.setitem(sys.modules, "cuml.cluster", cluster)
    step = runpy.run_path(str(EXAMPLES / "other_kmeans.py"))["by_cuml"]
    rows = torch.tensor([[0.0], [0.1], [9.0], [9.1]]).repeat(40, 1)
    (clustering,) = step(rows, [2], None, seed=0, round=0)
    assert clustering.labels[:4].tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_serve_onnx(tmp_path, capsys):
    """It prepares pixels as the package does, so it answers as `predict` does, or refuses an image."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (folder := tmp_path / "in").mkdir()
    for name, (data, _, _) in files_of_all_modes().items():
        (folder / name).write_bytes(data)
    for kind, data in HEIC.items():
        (folder / f"{kind}.heic").write_bytes(data)
    Image.effect_noise((150, 90), 90).convert("RGB").save(folder / "large.jpg")
    clear = stored(Image.fromarray(np.array([[5, 9000]], np.uint16).repeat(20, 0)), "PNG", transparency=5)
    (folder / "clear.png").write_bytes(clear)
    run = tiny_run(tmp_path / "run")
    onnx(run, tmp_path / "graph.onnx")
    wanted = predicted(run, folder)
    columns = placement_columns(wanted.model, wanted.model.placement(wanted.reduced), wanted.residuals)
    assert len(wanted.paths) == len([*folder.iterdir()]) > 60
    with runpy.run_path(str(EXAMPLES / "serve_onnx.py"))["Server"](str(tmp_path / "graph.onnx"), 0) as server:
        place = server.server_address
        waiting = [socket.create_connection(place, 5) for _ in range(32)]
        Thread(target=server.serve_forever, daemon=True).start()
        for connection in waiting:
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert b" 200 " in connection.recv(100)
            connection.close()
        address = f"http://127.0.0.1:{server.server_port}"
        for path, *cells in zip(wanted.paths, *columns.values(), strict=True):
            with urlopen(address, data=(folder / path).read_bytes()) as answer:
                got = json.load(answer)
            right = dict(zip(columns, cells, strict=True))
            assert got.pop("distance") == pytest.approx(float(right["distance"]), abs=1e-5), path
            assert got.pop("model") == wanted.model.identity.digest
            assert got == {key: right[key] for key in ("cluster", "name", "is_outlier")}, path
        with urlopen(f"{address}/health") as answer:
            assert json.load(answer) == {"status": "ok", "model": wanted.model.identity.digest}
        header = b"P6 9500 9500 255\n"  # 90 million pixels
        refused = [stored(Image.fromarray(np.full((9, 9), *grey)), "TIFF") for grey in ((0.5, "f4"), (70000, "i4"))]
        refused.append(dng(Image.new("RGB", (9, 9)), jpeg=False))
        for path, data, headers, status in (
            *(("", data, {}, 400) for data in refused),
            ("", b"no image", {}, 400), ("", header, {}, 400), ("", b"", {"Content-Length": "50000001"}, 413),
            ("", b"", {"Content-Length": "-1"}, 413), ("/other", None, {}, 404),
        ):  # fmt: skip
            with pytest.raises(HTTPError, match=str(status)):
                urlopen(Request(address + path, data, headers))
        with socket.create_connection(place) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            connection.sendall(b"POST / HTTP/1.0\r\nContent-Length: 9\r\n\r\n")
        assert all(server.free.acquire(timeout=WAIT) for _ in range(32))  # all threads have ended
        server.free.release(32)
        assert "Traceback" not in capsys.readouterr().err
        idle = [socket.create_connection(place) for _ in range(40)]
        assert not idle[-1].recv(1) and len(select(idle, (), (), 0)[0]) == 8  # a closed one can be read
        for connection in idle:
            connection.close()
        server.shutdown()


def test_the_notebook_runs_as_it_was_run(digits, tmp_path, monkeypatch):
    file = EXAMPLES / "digits.ipynb"
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in cells:
        exec("".join(cell["source"]).replace("rounds=10", "rounds=0"), names)
    assert names["dc"].n_clusters_ == 20 and (tmp_path / "digits.html").is_file()


@slow
def test_pipeline(output_of):
    lines = output_of("pipeline.py", "0", "0")
    assert [line.split(" held-out")[0].strip() for line in lines] == ["raw pixels", "DeepCluster"]
    assert all(float(line.split()[i]) > 0.9 for line in lines for i in [line.split().index("accuracy") + 1])


# By layer: how many numbers are left after the average of the literature, or the channels and sides of the maps.
@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("alexnet", 224, [9600, 9216, 9600, 9600, 9216]),
        ("vgg16", 224, [9216] * 2 + [8192] * 2 + [9216] * 3 + [8192] * 6),
        ("compact", 32, [(16, 32), (32, 32), (32, 16), (64, 16), (128, 8), (128, 4)]),
        ("timm:test_vit", 160, [(64, 10)] * 6),  # tokens, without those that stand for the image
        ("timm:swin_tiny_patch4_window7_224", 224, [(96, 56), (192, 28), (384, 14), (768, 7)]),  # channels come last
    ],
)
def test_layers_and_how_they_are_pooled(linear, name, size, expected):
    with shapes_only():
        network = build(name, image_size=size, feature_dim=8).eval()
        for (title, layer), right in zip(linear["layers_of"](network).items(), expected, strict=True):
            maps = linear["maps_at"](network, layer, torch.zeros(1, 3, size, size))
            numbers = linear["pooling_of"](title, network, maps, size)(maps).flatten(1).shape[1]
            assert right in (numbers, tuple(maps.shape[1:3])) and maps.shape[2] == maps.shape[3] and numbers < 10_000


def test_the_linear_protocol_by_layers(linear, output_of, photos, tmp_path):
    """A layer of random weights tells the three kinds apart, with maps of any size."""
    arguments = [str(tiny_run(tmp_path / "run")), str(photos), str(photos), "--layers", "block2", "--epochs", "20"]
    (line,) = output_of("research/linear.py", *arguments, "--batch-size", "8")
    name, top1 = re.match(r"(\w+) +top1 ([.\d]+)", line).groups()
    assert name == "block2" and float(top1) > 0.9

    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    five = five_crop(images, 2)
    assert torch.equal(torch.stack(linear["ten_crops"](images, 2)), torch.stack([*five, *(x.flip(3) for x in five)]))


def test_probes_tell_the_labels_of_test_images(output_of, finished, photos):
    lines = output_of("research/probes.py", str(finished), str(photos), "--neighbours", "1", "--own", str(photos))
    assert [line.split()[0] for line in lines] == ["top1_k1", "top1_linear"]
    assert all(float(line.split()[1]) > 0.9 for line in lines)  # the images that they learnt from


def test_the_figures_of_the_paper_are_drawn(output_of, photos, tmp_path):
    pytest.importorskip("matplotlib")
    run, out, table = tiny_run(tmp_path / "run"), tmp_path / "out", tmp_path / "clusters.csv"
    (run / "history.csv").write_text("round,nmi_previous,nmi_labels\n0,,0.1\n1,0.4,0.2\n2,0.5,0.3\n")
    table.write_text("K,accuracy\n10,0.3\n100,0.5\n100,0.7\n1000,0.4\n")
    arguments = [str(run), str(photos), "--clusters", str(table), "--channels", "4", "-o", str(out)]
    assert output_of("research/paper_figures.py", *arguments)[-1].endswith("of 48 images")
    drawn = (out / "figure-2.svg").read_text()
    assert all(title in drawn for title in ("(a) NMI with the labels", "(b) NMI with the round before", "(c) accuracy"))
    with Image.open(out / "figure-3.png") as filters, Image.open(out / "figure-4.webp") as exciting:
        assert filters.size == (8 * 54 - 6, 2 * 54 - 6)  # sixteen filters of 48 px
        assert exciting.size == (4 * (3 * 64 + 6) - 6, 3 * 64)  # four channels


def test_the_figures_of_a_run(output_of, run, tmp_path):
    """The map has all clusters by name or number, each cluster its nearest images, and a curve at least two values."""
    pytest.importorskip("matplotlib")
    (run / "history.csv").write_text("round,loss,nmi_labels\n0,2,\n1,1,0.5\n")
    out = tmp_path / "out"
    assert output_of("research/figures.py", str(run), "-o", str(out))[-1].endswith(
        ": clusters.svg, map.svg, training.svg"
    )
    training = (out / "training.svg").read_text()
    assert ">loss<" in training and ">nmi_labels<" not in training
    with (run / "cluster_summary.csv").open(newline="") as file:
        summary = [*csv.DictReader(file)]
    on_map, sheet = ((out / name).read_text() for name in ("map.svg", "clusters.svg"))
    assert re.findall("<text[^>]*>(.*?)</text>", on_map) == [row["cluster"] for row in summary]
    assert re.findall("<text[^>]*>(.*?)</text>", sheet) == [f"{row['cluster']} ({row['size']})" for row in summary]
    assert sheet.count("<image") == sum(min(10, int(row["size"])) for row in summary)


def test_deepcluster_on_one_page_beside_the_package():
    """The page has its steps of the paper alone, and ours give the same numbers."""
    assert not re.findall(r"^ *(?:from|import) (?:deepcluster|tests)", (EXAMPLES / "from_scratch.py").read_text(), re.M)
    page = runpy.run_path(str(EXAMPLES / "from_scratch.py"))
    random = torch.Generator().manual_seed(0)
    x = torch.rand(300, 12, generator=random) @ torch.rand(12, 12, generator=random)

    # Step 3: the signs of principal directions are arbitrary.
    theirs, ours = page["whiten"](x, 8), whiten(x, 8)(x)
    assert torch.allclose(theirs.abs(), ours.abs(), atol=1e-4)

    # Step 4, from given centroids.
    labels, centroids = page["kmeans"](ours, ours[:9], 20, random)
    clustering = kmeans(ours, 9, start=ours[:9], iterations=20)
    assert torch.equal(labels, clustering.labels) and torch.allclose(centroids, clustering.centroids, atol=1e-5)

    # The uniform sample: as many draws of each cluster, and of each image in it, but for one.
    for sample in (page["uniform_sample"], uniform_over_clusters):
        drawn = torch.bincount(sample(labels, 1000, random), minlength=len(labels))
        by_cluster = torch.bincount(labels, drawn.double(), 9)
        assert by_cluster.max() - by_cluster.min() <= 1
        assert all(drawn[labels == k].max() - drawn[labels == k].min() <= 1 for k in range(9))

    # Step 5: one optimizer step of the body and its head, on the images as they are.
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6))
    images = torch.randint(256, (16, 3, 8, 8), generator=random, dtype=torch.uint8)
    targets = torch.arange(16) % 4
    network = as_network(copy.deepcopy(body), 8)
    network.new_head(4, random)
    head = copy.deepcopy(network.head)
    plain = Augmentation(crop=(1.0, 1.0), stretch=1.0, flip=0.0)
    learning = Learning(batch_size=16, lr=0.05, views=(plain,), sample=each_once)
    pseudo_labels = PseudoLabels(targets[:, None], clusters=[4])
    train_on_pseudo_labels(network, images, pseudo_labels, body_optimizer(network, learning), learning)
    pixels = (images / 255 - network.mean) / network.std
    optimizers = [SGD(part.parameters(), lr=0.05, weight_decay=1e-5) for part in (body, head)]
    page["optimizer_step"](body, head, optimizers, pixels, targets)
    assert torch.allclose(body[1].weight, network.body[1].weight, atol=1e-6)
    assert torch.allclose(head.weight, network.head.weight, atol=1e-6)


def test_label_studio(output_of, tmp_path):
    """Tasks serve the images of their folder alone; answers are those on which the annotations of the export agree."""
    odd = ["a b+c.png", "sub/100%.png", "é&#?.png", "\udcff.png", '"q".png']
    hostile = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "gone.png"]
    clusters = dict.fromkeys(odd, 0) | dict.fromkeys(hostile[2:], 1)
    run = photos_run(tmp_path, clusters, names={0: '=Möwe & "co"'}, skipped=["notes.doc"])
    rows = RunFolder(run).read_rows("clusters.csv")
    write_clusters(run, [*rows, *({**rows[0], "path": path} for path in hostile[:2])])
    write_image(tmp_path / "secret.png", 0)
    for path in hostile[2:]:
        (tmp_path / "photos" / path).unlink()
    (tmp_path / "photos/link.png").symlink_to(tmp_path / "secret.png")
    out, table, images = tmp_path / "tasks.json", tmp_path / "answers.csv", str(tmp_path / "photos")
    *left_out, _, _, _, _ = output_of("label_studio.py", "tasks", str(run), images, str(out))
    assert sorted(line.partition(": ")[2] for line in left_out) == sorted(map(ascii, hostile))
    tasks = json.loads(out.read_text())
    labels = ['\'=Möwe & "co"', "cluster 1"]
    for path, task in zip(odd, tasks, strict=True):
        place, _, query = task["data"]["image"].partition("?d=")
        assert place == "/data/local-files/" and unquote_to_bytes(query) == os.fsencode(f"photos/{path}")
        assert [choice["value"] for choice in task["data"]["clusters"]] == labels
        assert task["predictions"][0]["result"][0]["value"] == {"choices": labels[:1]}
    given = [["owl"], ["cluster 1", "cluster 1"], [labels[0]], [], ["owl", "gull"]]
    for task, names in zip(tasks, given, strict=True):
        (result,) = task["predictions"][0]["result"]
        results = [[{**result, "value": {"choices": [name]}}] for name in names]
        task["annotations"] = [{"result": result, "was_cancelled": False} for result in results]
        task["annotations"].append({"result": [result], "was_cancelled": True})
    tasks[0]["annotations"][0]["result"].append({"from_name": "note", "value": {"text": ["x"]}})
    out.write_text(json.dumps([*tasks, tasks[0]]))  # imported twice
    (line,) = output_of("label_studio.py", "answers", str(out), str(table))
    assert line.endswith(ascii(odd[4]))
    assert [(answer.path, answer.name) for answer in read_answers(table)] == [
        (odd[0], "owl"), (odd[1], "cluster 1"), (odd[2], '=Möwe & "co"')
    ]  # fmt: skip
    for arguments in (["tasks", str(run), images, str(out)], ["answers", str(out), str(table)]):
        with pytest.raises(FileExistsError):
            output_of("label_studio.py", *arguments)
    with pytest.raises(SystemExit, match="would serve"):
        output_of("label_studio.py", "tasks", str(run), "/proc", str(tmp_path / "x"))


@slow
def test_conv4(output_of, tmp_path):
    """Two kinds of images; a run that was stopped after an epoch ends like one that was not."""
    random = np.random.default_rng(7)
    for part, count in (("train", 20), ("test", 10)):
        for kind in KINDS[:2]:
            (folder := tmp_path / part / kind).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw(kind, random, 32)).save(folder / f"{number}.png")

    def lines(out: str, epochs: str, *options: str) -> list[str]:
        folders = [str(tmp_path / name) for name in ("train", "test", out)]
        arguments = [*folders, "--seeds", "1", "--epochs", epochs, "--clusters", "4", *options]
        return [re.sub(r"\d+ s of a processor", "", line) for line in output_of("research/conv4.py", *arguments)]

    assert 0.5 < float(lines("plain", "2")[-1].split()[-1]) <= 1
    whole = lines("whole", "2", "--as-released")
    assert lines("parts", "1", "--as-released")[:2] == whole[:2]
    assert lines("parts", "2", "--as-released") == whole[2:]
    one, other = (tmp_path / name / "seed-1.pt" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()
    assert 0 < float(lines("run", "1", "--recipe", "classic", "--average", ".5")[-1].split()[-1]) <= 1


def test_the_views_and_heads_of_conv4(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "research")
    page = runpy.run_path(str(EXAMPLES / "research/conv4.py"))
    # All 81 crops of the padded image, each also mirrored, and no other view.
    image = torch.arange(1, 193, dtype=torch.uint8).view(1, 3, 8, 8)
    padded = nn.functional.pad(image, (4, 4, 4, 4))[0]
    windows = [padded[:, y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
    seen = torch.unique(page["crops"](image.expand(3000, 3, 8, 8), torch.Generator().manual_seed(0)), dim=0)
    assert torch.equal(seen, torch.unique(torch.stack([*windows, *(window.flip(2) for window in windows)]), dim=0))
    # 255 (0 - .491) / .247 = -506.9, rounded towards zero and modulo 256; 255 (1 - .491) / .247 = 525.5.
    assert page["wrapped"](torch.tensor([[0, 255]]).byte().expand(1, 3, 1, 2))[0, 0].tolist() == [[6, 13]]

    images = torch.randint(256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    training = page["Training"](images, 4, 0)
    first, last = training.head[0].weight, training.head[-1].weight
    with torch.no_grad():
        first += 100
        last += 100
    training.step()
    assert first.min() > 90 and last.max() < 1  # only the last layer is new
