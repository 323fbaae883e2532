"""Small runs: the options that make a fit quick, and what their folders hold."""

import csv
import json
from pathlib import Path
from typing import Any

from tests.commands import SMALL

# The same small run from Python, for a ``Request``.
OPTIONS = {"epochs": 1, "image_size": 16, "batch_size": 16, "pseudo_labels": 6, "precision": "fp32"}


def small_fit(*options: str) -> list[str]:
    """Options of a ``fit`` of one round, and those of a small run that they do not set."""
    defaults = SMALL | {"--rounds": "1"}
    others = [word for option in defaults.items() if option[0] not in options for word in option]
    return [*options, *others, "--quiet"]


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file, row by row."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def record(run: Path) -> dict[str, Any]:
    """run.json."""
    values: dict[str, Any] = json.loads((run / "run.json").read_text())
    return values


def change_record(run: Path, **values: object) -> None:
    (run / "run.json").write_text(json.dumps(record(run) | values))


def contents(folder: Path) -> dict[str, bytes | Path]:
    """What is in each file below a folder, and where each link leads."""
    return {
        path.relative_to(folder).as_posix(): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
        if path.name != ".lock"
    }
