"""The estimator: the same as the command, whatever form the images come in."""

import copy
import gc
import inspect
import json
import pickle
import pickletools
import sys
import tomllib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks
from torch.nn.utils import vector_to_parameters
from torch.optim import AdamW
from torch.utils.data import StackDataset

from deepcluster import DeepCluster, load
from deepcluster.clustering import KMeans, as_clustering
from deepcluster.clustering.agreement import label_change
from deepcluster.commands.cli import run_command
from deepcluster.errors import DataError, DeepClusterWarning, DiskError, ModelError, UsageError
from deepcluster.learning import CrossEntropy
from deepcluster.runtime import Silent
from tests.helpers import shared
from tests.helpers.drawings import drawings
from tests.helpers.runs import OPTIONS, record, rows

QUICK = {"n_clusters": 3, "rounds": 1, "epochs": 1, "image_size": 16}
UNTRAINED = QUICK | {"rounds": 0}  # half the time, for what does not depend on training


def three_kinds() -> np.ndarray:
    """48 images of three kinds, N x H x W x C."""
    images, _ = drawings(16)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="module")
def trained() -> DeepCluster:
    return DeepCluster(**QUICK).fit(three_kinds())


@pytest.fixture(scope="module")
def untrained() -> DeepCluster:
    return DeepCluster(**UNTRAINED).fit(three_kinds())


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """120 rows of 64 numbers."""
    return load_digits().data[:120]


@pytest.fixture(scope="module")
def of_features(digits) -> DeepCluster:
    return DeepCluster(n_clusters=3).fit(digits)


def same(one: DeepCluster, other: DeepCluster) -> bool:
    return np.array_equal(one.labels_, other.labels_) and np.array_equal(one.embedding_, other.embedding_)


