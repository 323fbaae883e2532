"""What do tar shards cost and save? Listing, reading and memory, of the same images in a folder and in shards.

    python benchmarks/shards.py FOLDER [--shards 50] [--size 32] [--repeats 5] [--images 1000000]

The files of the folder are put into so many archives by GNU tar (`tar --sort=name`, one header an image) and by
Python's tarfile (in its own format, two headers an image, as WebDataset's writer makes them). All three are listed and
read in turn in one process, by one thread, from the page cache. Memory is that of an index of --images images, by so
many links to one shard of the folder, in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from common import save

from deepcluster.images import find, store
from deepcluster.images.store import read_once


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def write_shards(folder: Path, files: Sequence[Path], count: int, out: Path, *, gnu: bool) -> Path:
    out.mkdir()
    size = -(-len(files) // count)
    for n in range(count):
        names = [str(file.relative_to(folder)) for file in files[n * size : (n + 1) * size]]
        shard = out / f"train-{n:06}.tar"
        if gnu:
            command = ["tar", "--sort=name", "-cf", str(shard), "-C", str(folder), "-T", "-"]
            subprocess.run(command, input="\n".join(names), text=True, check=True)
        else:
            with tarfile.open(shard, "w") as tar:
                for name in names:
                    tar.add(folder / name, name)
    return out


def memory(shard: Path, images: int, place: Path) -> dict[str, float]:
    """Seconds to index and the rise of the most memory, in MB, of a process with so many images."""
    place.mkdir()
    each = len(find(shard).paths)
    for n in range(-(-images // each)):
        os.link(shard, place / f"train-{n:06}.tar")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom deepcluster.images import find\n"
        "def most():  # not ru_maxrss, which begins with that of the process that started this one\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return int(next(line for line in lines if line.startswith('VmHWM')).split()[1]) / 1024\n"
        "find(sys.argv[1] + '/train-000000.tar')\nbefore, begin = most(), time.perf_counter()\n"
        "source = find(sys.argv[1])\nspent = time.perf_counter() - begin\n"
        "print(len(source.paths), most() - before, spent, sum(map(len, source.paths)) / len(source.paths))"
    )
    said = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True).stdout
    count, rise, spent, letters = map(float, said.split())
    return {"images": int(count), "mb": round(rise), "seconds": round(spent, 1), "letters_a_path": round(letters)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=1_000_000)
    options = parser.parse_args()
    files = sorted((path for path in options.folder.rglob("*") if path.is_file()), key=os.fsencode)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        ways = {
            "folder": options.folder,
            "shards of GNU tar": write_shards(options.folder, files, options.shards, place / "gnu", gnu=True),
            "shards of tarfile": write_shards(options.folder, files, options.shards, place / "pax", gnu=False),
        }
        spent: dict[str, dict[str, list[float]]] = {way: {"list": [], "read": []} for way in ways}
        store.cores = lambda: 1  # one thread reads
        for turn in range(options.repeats + 1):  # the first warms up
            for way, images in ways.items():
                begin = time.perf_counter()
                source = find(images)
                listing = time.perf_counter() - begin
                reading = seconds(lambda source=source: read_once(source, options.size))
                if turn:
                    spent[way]["list"].append(listing)
                    spent[way]["read"].append(reading)
        results = {
            way: {
                what: {
                    "seconds": round(median(values), 3),
                    "least": round(min(values), 3),
                    "most": round(max(values), 3),
                }
                for what, values in each.items()
            }
            | {"images_per_second": round(len(files) / median(each["read"]))}
            for way, each in spent.items()
        }
        index = memory(place / "gnu" / "train-000000.tar", options.images, place / "many")
    for way, row in results.items():
        print(way, row)
    print("index", index)
    save("shards", {"images": len(files), "repeats": options.repeats, "results": results, "index": index})


if __name__ == "__main__":
    main()
