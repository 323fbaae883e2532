"""The source of the package: a module imports only what lies below it, and some things none ever does."""

import ast
from functools import cache
from pathlib import Path

import pytest

import deepcluster

ROOT = Path(deepcluster.__file__).parent
# From the bottom up. A package may import itself and the packages of lower levels.
LEVELS = (
    {"texts", "errors", "seeding", "records"},
    {"runtime"},
    {"clustering", "images", "nets"},
    {"groups", "learning"},
    {"algorithm", "model"},
    {"recipes"},
    {"storage"},
    {"report"},
    {"runs"},
    {"fitting"},
    {"export"},
    {"opened_run"},
    {"commands", "estimator"},
    {"__main__"},
)
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}


@cache
def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    }


@cache
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


def test_nothing_imports_upward():
    arrows = [
        f"{name} -> {other}"
        for name, path in modules().items()
        for other in imports(path.read_text())
        if (here := name.split(".")[0]) != (there := other.split(".")[0]) and LEVEL[there] >= LEVEL[here]
    ]
    assert arrows == []


def test_no_import_cycle():
    graph = {name: imports(path.read_text()) - {name} for name, path in modules().items()}
    # A package and its parts know each other by construction; only modules count.
    graph = {
        name: {other for other in others if modules()[other].name != "__init__.py"} for name, others in graph.items()
    }
    while leaves := [name for name, others in graph.items() if not others]:
        graph = {name: others - set(leaves) for name, others in graph.items() if name not in leaves}
    assert graph == {}


# ---- what the package never does: unpickle, evaluate text, start programs, talk to the network ----------------------

# Code from data, programs, the network, archives, memory.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "pickletools",
    "subprocess", "multiprocessing", "pty", "code", "runpy", "importlib", "imp",
    "socket", "ssl", "urllib", "urllib3", "http", "httpx", "requests", "aiohttp", "ftplib", "smtplib", "xmlrpc",
    "webbrowser", "huggingface_hub", "hf_hub_download", "telnetlib", "tarfile", "zipfile", "ctypes", "cffi",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "globals", "os.system", "os.popen", "os.startfile", "os.putenv",
    "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load", "torch.hub.load_state_dict_from_url",
    "torch.utils.model_zoo.load_url", "torch.utils.cpp_extension.load", "np.lib.format.read_array", "np.fromregex",
    "shutil.unpack_archive", "pd.read_pickle", "input", "breakpoint", "tempfile.mktemp",
}  # fmt: skip
# They unpickle what other processes send.
OBJECTS = {
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list",
    "recv_object_list", "rpc_sync", "rpc_async",
}  # fmt: skip
STARTS = ("os.exec", "os.spawn", "os.posix_spawn", "os.fork", "torch.hub.", "torch.package.")
# The call and the keyword that makes it safe.
SAFE_WITH = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}

ALLOWED = {
    ("__init__.py", "importlib"): "imports the package's own modules when one of their names is first used",
    (
        "commands/session.py",
        "webbrowser",
    ): "hands a page that was just written to the user's browser, with --open",
    ("runs/actions.py", "webbrowser"): "opens a folder of sorted images in the file manager, by a button of the page",
    ("runtime/devices.py", "ctypes"): "tells the C library to keep freed memory (mallopt)",
    ("runtime/machine.py", "importlib"): "asks for the versions of installed packages, loads nothing",
    ("nets/hub.py", "huggingface_hub"): "looks into the cache, and downloads weights that the user asked for",
    ("nets/hub.py", "importlib"): "finds the folder of the package with the network (find_spec), loads nothing",
    ("nets/timm.py", "importlib"): "finds the tables of nouns among timm's files, loads nothing",
    ("images/shards.py", "tarfile"): "reads the headers of shards; nothing is extracted, and no name is opened",
    ("runs/serve.py", "http"): "serves the report on the loopback interface, with --serve alone; asks nobody",
    ("report/page.py", "urllib"): "quotes a path for a link (urllib.parse), opens nothing",
    ("images/decode.py", "ctypes"): "tells libtiff not to print (TIFFSetErrorHandler)",
    ("images/decode.py", "importlib"): "tells if rawpy is installed (find_spec), loads nothing",
    ("report/hints.py", "importlib"): "finds a table of the package's own (importlib.resources)",
    ("runtime/console.py", "importlib"): "tells if a package is installed (find_spec), loads nothing",
    ("nets/weights.py", "zipfile"): "reads the table of contents of a checkpoint, to refuse a compressed one",
}


def offences(source: str) -> list[str]:
    """What a source text does that it must not."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += MODULES & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            found += [*MODULES & {str(node.module).split(".")[0]}, *OBJECTS & names]
            found += CALLS & {f"{node.module}.{name}" for name in names}
            if node.module in ("torch", "numpy", "torch.serialization") and "load" in names:
                found.append(f"from {node.module} import load")
        elif isinstance(node, ast.Attribute | ast.Name):
            found += OBJECTS & {node.attr if isinstance(node, ast.Attribute) else node.id}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).replace("numpy.", "np.")
            if called in CALLS or called.startswith(STARTS):
                found.append(called)
            safe_with = SAFE_WITH.get(called)
            if safe_with and safe_with not in {f"{given.arg}={ast.unparse(given.value)}" for given in node.keywords}:
                found.append(f"{called} without {safe_with}")
    return found


def test_the_package_does_none_of_it():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 40
    found = {(path.relative_to(ROOT).as_posix(), what) for path in files for what in offences(path.read_text())}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("def f():\n    import marshal", "marshal"),
        ("from os import system", "os.system"),
        ("os.execvp('x', [])", "os.execvp"),
        ("torch.load(path, weights_only=safe)", "torch.load without weights_only=True"),
        ("numpy.load(path, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("from numpy import load as read", "from numpy import load"),
        ("torch.hub.load('a', 'b')", "torch.hub.load"),
        ("from torch.distributed import broadcast_object_list as send", "broadcast_object_list"),
        ("send = dist.scatter_object_list", "scatter_object_list"),
    ],
)
def test_each_of_them_is_seen_and_nothing_else(source, what):
    assert what in offences(source)
    assert offences("torch.load(path, map_location='cpu', weights_only=True)\nnetwork.eval()\nnp.save(a, b)") == []


def test_only_two_places_may_download():
    """``torchvision:NAME`` and ``--weights timm``: the words that make these libraries download stand nowhere else."""
    files: dict[str, set[str]] = {"download": set(), "pretrained": set()}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            word = node.arg if isinstance(node, ast.keyword) else getattr(node, "value", None)
            if isinstance(word, str) and word in files:
                files[word].add(path.relative_to(ROOT).as_posix())
    assert files["download"] == {"images/named.py"} and files["pretrained"] <= {"nets/network.py"}
