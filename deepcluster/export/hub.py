"""A folder ready for the Hugging Face Hub: the model's two files and a card. Nothing is sent anywhere."""

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcluster.model import Model
from deepcluster.report.text import inert, number, percent, three
from deepcluster.runtime.console import Display, Silent
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.files import new_folder, write_whole
from deepcluster.storage.run_folder import RunFolder

CARD = "README.md"
LINK = re.compile(r"://|@|#\d|\bGH-\d|www\.|[a-z0-9-]\.[a-z]{2}|mailto:", re.IGNORECASE)
METRICS = {"acc": "accuracy (best matching)", "nmi": "NMI", "ami": "AMI", "ari": "ARI"}
VERSIONS = ("deepcluster", "torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "python")
USE = """import deepcluster
from deepcluster.images import find, read_once

model = deepcluster.load(".")  # this folder, or huggingface_hub.snapshot_download("USER/NAME")
source = find("photos/")
store = read_once(source, model.store_size)
placement = model.place(model.transform(store.images))
for i, cluster in zip(store.kept, placement.cluster.tolist()):
    print(source.paths[i], cluster, model.names[cluster])
"""
LIMITS = """\
- The clusters are those of the images that it was made from. Every image is put into the nearest one, also an image
  of another kind; `is_outlier` and `margin` of `deepcluster predict` say how far it is to be trusted.
- Numbers and names are of clusters, not of classes: nobody checked that a name fits every image.
- Images are seen as their central square, upright, in RGB.
- This card states no licence: whoever publishes the model chooses one, with an eye on the images and on the weights
  that it started from."""


def hub(run: Path, out: Path, *, display: Display | None = None) -> None:
    """Make a folder of config.json and model.safetensors (which ``deepcluster.load`` reads) and README.md.

    The card has figures, names of clusters, options and versions; no local path and no name of an image.
    """
    display = display or Silent()

    def read(folder: RunFolder) -> tuple[Model, str]:
        model = models.load_of_run(folder)
        model.check_network("--to hub")
        return model, card(folder, model)

    model, text = files.read_state(run, read)
    with new_folder(out) as folder:
        models.save(model, folder)
        write_whole(folder / CARD, lambda file: file.write(text))
    display.say("Exported", f"{out}: {models.CONFIG}, {models.WEIGHTS} and the card {CARD}; nothing was sent anywhere")
    display.say("Load", f"deepcluster.load({str(out)!r})")
    display.say("Upload", f"read the card, then: hf upload USER/NAME {shlex.quote(str(out))}")


def card(folder: RunFolder, model: Model) -> str:
    """The model card of a run, in Markdown."""
    record = folder.read_json(files.RUN, files.RECORD)
    summary = folder.read_rows("cluster_summary.csv", ("cluster", "name", "size", "share"))
    metrics = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    parameters = sum(value.numel() for value in model.network.body.parameters())
    backbone = str(model.network.architecture["name"])
    dims = model.reduction.projection.shape[1]
    abstract = ABSTRACT.format(
        clusters=len(summary),
        dims=dims,
        backbone=backbone,
        parameters=parameters,
        image_size=model.image_size,
        images=_whole(record.get("images_count")),
        rounds=_whole(record.get("rounds")),
    )
    sections = {
        "Use": f"`pip install deepcluster`, then\n\n```python\n{USE}```",
        "Clusters": _clusters(summary),
        "How good": _quality(metrics, record),
        "Recipe": f"```toml\n{_recipe(folder)}```",
        "Versions": ", ".join(_versions(record)) or "not known",
        "Limits": LIMITS,
    }
    body = "\n\n".join([abstract, *(f"## {heading}\n\n{text}" for heading, text in sections.items())])
    return f"{FRONT}# {len(summary)} clusters of images\n\n{body}\n"


ABSTRACT = """Puts images into {clusters} clusters, and turns each into {dims} features.

Made by [DeepCluster](https://arxiv.org/abs/1807.05520) (package `deepcluster`): the clusters come from the images
alone, no labels were used. Backbone `{backbone}` with {parameters:,} parameters, for images of {image_size} px.
{images} images were clustered, after {rounds} rounds of training."""


FRONT = """---
library_name: deepcluster
pipeline_tag: image-feature-extraction
tags:
- clustering
- self-supervised
- deepcluster
---

"""


def _clusters(summary: list[dict[str, str]]) -> str:
    lines = ["| cluster | name | images | share | |", "|---|---|---|---|---|"]
    for row in summary:
        mark = "marked as junk" if row.get("junk") == "1" else ""
        share, cells = percent(number(row["share"])), (row["cluster"], row["name"], row["size"])
        lines.append(f"| {' | '.join(map(markdown_text, cells))} | {share} | {mark} |")
    return "\n".join(lines)


def _quality(metrics: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    verdict = markdown_text(str(record.get("verdict", ""))) or "Nothing is known about it."
    measures = [key for key in METRICS if number(metrics.get(key)) is not None]
    if not measures:
        return f"{verdict}\n\nThere were no labels to compare with."
    lines = [
        f"{verdict}\n\nAgainst labels of {_whole(metrics.get('labelled'))} images, which were used for nothing else:",
        "",
        "| | trained | at the start |",
        "|---|---|---|",
    ]
    for key in measures:
        start = number(metrics.get(f"baseline_{key}"))
        lines.append(f"| {METRICS[key]} | {three(number(metrics[key]))} | {three(start)} |")
    return "\n".join(lines)


def _recipe(folder: RunFolder) -> str:
    """The options; of the path of the weights only the name."""
    with folder.as_disk_errors():
        options = tomllib.loads(folder.file("recipe.toml").read_text(encoding="utf-8"))
    if isinstance(weights := options.get("weights"), str):
        options["weights"] = re.split(r"[/\\]", weights)[-1]
    lines = [
        f"{key} = {json.dumps(value)}\n"
        for key, value in options.items()
        if isinstance(value, str | int | float) and key.isidentifier()
    ]
    return "".join(lines)


def _versions(record: Mapping[str, Any]) -> list[str]:
    environment = record.get("environment")
    versions = environment if isinstance(environment, dict) else {}
    return [f"{markdown_text(name)} {markdown_text(str(versions[name]))}" for name in VERSIONS if name in versions]


def _whole(value: object) -> str:
    finite = number(value)
    return "?" if finite is None else f"{finite:,.0f}"


def markdown_text(text: str) -> str:
    """Text from outside as Markdown on one line, never a link, a table or HTML.

    What GitHub or the Hub would turn into a link (an address, a name of a site, @somebody, #1) becomes code.
    """
    code = LINK.search(text) is not None
    plain = re.sub(r"([\\|\[\]])" if code else r"([\\`*_\[\]#|~$])", r"\\\1", inert(text))
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence} {plain} {fence}" if code else plain
