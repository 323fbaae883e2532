"""Tries a function on damaged inputs: by atheris (libFuzzer) where it is installed, else by random changes."""

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

Target = Callable[[bytes], bool]
TIMEOUT = 20  # seconds an input may take
NUMBERS = (b"-1", b"0", b"1e999", b"NaN", b"2147483648", b"1000000000", b"18446744073709551616", b"1.5", b"true", b'""')


def peak_memory(*, anew: bool = False) -> int:
    """The most bytes that this process has had in memory; ``anew`` starts to look from now on (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if anew:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    # Not ru_maxrss: on Linux a process starts with that of the one which started it.
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def main(name: str, target: Target, seeds: Sequence[bytes]) -> None:
    """``target(input)`` says whether the input was accepted; whatever it raises is a finding, and ends the program."""
    parser = argparse.ArgumentParser(prog=f"python -m fuzz.{name}")
    parser.add_argument("--seconds", type=float, default=60, help="stop after this time")
    parser.add_argument("--runs", type=int, default=sys.maxsize, help="stop after this many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="random changes even where atheris is installed")
    given = parser.parse_args()
    if given.plain or not _by_atheris(target, seeds, given):
        _by_chance(name, target, seeds, given)


def instrumented(module: str) -> AbstractContextManager[object]:
    """Around the imports of a script: atheris then sees which lines an input reaches. Only where it is the program."""
    if module != "__main__" or "--plain" in sys.argv:
        return nullcontext()
    try:
        import atheris
    except ImportError:
        return nullcontext()
    imports: AbstractContextManager[object] = atheris.instrument_imports(include=["deepcluster", "PIL", "json"])
    return imports


def _by_atheris(target: Target, seeds: Sequence[bytes], given: argparse.Namespace) -> bool:
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: random changes without a view of the code (pip install atheris)")
        return False
    with TemporaryDirectory() as corpus:
        for i, seed in enumerate(seeds):
            (Path(corpus) / str(i)).write_bytes(seed)
        options = {
            "max_total_time": int(given.seconds), "timeout": TIMEOUT, "rss_limit_mb": 4096, "seed": given.seed + 1,
            "runs": min(given.runs, 2**31 - 1), "max_len": max(map(len, seeds)) + 1024,
        }  # fmt: skip

        def run(data: bytes) -> None:  # what libFuzzer is given back has a meaning
            target(data)

        atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), corpus], run)
        atheris.Fuzz()  # ends the program
    return True


def _by_chance(name: str, target: Target, seeds: Sequence[bytes], given: argparse.Namespace) -> None:
    chance = random.Random(given.seed)
    for seed in seeds:
        target(seed)  # what the libraries themselves take
    before = peak_memory(anew=True)
    runs, accepted, slowest, begun = 0, 0, 0.0, time.monotonic()
    while runs < given.runs and time.monotonic() - begun < given.seconds:
        data = changed(seeds, chance)
        start = time.monotonic()
        try:
            accepted += target(data)
        except BaseException:
            Path(f"finding-{name}").write_bytes(data)
            print(f"the input is in finding-{name}")
            raise
        slowest = max(slowest, time.monotonic() - start)
        runs += 1
    risen = (peak_memory() - before) / 1e6
    print(json.dumps({"runs": runs, "accepted": accepted, "slowest": round(slowest, 2), "risen_mb": round(risen)}))
    if slowest > TIMEOUT:
        sys.exit(f"an input took {slowest:.0f} s")


def changed(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the seeds after one, two or four changes: bits, bytes, numbers, pieces cut out, doubled or put in."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        # Half of the changes are near the start, where headers are.
        length = max(1, len(data) if chance.random() < 0.5 else min(len(data), 64))
        at, size = chance.randrange(length), chance.choice((1, 2, 4, 8, 64))
        digits = [i for i, byte in enumerate(data[:4096]) if chr(byte).isdecimal()]
        match chance.randrange(8):
            case 0 if data:
                data[at] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at:at] = chance.randbytes(size)
            case 5:
                data[at : at + size] = chance.choice((b"\0", b"\xff")) * size
            case 6 if digits:
                place = chance.choice(digits)
                data[place : place + 1] = chance.choice(NUMBERS)
            case 7:
                del data[at:]
    return bytes(data)
