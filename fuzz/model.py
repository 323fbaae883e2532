"""Damaged models: `load` gives a model, or says ModelError. Without digests, for these would find every change."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.harness import instrumented, main

with instrumented(__name__):
    from deepcluster.errors import ModelError
    from deepcluster.storage import model_files as models
    from tests.tiny import tiny_model


@cache
def whole() -> tuple[bytes, bytes, bytes]:
    """config.json, and the header and the numbers of model.safetensors."""
    with TemporaryDirectory() as folder:
        models.save(tiny_model(), Path(folder))
        config = json.loads((Path(folder) / "config.json").read_text())
        weights = (Path(folder) / "model.safetensors").read_bytes()
    older = {key: value for key, value in config.items() if not key.endswith("sha256")}
    end = 8 + int.from_bytes(weights[:8], "little")
    return json.dumps(older).encode(), weights[:end], weights[end:]


def seeds() -> list[bytes]:
    """The first byte says which file is damaged; of the weights the header, so that inputs stay small."""
    config, header, _ = whole()
    compact = json.loads(config)
    other = compact | {"architecture": compact["architecture"] | {"name": "timm:resnet18"}}
    return [b"c" + config, b"w" + header, b"c" + json.dumps(other).encode(), b"w" + header]


def one(data: bytes) -> bool:
    config, header, numbers = whole()
    damaged = data[1:]
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_bytes(damaged if data[:1] == b"c" else config)
        (folder / "model.safetensors").write_bytes((header if data[:1] == b"c" else damaged) + numbers)
        try:
            models.load(folder)
        except ModelError as error:
            assert name in str(error)
            return False
    return True


if __name__ == "__main__":
    main("model", one, seeds())