def as_files(folder: Path) -> list[Path]:
    paths = [folder / f"{i:02}.png" for i in range(48)]
    for path, image in zip(paths, three_kinds(), strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_the_result_is_that_of_the_command(run, photos, tmp_path):
    options = {name: value for name, value in OPTIONS.items() if name not in QUICK}
    by_recipe = {"rounds": None, "recipe": {"base": "auto", "rounds": 1}, "options": options}
    ours = DeepCluster(**QUICK | by_recipe, random_state=5).fit(photos)
    table = pd.read_csv(run / "clusters.csv", keep_default_na=False)
    assert ours.paths_ == [*table["path"]] and ours.labels_.tolist() == [*table["cluster"]]
    assert np.array_equal(ours.embedding_, np.load(run / "features.npy"))
    for X in (None, photos):  # all that clusters.csv says, as numbers
        placed = pd.DataFrame(ours.place(X)).astype({"is_outlier": int})
        pd.testing.assert_frame_equal(placed, table[[*placed]], rtol=1e-6, check_dtype=False)

    loaded = DeepCluster.load(run)
    assert loaded.run_ == run and loaded.n_clusters == loaded.n_clusters_
    assert np.array_equal(loaded.predict(photos), loaded.labels_)
    assert np.array_equal(clone(loaded).fit(photos).embedding_, loaded.embedding_)  # its parameters make the same run

    assert run_command(["recut", str(run), "-k", "5", "--quiet"]) == 0
    assert ours.recut(5) is ours and ours.labels_.tolist() == [*pd.read_csv(run / "clusters.csv")["cluster"]]
    assert ours.n_clusters_ == 5 and set(ours.labels_.tolist()) == set(range(5)) and ours.n_clusters == 3
    report = ours.report(tmp_path / "b & w.html")
    assert report.read_text().count("data:image/webp") > 5 and report == tmp_path / "b & w.html"


def test_the_attributes_of_a_fit(trained):
    images = three_kinds()
    assert (trained.labels_.dtype, trained.embedding_.dtype) == (np.int64, np.float32)
    assert trained.cluster_centers_.shape == (3, trained.embedding_.shape[1])
    assert len(trained.get_feature_names_out()) == trained.embedding_.shape[1]
    assert (trained.n_clusters_, trained.n_iter_, len(trained.history_), trained.skipped_) == (3, 1, 1, [])
    assert trained.history_[0]["round"] == 0 and np.isnan(trained.history_[0]["nmi_previous"])
    assert trained.paths_[:2] == ["0", "1"] and not hasattr(trained, "n_features_in_")

    assert np.array_equal(trained.predict(images), trained.labels_)
    assert np.array_equal(trained.transform(images), trained.embedding_)
    to_own = trained.embedding_ - trained.cluster_centers_[trained.labels_]
    assert trained.inertia_ == pytest.approx((to_own**2).sum(), rel=1e-5)
    assert trained.score(images) == -trained.inertia_


# ---- forms of images ------------------------------------------------------------------------------------------------

FORMS = {
    "Dataset of PIL": lambda images, _: StackDataset([Image.fromarray(image) for image in images], [7] * 48),
    "Dataset of dicts": lambda images, _: StackDataset(image=torch.from_numpy(images).float() / 255, label=[7] * 48),
    "paths": lambda _, folder: as_files(folder),
    "array of paths": lambda _, folder: np.array(list(map(str, as_files(folder)))),
    "frame of paths": lambda _, folder: pd.DataFrame({"path": list(map(str, as_files(folder)))}),
    "folder": lambda _, folder: str(as_files(folder)[0].parent),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_result_whatever_form_the_images_have(form, untrained, tmp_path):
    """A fit reads them as a prediction does."""
    images = FORMS[form](three_kinds(), tmp_path)
    assert np.array_equal(untrained.transform(images), untrained.embedding_)
    if form == "paths":  # a row for each path of a list, in its order, however often it stands there
        assert same(DeepCluster(**UNTRAINED).fit(images), untrained)
        assert untrained.predict([images[7], images[3], images[7]]).tolist() == untrained.labels_[[7, 3, 7]].tolist()


def test_a_data_set_of_hugging_face(trained, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = list(map(str, as_files(tmp_path)))
    table = datasets.Dataset.from_dict({"label": [0] * 48, "picture": paths}).cast_column("picture", datasets.Image())
    assert np.array_equal(trained.predict(table), trained.labels_)
    inside = datasets.Dataset.from_dict(
        {"picture": [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]},
        features=datasets.Features({"picture": datasets.Image()}),
    )
    assert np.array_equal(trained.predict(inside.with_format("torch")), trained.labels_)
    with pytest.raises(DataError, match="label"):
        trained.predict(table.select_columns(["label"]))
    with pytest.raises(DataError, match="picture, second"):
        trained.predict(inside.add_column("second", [""] * 48).cast_column("second", datasets.Image()))


# ---- features ----------------------------------------------------------------------------------------------------


def test_rows_of_numbers_are_features_and_not_images(digits, of_features, tmp_path):
    """They are grouped without a network."""
    np.save(tmp_path / "f.npy", digits)
    run = of_features.run_
    assert of_features.n_iter_ == 0
    assert json.loads((of_features.run_ / "run.json").read_text())["backbone"] == "features"
    tensor = torch.from_numpy(digits)  # the numbers from 0 to 16 are exact in any type
    table = pd.DataFrame({"path": "a.png", "tags": [["x"]] * 120, "x": [*digits]})
    arrays = (tensor, tensor.bfloat16(), digits.astype(np.uint8), digits.tolist())
    for form in (*arrays, pd.DataFrame(digits), table["x"]):
        assert np.array_equal(of_features.transform(form), of_features.embedding_)  # a fit reads them in the same way
    assert np.array_equal(DeepCluster.load(run).predict(tmp_path / "f.npy"), of_features.labels_)
    assert same(clone(DeepCluster.load(run)).fit(digits), of_features)
    assert DeepCluster(n_clusters=3, options={"dims": 5}).fit(digits).embedding_.shape == (120, 5)
    with pytest.raises(UsageError, match="resume"):
        DeepCluster(n_clusters=4).fit(digits, run=run, resume=True)
    for columns, ways in {
        ("tags", "x"): r"fit\(X\['x'\]\)",
        ("path", "x"): r"paths=X\['path'\]\).* fit\(X\[\['path'\]\]\)",
    }.items():
        with pytest.raises(DataError, match=ways):
            DeepCluster(n_clusters=3).fit(table[[*columns]])


def test_features_have_the_paths_of_their_pictures(digits, of_features, tmp_path, monkeypatch):
    """Relative to the current folder; a report written later, from another one, has the pictures."""
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame({"path": [f"{row}.png" for row in range(120)], "x": [*digits]})
    for row in range(60):
        Image.new("RGB", (8, 8), (4 * row, 0, 0)).save(f"{row}.png")
    ours = DeepCluster(3).fit(table["x"], paths=table["path"])
    assert same(ours, of_features) and ours.paths_ == [*table["path"]]
    monkeypatch.chdir("/")
    assert "data:image" in ours.report(tmp_path / "report.html").read_text()
    assert ours.report() == ours.run_ / "report.html"
    ours.apply({"names": {0: "<odd>"}})
    shown = ours._repr_mimebundle_()["text/html"]
    assert [shown.count(text) for text in ("<p>", "&lt;odd&gt; (", "cluster 1 (")] == [3, 1, 1]
    assert 6 <= shown.count('<img src="data:image') <= 18 and len(shown) < 60_000  # half have a picture
    assert "<odd>" not in shown and "DeepCluster" in DeepCluster()._repr_html_()
    with pytest.raises(DataError, match=r"120 rows.* 2 "):
        DeepCluster().fit(digits, paths=["a", "b"])
    with pytest.raises(DataError, match=r"row 0, and 63 numbers in row 119"):
        DeepCluster().fit([*digits[:119], digits[119, 1:]])
    with pytest.raises(UsageError, match="paths"):
        DeepCluster().fit(three_kinds(), paths=["a"] * 48)


def test_all_methods_take_features(digits, of_features, tmp_path):
    assert np.array_equal(of_features.transform(digits), of_features.embedding_)
    assert of_features.score(digits) == -of_features.inertia_
    placed = of_features.place(digits)
    assert np.array_equal(placed, of_features.place()) and placed["path"][:2].tolist() == ["0", "1"]
    assert of_features.nearest(digits[:2], n=1)[1].tolist() == [[0], [1]]
    table = pd.DataFrame(digits, columns=[f"pixel {i}" for i in range(64)])
    ours = DeepCluster(n_clusters=3)
    assert np.array_equal(ours.fit_transform(table, np.arange(120)), of_features.embedding_)  # y is ignored
    assert ours.feature_names_in_[1] == "pixel 1" and {*ours.names_} == {""}
    for alone in (DeepCluster.load(of_features.save(tmp_path)), load(tmp_path)):
        assert np.array_equal(alone.predict(digits), of_features.labels_)
        assert np.array_equal(alone.predict(table), of_features.labels_)


def test_features_and_images_are_not_taken_for_each_other(digits, of_features, untrained, tmp_path):
    images = digits.reshape(-1, 8, 8) / 16
    for X in (images, list(images), [Image.new("L", (8, 8))]):
        with pytest.raises(UsageError):
            of_features.predict(X)
        with pytest.raises(DataError):
            load(of_features.save(tmp_path / "features")).predict(X)
    with pytest.raises(UsageError, match=r"X.reshape\(-1, H, W\)"):
        untrained.predict(digits)
    with pytest.raises(DataError, match=r"X.reshape\(-1, H, W\)"):
        load(untrained.save(tmp_path / "images")).predict(digits)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("backbone", {"backbone": "compact"}), ("lr", {"recipe": {"lr": 0.1}}), ("views", {"options": {"views": 2}}),
        ("optimizer", {"optimizer": torch.optim.SGD}), ("loss", {"loss": CrossEntropy()}),
        ("clustering", {"clustering": KMeans()}), ("backbone", {"backbone": torch.nn.Conv2d(3, 4, 3)}),
    ],
)  # fmt: skip
def test_parameters_for_images_are_refused_with_features(name, given, digits):
    with pytest.raises(UsageError, match=name):
        DeepCluster(n_clusters=3).set_params(**given).fit(digits)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows_of_features_are_grouped(count, digits):
    for n_clusters in ("auto", count):
        ours = DeepCluster(n_clusters=n_clusters).fit(digits[:count])
        assert np.array_equal(ours.predict(digits[:count]), ours.labels_)
    assert ours.n_clusters_ == count
    with pytest.raises(DataError):
        DeepCluster(n_clusters=count + 1).fit(digits[:count])


def test_nothing_of_an_earlier_fit_is_left(of_features, untrained):
    changing = copy.deepcopy(of_features)
    first = changing.run_
    assert not hasattr(clone(changing), "labels_")
    changing.recut(5).set_params(**UNTRAINED).fit(three_kinds())
    assert same(changing, untrained)
    assert changing.n_clusters_ == 3 and not hasattr(changing, "n_features_in_") and not first.exists()


def test_edits(of_features):
    ours = copy.deepcopy(of_features)
    labels, sizes = ours.labels_, np.bincount(ours.labels_)
    assert ours.names_.tolist() == ["", "", ""]
    assert ours.apply({"names": {labels[0]: "noughts"}}) is ours
    assert {*ours.names_[ours.labels_][labels == labels[0]]} == {"noughts"}
    ours.apply({"merge": [[np.int64(1), 2]], "junk": np.array([0])})
    assert np.bincount(ours.labels_).tolist() == [sizes[0], sizes[1] + sizes[2]] and ours.n_clusters_ == 2
    ours.apply({"split": [(1, 2)]}).apply({"split": [(1, 2)]})  # the same words again, about other clusters
    assert ours.n_clusters_ == 4 and {*ours.labels_.tolist()} == {0, 1, 3, 4}
    ours.apply({"move": [(ours.paths_[0], 7)], "names": {7: "alone"}})
    assert ours.names_[ours.labels_[0]] == "alone" == ours.place()["name"][0]
    assert ours.names_.tolist() == DeepCluster.load(ours.run_).names_.tolist()
    before = ours.labels_
    for wrong in ({"merges": [[0, 1]]}, {"merge": [[0, 99]]}, {"names": ["a"]}, {"names": {0.5: "a"}}, ["merge"], None):
        with pytest.raises(UsageError):
            ours.apply(wrong)
    assert np.array_equal(ours.labels_, before)
    DeepCluster.load(ours.run_).apply({"names": {0: "two"}}).recut(6)  # in another process, or in the page
    for act in (lambda: ours.apply({"merge": [[0, 1]]}), lambda: ours.teach({0: 1})):
        with pytest.raises(UsageError, match="load"):
            act()


def test_unusable_images_are_left_out_or_coerced(tmp_path):
    paths = as_files(tmp_path)
    paths[5].write_bytes(b"no image")
    ours = DeepCluster(**UNTRAINED)
    with pytest.warns(DeepClusterWarning, match=r"05\.png"):
        assert ours.fit_transform(tmp_path) is ours.embedding_
    assert len(ours.labels_) == len(ours.paths_) == 47 and [path for path, _ in ours.skipped_] == ["05.png"]
    for model in (ours, load(ours.run_)):
        with pytest.raises(DataError, match=r"05\.png"):
            model.predict(tmp_path)
    clusters, features = ours.predict(tmp_path, errors="coerce"), ours.transform(tmp_path, errors="coerce")
    assert clusters[5] == -1 and np.isnan(features[5]).all()
    assert np.array_equal(np.delete(features, 5, axis=0), ours.embedding_)
    placed = ours.place(tmp_path, errors="coerce")
    assert placed["path"].tolist() == [path.name for path in paths] and np.array_equal(placed["cluster"], clusters)
    assert np.isnan(placed["distance"][5]) and np.array_equal(np.delete(placed, 5), ours.place())
    assert ours.predict(paths[5], errors="coerce").tolist() == [-1]
    assert ours.place(paths[5], errors="coerce")["path"].tolist() == ["05.png"]
    with pytest.raises(UsageError, match="errors='skip'"):
        ours.predict(tmp_path, errors="skip")


# ---- a network of one's own -----------------------------------------------------------------------------------------


def own_network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 16, 3, 2))


