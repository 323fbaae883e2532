"""The lines of a command on a terminal: the plan, the skipped images, the next step."""

import re
import shutil
import webbrowser

import pytest

from deepcluster.cli import run_command
from deepcluster.errors import DeepClusterWarning
from deepcluster.images import find
from deepcluster.images.source import counted
from deepcluster.presets import Facts, resolve
from deepcluster.runs.forecast import in_words
from tests.helpers.runs import small_fit


def test_reasons_are_counted():
    reasons = [
        *["a HEIC or HEIF image: pip install 'deepcluster[heif]' to use it"] * 6,
        "cannot be decoded: image file is truncated", "cannot be decoded: broken", "empty file",
        "not an image in an accepted format (JPEG)", "too many pixels: 9, more than the limit of 8",
        "permission denied", "a symbolic link, not followed",
    ]  # fmt: skip
    assert counted(reasons) == (
        "6 HEIC (pip install 'deepcluster[heif]' reads them), 2 damaged, 1 empty, 1 of another kind, 1 too large,"
        " 1 permission denied, 1 linked"
    )
    assert counted(["cannot open: a", "cannot open: b"]) == "2 cannot open"
    assert counted([]) == ""


def test_skipped_images_are_counted_and_the_details_are_for_those_who_ask(photos, tmp_path, capsys):
    images = shutil.copytree(photos, tmp_path / "images")
    (images / "empty.jpg").touch()
    for name in ("a.pdf", "b.pdf"):
        (images / name).write_text("no image")
    assert run_command(["fit", str(images), "-o", str(tmp_path / "run"), *small_fit()[:-1]]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Images +48 can be used, 3 skipped: 2 of another kind, 1 empty \(skipped.csv\)", said)
    assert "Plan " not in said and "precision" not in said
    assert run_command(["fit", str(images), "-o", str(tmp_path / "run"), "--overwrite", "-v", *small_fit()[:-1]]) == 0
    said = capsys.readouterr().out
    assert said.count("Plan ") > 3 and "precision" in said


def test_the_plan_in_a_sentence():
    drawings = Facts(1797, 8, True, 10, "cpu")
    plan = resolve("auto", {}, drawings)
    assert plan.in_short(10) == "10 clusters; network trained in at most 30 rounds at 16 px"
    assert plan.network == "compact, trained from nothing on these images"
    photographs = Facts(3000, 224, False, None, "cpu", "photos-small")
    plan = resolve("auto", {"rounds": 1}, photographs)
    assert plan.in_short(None) == "as many clusters as the images suggest; network adapted in at most 1 round at 224 px"
    assert plan.network == ("EfficientNet-Lite0, trained on photographs; deepcluster fetch downloads a larger one")
    given = resolve("auto", {"backbone": "timm:resnet18", "weights": "w.safetensors"}, photographs)
    assert given.network == "timm:resnet18, with given weights"
    assert "used as it is" in resolve("auto", {"rounds": 0}, photographs).in_short(3)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (80, "80 s"), (90, "1.5 min"), (4000, "67 min"), (9000, "2.5 h")]
)
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize("verb", [["report"], ["recut", "-k", "4"]])
def test_a_page_is_opened_where_that_is_asked_for(run, monkeypatch, capsys, verb):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)))
    command = [verb[0], str(run), *verb[1:]]
    assert run_command(command) == 0 and opened == []
    assert run_command([*command, "--open"]) == 0
    assert opened == [(run / "report.html").as_uri()]
    assert f"no browser could be opened: open {opened[0]} yourself" in capsys.readouterr().err


def test_predict_says_what_it_wrote(finished, photos, tmp_path, capsys):
    out = tmp_path / "new.csv"
    assert run_command(["predict", str(finished), str(photos), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and re.search(
        rf"Done +{out}: 48 images, \d+ in cluster 0, \d+ in cluster 1, \d+ in cluster 2\n", said.err
    )
    image = next(photos.rglob("*.png"))
    assert run_command(["predict", str(finished), str(image), "-o", str(out), "--overwrite"]) == 0
    assert re.search(rf"Done +{out}: 1 image, 1 in cluster \d\n", capsys.readouterr().err)
    assert run_command(["predict", str(finished), str(photos), "-o", str(out), "--overwrite", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "warned"), [({}, True), ({"weights": "none"}, False), ({"weights": "timm"}, False)]
)
def test_a_network_of_timm_without_weights_is_warned_of(options, warned, photos, tmp_path, recwarn):
    from deepcluster.runs.plan import Request, begin
    from deepcluster.runtime.console import Silent

    request = Request(out=tmp_path / "run", options={"backbone": "timm:resnet18", **options})
    begin(find(photos), request, Silent())
    said = [str(warning.message) for warning in recwarn if warning.category is DeepClusterWarning]
    assert bool(said) == warned and all("weights timm" in text for text in said)


def test_what_the_package_offers_is_listed():
    import deepcluster

    assert {"DeepCluster", "load", "__version__"} == set(dir(deepcluster))


def test_the_name_of_a_data_set_is_said_before_its_library_is_loaded(capsys):
    assert run_command(["fit", "sklearn:none", "-k", "3"]) == 3
    said = capsys.readouterr()
    assert said.out == "Loading   sklearn:none\n" and "only sklearn:digits is available" in said.err
