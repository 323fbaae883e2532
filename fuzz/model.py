"""Damaged models: `load` gives a model, or says ModelError. The digests are made to fit, or they would find all."""

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from fuzz.harness import instrumented, main

with instrumented(__name__):
    from deepcluster.errors import ModelError
    from deepcluster.storage import model_files as models
    from tests.helpers.tiny import change_tensors, sign, tiny_model


@cache
def whole() -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """config.json, the header and the numbers of model.safetensors, and clusters.safetensors."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        models.save(tiny_model(), folder)
        config = json.loads((folder / "config.json").read_text())
        weights, clusters = ((folder / file).read_bytes() for file in (models.WEIGHTS, models.CLUSTERS))
    end = 8 + int.from_bytes(weights[:8], "little")
    return config, weights[:end], weights[end:], clusters


def seeds() -> list[bytes]:
    """The first byte says which file is damaged; of the weights the header, so that inputs stay small."""
    config, header, _, clusters = whole()
    other = config | {"architecture": config["architecture"] | {"name": "timm:resnet18"}}
    return [b"c" + json.dumps(config).encode(), b"w" + header, b"c" + json.dumps(other).encode(), b"k" + clusters]


def one(data: bytes) -> bool:
    config, header, numbers, clusters = whole()
    kind, damaged = data[:1], data[1:]
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.safetensors").write_bytes((damaged if kind == b"w" else header) + numbers)
        (folder / models.CLUSTERS).write_bytes(damaged if kind == b"k" else clusters)
        (folder / "config.json").write_bytes(damaged)
        with suppress(ValueError, TypeError, RecursionError):  # no table, which stays as it is
            sign(folder, json.loads(damaged) if kind == b"c" else config)
        with suppress(SafetensorError, ValueError, KeyError, TypeError):  # no file of tensors, which stays as it is
            change_tensors(folder, models.CLUSTERS)
        try:
            models.load(folder)
        except ModelError as error:
            assert name in str(error)
            return False
    return True


if __name__ == "__main__":
    main("model", one, seeds())
