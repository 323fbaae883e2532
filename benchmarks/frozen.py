"""Are results the same as before a change? Small runs of every command on fixed seeds, a digest of all they make.

    python benchmarks/frozen.py --write before.json      at the commit before
    python benchmarks/frozen.py --compare before.json    at the commit after: names what differs

Everything goes through the command line of this checkout, with one thread, so that code may move between the two
commits. Digests depend on the processor and the versions of the libraries: record and compare on one machine. Times,
versions and texts are left out.
"""

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "sklearn:digits --backbone compact --image-size 16 --pseudo-labels 30 --labels folders --seed 3"
DIGITS += " --keep-checkpoints"  # for `of_run`
RUNS = {
    "auto": f"{DIGITS} -k 10 --rounds 4 --epochs 2",
    "classic": f"{DIGITS} -k auto --recipe classic --rounds 2 --epochs 1",
    "v1": f"{DIGITS} -k 10 --recipe v1 --rounds 2 --epochs 1",
    "v2": f"{DIGITS} -k 10 --recipe v2 --rounds 2 --epochs 1",
}
TWO_ROUNDS = f"{DIGITS} -k 10 --rounds 2 --epochs 1"
ALEXNET = "noise.npy --backbone alexnet --recipe classic -k 3 --pseudo-labels 4 --rounds 0 --seed 3 --keep-checkpoints"
PROTOCOLS = {
    "clustering": "",
    "knn": "--protocol knn --set neighbours=5,20",
    "linear": "--protocol linear --epochs 1",
}
EXPORTS = {"folders": "folders --mode copy", "imagefolder": "imagefolder"}
# Of run.json: what was found, without the sentences about it. The rest is of this run and machine.
FOUND = (
    "backbone", "candidates", "clusters", "fingerprint", "images_count", "pseudo_labels", "rounds", "rows", "signs",
    "skipped_count",
)  # fmt: skip
TIMES = ("_seconds", "images_per_second")
VOLATILE = {"schema_version", "weights_sha256", "identity", "config_sha256", "version", "deepcluster_version"}

Digests = dict[str, str]


