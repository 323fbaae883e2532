"""How long does the served page of 60,000 images wait for an answer?

    python benchmarks/large_page.py [--images 60000]

The images are rows of 64 numbers of 24 kinds, one of them a third of all, without pictures. results/large_page.json has
the processor seconds of the server for each request of the page, and the images of the largest cluster that no list
reaches.
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import fit, parser_of, save

from deepcluster.export import folders
from deepcluster.export.read_back import by_folder
from deepcluster.runs.serve import _Server, page_version
from deepcluster.storage.run_folder import open_run

KINDS, WIDTH = 24, 64


def features(images: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return rows of unit length around the centres of the kinds."""
    random = np.random.default_rng(0)
    sizes = [images // 3, *[(images - images // 3) // (KINDS - 1)] * (KINDS - 1)]
    sizes[1] += images - sum(sizes)
    centres = random.normal(size=(KINDS, WIDTH))
    rows = np.repeat(centres, sizes, axis=0) + random.normal(size=(images, WIDTH), scale=1.2)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def measured(run: Path) -> dict[str, Any]:
    """Return the seconds of each request, in the order of a person's work."""
    seconds: dict[str, Any] = {}
    with _Server(run, folders, by_folder) as server:
        server.page()

        def ask(name: str, action: str, **words: Any) -> dict[str, Any]:
            now = {"version": page_version(open_run(run))}
            begin = time.process_time()
            answer: dict[str, Any] = json.loads(server.act(action, {**now, **words})[1])
            seconds[name] = round(time.process_time() - begin, 2)
            print(name, seconds[name], flush=True)
            return answer

        clusters = server.result(open_run(run)).run.clusters
        largest = int(clusters.bincount().argmax())
        listed = ask("list of the largest cluster", "list", clusters=[largest], order="doubt")["rows"]
        seconds["images of it that no list reaches"] = int((clusters == largest).sum()) - len(listed)
        ask("a move", "apply", edits={"schema_version": 1, "move": [[listed[0], (largest + 1) % KINDS]]})
        ask("a name", "apply", edits={"schema_version": 1, "names": {"1": "one"}})
        question = ask("first question", "ask", taught={"answers": []})["questions"][0]
        answers = [{"path": one["row"], "name": f"kind {i}"} for i, one in enumerate(question[:4])]
        ask("preview of four answers", "preview", taught={"answers": answers})
        ask("four answers", "teach", taught={"answers": answers})
        ask("preview of 30 clusters", "preview", change="recut", k=30)
        ask("30 clusters", "recut", k=30)
    return seconds


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows, run = Path(folder, "features.npy"), Path(folder, "run")
        np.save(rows, features(options.images))
        fit(rows, ["--features", "-k", str(KINDS), "-q"], run)
        save("large_page", {"images": options.images, "seconds": measured(run)})


if __name__ == "__main__":
    main()
