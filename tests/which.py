"""Test files for a module, from its importers: ``pytest $(python -m tests.which deepcluster/groups/cut.py)``."""

import sys
from pathlib import Path

from tests.helpers.pages import ROOT
from tests.whole.test_layers import imports, modules

NEEDS = {path: imports(path.read_text()) for path in (ROOT / "tests").glob("test_*.py")}


def files_that_test(file: Path) -> list[Path]:
    """Those named like the module or with the shortest way of imports to it; the least importing ones come first.

    If no test imports it or its importers, those named like one of its importers.
    """
    near = seen = {name for name, path in modules().items() if path == file}
    while near and not (tests := {path for path, needed in NEEDS.items() if needed & near}):
        near = {name for name, path in modules().items() if imports(path.read_text()) & near} - seen
        seen = seen | near
    stems = {file.stem} if near else {name.rpartition(".")[2] for name in seen}
    # Six letters, so that test_evaluation is of evaluate.
    named = {path for stem in stems for path in (ROOT / "tests").glob(f"test_{stem[:6]}*.py")}
    return sorted((tests if near else set()) | named, key=lambda path: (path not in named, len(NEEDS[path]), path))


if __name__ == "__main__":
    print(*(path.relative_to(ROOT) for path in files_that_test(Path(sys.argv[1]).resolve())), sep="\n")