class Pooled(torch.nn.Linear):
    """A network of 3 x 3 weights, whose features a function changes."""

    def __init__(self, change):
        torch.manual_seed(0)
        super().__init__(3, 3)
        self.change = change

    def forward(self, images):
        return self.change(super().forward(images.mean((2, 3))))


@pytest.mark.filterwarnings("ignore:training has collapsed")  # nine weights
def test_features_of_a_module_in_float64_are_made_float32():
    given = QUICK | {"recipe": "classic", "options": {"precision": "fp32", "pseudo_labels": 6}}
    ours = DeepCluster(**given, backbone=Pooled(torch.Tensor.double)).fit(three_kinds())
    assert ours.embedding_.dtype == np.float32 and np.array_equal(ours.predict(three_kinds()), ours.labels_)


@pytest.fixture(scope="module")
def of_module() -> DeepCluster:
    """For tests that change nothing; the module gives maps."""
    return DeepCluster(**QUICK, backbone=own_network()).fit(three_kinds())


def test_the_backbone_may_be_a_module(of_module):
    assert np.array_equal(of_module.predict(three_kinds()), of_module.labels_)
    given = own_network().state_dict()
    assert all(torch.equal(value, given[name]) for name, value in of_module.backbone.state_dict().items())
    anew = DeepCluster(**QUICK, backbone=own_network(), weights="none").fit(three_kinds())
    for fit, weights, lr in ((of_module, "module", 0.001), (anew, "", 0.25)):
        recipe = tomllib.loads((fit.run_ / "recipe.toml").read_text())
        assert (recipe["weights"], recipe["lr"]) == (weights, lr)
    pooled = torch.nn.Sequential(own_network(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    assert same(DeepCluster(**QUICK, backbone=pooled).fit(three_kinds()), of_module)  # features instead of maps


def test_a_saved_module_is_to_be_given_again(of_module, trained, tmp_path):
    with pytest.raises(ModelError, match="compact"):
        load(trained.run_, backbone=own_network())
    for folder in (of_module.save(tmp_path), of_module.run_):
        vector_to_parameters(torch.zeros(5000), (other := own_network()).parameters())
        with_module = DeepCluster.load(folder, backbone=other)  # whatever its weights are
        assert np.array_equal(with_module.predict(three_kinds()), of_module.labels_)
        assert np.array_equal(load(folder, backbone=own_network()).predict(three_kinds()), of_module.labels_)
        for without in (DeepCluster.load(folder), load(folder)):
            with pytest.raises(ModelError, match="module"):
                without.predict(three_kinds())
        with pytest.raises(ModelError, match=r"0\.0\.weight .*\(8, 3, 3, 3\)"):
            load(folder, backbone=torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))


def test_a_run_of_a_module_is_cut_anew_without_it(of_module, tmp_path, monkeypatch, ends):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    copied = copy.deepcopy(of_module)
    assert run_command(["recut", str(copied.run_), "-k", "4", "--quiet"]) == 0
    assert run_command(["report", str(copied.run_)]) == 0
    again = DeepCluster.load(copied.run_, backbone=own_network())
    assert again.n_clusters_ == 4 and np.array_equal(again.predict(three_kinds()), again.labels_)
    assert np.array_equal(again.transform(three_kinds()), of_module.embedding_)
    as_files(tmp_path)
    for command in (["predict", copied.run_, "."], ["export", copied.run_, "--to", "onnx", "-o", "x.onnx"]):
        assert "module" in ends(command, ModelError.exit_code)


def test_parameters_have_names_and_are_unchecked_until_fit():
    _, number, *parameters = inspect.signature(DeepCluster.__init__).parameters.values()
    assert number.name == "n_clusters" and all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    absurd = DeepCluster(n_clusters="many", backbone=3, options=4)
    assert absurd.n_clusters == "many" and clone(absurd).options == 4
    for method in ("predict", "transform", "score", "save", "recut", "report"):
        with pytest.raises(NotFittedError):
            getattr(absurd, method)("x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_clusters": "many"}, "n_clusters='many'"),
        ({"n_clusters": True}, "n_clusters=True"),
        ({"n_clusters": 121}, "121 .* 120 "),
        ({"options": [1]}, r"options=\[1\]"),
        ({"verbose": "x"}, "verbose='x'"),
        ({"optimizer": 3}, "optimizer=3"),
        ({"optimizer": lambda: None}, "optimizer="),
        ({"clustering": lambda: 0}, "clustering="),
        ({"loss": CrossEntropy}, "loss="),
        ({"loss": torch.nn.CrossEntropyLoss()}, r"loss=CrossEntropyLoss\(\)"),
        ({"lr": lambda time: 0.1}, "lr="),
        ({"random_state": "dice"}, "'dice'"),
        ({"device": "abacus"}, "abacus"),
        ({"backbone": "module"}, r"DeepCluster\(backbone=module\)"),
        ({"backbone": own_network(), "weights": "x.safetensors"}, "--weights x.safetensors"),
        ({"backbone": own_network(), "options": {"sobel": True}}, "sobel"),
        ({"backbone": torch.nn.Flatten()}, "Flatten"),
        ({"backbone": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(2))}, r"\(2, 4, 196\)"),
        ({"backbone": Pooled(lambda features: features.long())}, "torch.int64"),
        ({"backbone": Pooled(lambda features: features[:1])}, r"\(1, 3\)"),
    ],
)
def test_wrong_parameters_are_named_by_fit(given, message, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        DeepCluster(**QUICK | given).fit(digits.reshape(-1, 8, 8) / 16)
    assert list(tmp_path.iterdir()) == []  # no folder is left behind


# ---- copies and files -----------------------------------------------------------------------------------------------


def test_a_copy_stands_alone(digits, of_features, of_module):
    original = copy.deepcopy(of_features)
    labels = original.labels_
    other = pickle.loads(pickle.dumps(original))
    assert other.get_params() == original.get_params() and other.run_ != original.run_
    assert same(other, original) and other.n_features_in_ == 64
    assert np.array_equal(other.predict(digits), labels) and other.score(digits) == original.score(digits)
    assert np.array_equal(other.recut(5).labels_, copy.deepcopy(original).recut(5).labels_)
    assert np.array_equal(original.labels_, labels)
    temporary = original.run_.parent
    del original
    gc.collect()
    assert not temporary.exists()  # it goes with its estimator
    assert np.array_equal(other.recut(3).labels_, labels)

    assert clone(of_module).backbone is not of_module.backbone
    for copied in (copy.deepcopy(of_module), pickle.loads(pickle.dumps(of_module))):
        assert np.array_equal(copied.predict(three_kinds()), of_module.labels_)


def test_a_pickle_names_no_class_but_the_estimators(trained):
    """The model is in it as the bytes of its files: reading them runs no code of torch's."""
    words = {word for _, word, _ in pickletools.genops(pickle.dumps(trained)) if isinstance(word, str)}
    assert {word for word in words if word.partition(".")[0] in sys.modules} <= {"deepcluster.estimator", "copyreg"}


def test_save_and_load(trained, tmp_path):
    images = three_kinds()
    alone = DeepCluster.load(trained.save(tmp_path / "model"))
    for other in (alone, pickle.loads(pickle.dumps(alone)), DeepCluster.load(trained.run_)):
        assert np.array_equal(other.transform(images), trained.embedding_)
        assert other.score(images) == trained.score(images)
    assert np.array_equal(alone.place(images), trained.place())
    for of_run in (lambda: alone.recut(4), alone.place, lambda: alone.apply({})):
        with pytest.raises(UsageError):
            of_run()
    with pytest.raises(ModelError, match="none"):
        DeepCluster.load(tmp_path / "none")
    with pytest.raises(DiskError):
        trained.save("/etc/passwd/x")


def test_a_report_is_made_when_it_is_asked_for(trained, tmp_path):
    ours = copy.deepcopy(trained)
    for other in (trained, ours, ours.recut(4)):
        assert not any((other.run_ / name).exists() for name in ("report.html", "map.npy"))
    with pytest.warns(DeepClusterWarning):  # a copy has no images
        ours.report(tmp_path / "mine.html")
    before = (ours.run_ / "report.html").read_bytes()
    with pytest.warns(DeepClusterWarning):
        assert (ours.recut(5).run_ / "report.html").read_bytes() != before  # what is there stays true


# ---- steps of the user's own in a run: a clustering, a loss and an optimizer -----------------------------------------


@dataclass(frozen=True)
class Tree:
    linkage: str = "ward"

    def __call__(self, rows, clusters, previous, *, seed, round):
        trees = [AgglomerativeClustering(k, linkage=self.linkage).fit_predict(rows.numpy()) for k in clusters]
        return tuple(as_clustering(labels, rows) for labels in trees)


class Halved(CrossEntropy):
    def __call__(self, outputs, cluster_weight, processes):
        loss, figure = super().__call__(outputs, cluster_weight, processes)
        return loss / 2, figure


def decayed(parameters):
    return AdamW(parameters, weight_decay=0.1)


STEPS = {"clustering": Tree(), "loss": Halved(), "optimizer": decayed}


class AfterOne(Silent):
    def round(self, row, rounds):
        raise KeyboardInterrupt


def test_a_run_resumes_to_the_same_bits_and_with_the_same_steps_only(tmp_path, photos, capsys):
    images, stopped = shared.pixels(), tmp_path / "stopped"
    ours = DeepCluster(n_clusters=4, options=shared.OPTIONS | {"rounds": 2, "lr": 0.001}, **STEPS)
    whole = clone(ours).fit(images, run=tmp_path / "whole")
    with pytest.raises(DiskError, match=r"run=.*resume=True"):
        clone(ours).fit(images, run=whole.run_)
    with pytest.raises(KeyboardInterrupt):
        clone(ours).fit(images, run=stopped, display=AfterOne())
    assert record(stopped)["steps"] == {
        "own clustering": f"{__name__}.Tree: Tree(linkage='ward')",
        "own loss": f"{__name__}.Halved",
        "own optimizer": f"{__name__}.decayed",
    }
    for name, other in {"clustering": Tree("average"), "loss": None, "optimizer": AdamW}.items():
        with pytest.raises(UsageError, match=f"own {name}"):
            clone(ours).set_params(**{name: other}).fit(images, run=stopped, resume=True)
    assert run_command(["fit", str(photos), "-k", "4", "-o", str(stopped), "--resume"]) == 2
    assert "resume=True" in capsys.readouterr().err

    resumed = clone(ours).fit(images, run=stopped, resume=True)
    assert shared.files_of(stopped) == shared.files_of(tmp_path / "whole") and (stopped / "report.html").exists()
    clusters = [int(row["cluster"]) for row in rows(stopped / "clusters.csv")]
    assert resumed.predict(images).tolist() == clusters == whole.labels_.tolist()


def labels_become(change):
    """A clustering of which ``change`` makes other labels."""

    def step(rows, clusters, previous, *, seed, round):
        clusterings = Tree()(rows, clusters, previous, seed=seed, round=round)
        return tuple(replace(clustering, labels=change(clustering.labels)) for clustering in clusterings)

    return step


class Returns(CrossEntropy):
    def __init__(self, change):
        self.change = change

    def __call__(self, outputs, cluster_weight, processes):
        return self.change(*super().__call__(outputs, cluster_weight, processes))


WRONG_LABELS = (
    lambda labels: labels[:-1], lambda labels: labels.int(), lambda labels: labels - 1, lambda labels: labels + 1,
    lambda labels: labels.tolist(),
)  # fmt: skip
WRONG_LOSSES = (
    lambda loss, figure: loss, lambda loss, figure: (loss, 0.5), lambda loss, figure: (loss.expand(3), figure),
    lambda loss, figure: (loss.detach(), figure),
)  # fmt: skip


@pytest.mark.parametrize(
    ("step", "message"),
    [
        *(({"clustering": labels_become(change)}, r"Clustering.* 40 rows") for change in WRONG_LABELS),
        ({"clustering": lambda *arguments, **named: 2 * Tree()(*arguments, **named)}, "Clustering"),
        *(({"loss": Returns(change)}, "two tensors") for change in WRONG_LOSSES),
        ({"optimizer": lambda parameters: None}, "torch.optim.Optimizer"),
        ({"optimizer": zip}, "torch.optim.Optimizer"),  # a builtin does not tell its arguments
    ],
)
def test_a_wrong_result_of_a_step_is_refused_with_what_was_expected(step, message):
    with pytest.raises(UsageError, match=message):
        DeepCluster(n_clusters=3, options=shared.OPTIONS | {"pseudo_labels": 4}, **step).fit(shared.pixels())


def test_the_change_of_an_own_clustering_is_that_of_its_labels():
    """And not of a k-means that continues the previous ones, which would change nothing here."""
    rows, labels = torch.tensor([[0.0], [1], [9], [10]]), torch.tensor([1, 1, 0, 0])
    now = as_clustering(labels[[0, 0, 0, 3]], rows)
    change = label_change(labels[:, None], rows, [now], Tree())
    assert change.changed == 0.25 and change.labels.tolist() == [1, 1, 1, 0]


# ---- scikit-learn's own checks, on rows of numbers: all pass, and `make test` runs a few -----------------------------

FEW = DeepCluster(n_clusters=2)
QUICK_CHECKS = {
    "check_methods_sample_order_invariance",
    "check_n_features_in_after_fitting",
    "check_no_attributes_set_in_init",
}
# Asked of scikit-learn's own estimators only.
MORE = (
    "check_set_output_transform",
    "check_transformer_get_feature_names_out",
    "check_set_output_transform_pandas",
    "check_transformer_get_feature_names_out_pandas",
    "check_dataframe_column_names_consistency",
)
ALL = [(check.func.__name__, check) for _, check in estimator_checks.estimator_checks_generator(FEW)]
ALL += [(name, partial(getattr(estimator_checks, name), "DeepCluster")) for name in MORE]
CHECKS = [pytest.param(check, id=name, marks=() if name in QUICK_CHECKS else pytest.mark.slow) for name, check in ALL]


@pytest.mark.filterwarnings("ignore::deepcluster.errors.DeepClusterWarning")  # of tables with few distinct rows
@pytest.mark.parametrize("check", CHECKS)
def test_scikit_learns_checks(check):
    check(clone(FEW))


def test_the_checks_are_not_left_out():
    """For an estimator whose tags say that it takes no tables, there would be none."""
    assert len(ALL) >= 50 and {name for name, _ in ALL} >= QUICK_CHECKS
