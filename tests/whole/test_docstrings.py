"""The docstring of every public function and class has an example, which runs."""

import doctest
import importlib
import inspect
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.optim import SGD

import deepcluster
from tests.helpers.tiny import photos_run

PUBLIC: dict[str, Any] = {}
for package in ("", *(f".{module.name}" for module in pkgutil.iter_modules(deepcluster.__path__) if module.ispkg)):
    names = importlib.import_module(f"deepcluster{package}")
    PUBLIC |= {name: getattr(names, name) for name in getattr(names, "__all__", ())}
# At hand in the examples.
NAMES = PUBLIC | {"Path": Path, "SGD": SGD, "load_digits": load_digits, "np": np, "torch": torch}
NEEDS = {"parquet": "pyarrow", "onnx": "onnxscript"}
SLOW = ("onnx",)


def names_with_docstrings() -> list[object]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, value in PUBLIC.items()
        if inspect.isclass(value) or inspect.isfunction(value)
    ]


@pytest.mark.parametrize("name", names_with_docstrings())
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run it in a folder with a finished run, ``runs/photos``, if it names that."""
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    if "runs/photos" in PUBLIC[name].__doc__:
        (tmp_path / "runs").mkdir()
        photos_run(tmp_path, {"a.png": 0, "b.png": 1}, names={0: "beach"}).rename(tmp_path / "runs/photos")
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(PUBLIC[name].__doc__, {**NAMES}, name, None, None)
    assert 1 <= sum(part.source.count("\n") for part in example.examples) <= 5
    printed: list[str] = []
    assert doctest.DocTestRunner().run(example, out=printed.append).failed == 0, "".join(printed)
