"""The layering of the package: a module imports only what lies below it."""

import ast
from pathlib import Path

import deepcluster

ROOT = Path(deepcluster.__file__).parent
# From the bottom up. A package may import itself and the packages of lower levels.
LEVELS = (
    {"texts"},
    {"log"},
    {"errors", "seeding", "records"},
    {"runtime"},
    {"compute"},
    {"clustering", "images", "nets"},
    {"groups", "learning"},
    {"algorithm", "recipe", "model"},
    {"evaluation"},
    {"storage", "presets"},
    {"report"},
    {"runs"},
    {"export", "flags"},
    {"cli", "estimator"},
    {"__main__"},
)
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    }


def imports(source: str) -> set[str]:
    """The modules of the package that a source text imports, anywhere in it, without the package's own name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            found |= {f"{node.module}.{name.name}" for name in node.names} | {str(node.module)}
    known = modules()
    inside = {name.removeprefix("deepcluster.") for name in found if name.startswith("deepcluster.")}
    return {name for name in inside if name in known}


def upward(module: str, imported: set[str]) -> list[str]:
    package = module.split(".")[0]
    return [
        f"{module} -> {other}"
        for other in sorted(imported)
        if (there := other.split(".")[0]) != package and LEVEL[there] >= LEVEL[package]
    ]


def test_nothing_imports_upward():
    arrows = [arrow for name, path in modules().items() for arrow in upward(name, imports(path.read_text()))]
    assert arrows == []


def test_an_upward_import_is_seen():
    assert upward("clustering.kmeans", imports("from deepcluster.runs.fit import fit")) == [
        "clustering.kmeans -> runs.fit"
    ]
    assert upward("images.store", imports("import deepcluster.nets.paper")) == ["images.store -> nets.paper"]
    assert upward("seeding", imports("import deepcluster.errors")) == ["seeding -> errors"]


def test_no_import_cycle():
    graph = {name: imports(path.read_text()) - {name} for name, path in modules().items()}
    # A package and its parts know each other by construction; only modules count.
    graph = {
        name: {other for other in others if modules()[other].name != "__init__.py"} for name, others in graph.items()
    }
    while leaves := [name for name, others in graph.items() if not others]:
        graph = {name: others - set(leaves) for name, others in graph.items() if name not in leaves}
    assert graph == {}