def digest(content: object) -> str:
    """A short value as it is, for whoever reads a difference; else its SHA-256."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    text = json.dumps(content, sort_keys=True, default=str)
    return text if len(text) <= 40 else digest(text.encode())


class Commands:
    """Runs `python -m deepcluster` of this checkout in a folder, so that no path of the machine gets into a result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

    def __call__(self, *arguments: str, launcher: str = "") -> str:
        """What the command prints; a command that fails ends the script."""
        begin = time.perf_counter()
        done = subprocess.run(self._line(arguments, launcher), cwd=self.folder, env=self.environment,
                              capture_output=True, text=True)  # fmt: skip
        print(f"{time.perf_counter() - begin:6.1f} s  {' '.join(arguments)}", file=sys.stderr)
        if done.returncode:
            sys.exit(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def killed(self, *arguments: str, run: Path) -> None:
        """Kill a run in its second round. What it has done by then may differ; the result of going on may not."""
        with subprocess.Popen(self._line(arguments, ""), cwd=self.folder, env=self.environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # fmt: skip
            while process.poll() is None and not list(run.glob("checkpoints/000001.json")):
                time.sleep(0.005)
            process.kill()
        if process.returncode != -signal.SIGKILL:
            sys.exit(f"the run ended with {process.returncode} before it could be killed in its second round")

    def _line(self, arguments: tuple[str, ...], launcher: str) -> list[str]:
        return [sys.executable, *launcher.split(), "-m", "deepcluster", *" ".join(arguments).split()]


def of_table(file: Path) -> Digests:
    """A digest of each column, but those of times."""
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as text:
        header, *rows = list(csv.reader(text))
    return {
        name: digest([row[i] for row in rows]) for i, name in enumerate(header) if not name.endswith(TIMES)
    }  # fmt: skip


def of_values(values: Mapping[str, Any], keep: Callable[[str], bool] = lambda key: key not in VOLATILE) -> Digests:
    return {key: digest(value) for key, value in values.items() if keep(key)}


def of_tensors(file: Path) -> Digests:
    """A digest of type, shape and bytes of each tensor, read from the file itself."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    entries.pop("__metadata__", None)
    found = {}
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        kind = f"{entry['dtype']}{entry['shape']}"
        found[name] = digest(kind.encode() + content[start + begin : start + end])
    return found


def of_array(array: np.ndarray) -> str:
    return digest(f"{array.dtype}{list(array.shape)}".encode() + np.ascontiguousarray(array).tobytes())


READERS: Mapping[str, Any] = {
    "run.json": lambda file: of_values(json.loads(file.read_text()), FOUND.__contains__),
    # Where the weights lie is nobody's concern.
    "recipe.toml": lambda file: of_values(tomllib.loads(file.read_text()), lambda key: key != "weights"),
    ".safetensors": of_tensors,
    ".csv": of_table,
    ".json": lambda file: of_values(json.loads(file.read_text())),
    ".npy": lambda file: {"": of_array(np.load(file))},
    ".webp": lambda file: {"": digest(file.read_bytes())},
}


def of_file(name: str, file: Path) -> Digests:
    """Names and digests of what a file holds; none where it is a text or drawing for people."""
    reader = READERS.get(file.name) or READERS.get(file.suffix)
    return {f"{name}:{key}".rstrip(":"): value for key, value in reader(file).items()} if reader else {}


def of_run(name: str, run: Path) -> Digests:
    """Everything in a run folder, and of its checkpoints the last: how training ended."""
    last = max(run.glob("checkpoints/[0-9]*.safetensors"), default=None)
    found = of_file(f"{name}/checkpoint", last) if last else {}
    for file in sorted(run.rglob("*")):
        if file.is_file() and file.parent.name != "checkpoints":
            found |= of_file(f"{name}/{file.relative_to(run)}", file)
    return found


def of_tree(name: str, folder: Path) -> Digests:
    """The tables of an export, and one digest of names and bytes of all images in it."""
    found, images = {}, []
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".csv", ".json", ".safetensors"):
            found |= of_file(f"{name}/{file.relative_to(folder)}", file)
        elif file.is_file() and file.suffix != ".md":
            images.append([str(file.relative_to(folder)), digest(file.read_bytes())])
    return found | {f"{name}:images": digest(images)}


def uses(command: Commands, run: str, images: str) -> Digests:
    """What is done with a run: new images, evaluations, exports, another cut, edits. The run is changed by it."""
    folder, found = command.folder, {}

    def out(name: str) -> Path:
        return folder / f"{run}-{name}"

    def use(verb: str, suffix: str) -> None:
        command(verb, run, images, "-o", out(verb + suffix).name)
        found.update(of_file(f"{run}/{verb}{suffix}", out(verb + suffix)))

    use("predict", ".csv")
    use("embed", ".npy")
    for protocol, options in PROTOCOLS.items():
        said = json.loads(command("evaluate", run, "--labels folders --json", options))
        found |= {f"{run}/evaluate-{protocol}:{key}": digest(value) for key, value in said.items()}
    for name, options in EXPORTS.items():
        command("export", run, "--to", options, "-o", out(name).name)
        found |= of_tree(f"{run}/{name}", out(name))
    command("recut", run, "-k 7")
    found |= of_run(f"{run}/recut", folder / run)
    cut = json.loads((folder / run / "run.json").read_text())["cut"]
    edits = {"schema_version": 1, "cut": cut, "names": {"0": "first"}, "merge": [[1, 3], [2, 5]], "junk": [4]}
    out("edits.json").write_text(json.dumps(edits))
    command("apply", run, out("edits.json").name)
    found |= of_run(f"{run}/apply", folder / run)
    command("predict", run, images, "--reject -o", out("rejected.csv").name)
    return found | of_file(f"{run}/rejected.csv", out("rejected.csv"))


def record(folder: Path) -> Digests:
    command, found = Commands(folder), {}
    for name, options in RUNS.items():
        command("fit", options, "-o", name)
        found |= of_run(name, folder / name)

    command.killed("fit", TWO_ROUNDS, "-o resumed", run=folder / "resumed")
    command("fit", TWO_ROUNDS, "-o resumed --resume")
    found |= of_run("resumed", folder / "resumed")

    command("fit", TWO_ROUNDS, "-o shared", launcher="-m torch.distributed.run --standalone --nproc-per-node=2")
    found |= of_run("shared", folder / "shared")

    noise = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
    np.save(folder / "noise.npy", noise)
    command("fit", ALEXNET, "-o alexnet")
    found |= of_run("alexnet", folder / "alexnet")

    return found | uses(command, "auto", "sklearn:digits")


def differences(before: Digests, now: Digests) -> list[str]:
    names = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    return [f"{name}: {before.get(name, '-')[:40]} -> {now.get(name, '-')[:40]}" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the digests to this JSON file")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="print what differs; exit code 1 if anything")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = record(Path(scratch).resolve())
    print(f"{len(found)} digests")
    if options.write:
        options.write.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if options.compare:
        differing = differences(json.loads(options.compare.read_text()), found)
        print("\n".join(differing) or "no difference")
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
