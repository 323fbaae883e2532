"""A run that is served as `deepcluster report RUN --serve` does it, and requests that no browser makes."""

import http.client
import io
import json
import re
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from PIL import Image

from deepcluster.export import folders
from deepcluster.export.read_back import by_folder
from deepcluster.runs.serve import serve
from deepcluster.runs.views import report


def serving(run: Path) -> str:
    """Serve a run until nobody has asked for ten minutes; the address of its page."""
    report(run)
    addresses: Queue[str] = Queue()
    Thread(target=serve, args=(run, folders, by_folder, addresses.put, 600), daemon=True).start()
    return addresses.get(timeout=60)


def ask(
    address: str, path: str = "", body: bytes | None = None, *, method: str = "", headers: dict[str, Any] | None = None
) -> tuple[int, str]:
    """Ask as the page does, but for ``headers`` (None leaves one out); the status and the text of the answer."""
    parts = urlsplit(address)
    ours = {"Host": parts.netloc}
    if body is not None:
        ours |= {"Origin": f"http://{parts.netloc}", "Content-Type": "application/json"}
        ours |= {"Content-Length": str(len(body))}
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    place = path if path.startswith("/") else parts.path + path
    connection.putrequest(method or ("GET" if body is None else "POST"), place, skip_host=True)
    for name, value in (ours | (headers or {})).items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                connection.putheader(name, one)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")


def version(address: str) -> str:
    """The version of the run that the page is of."""
    served = re.search(r'"served":\{"version":"([0-9a-f]{64}-[0-9]+-[0-9]+)"', ask(address)[1])
    assert served
    return served[1]


def pictures_of(address: str) -> str:
    """The version of the images that the page is of."""
    pictures = re.search(r'"pictures":"([0-9a-f]+-[0-9]+)"', ask(address)[1])
    assert pictures
    return pictures[1]


def answer(address: str, action: str, of: str, **words: object) -> tuple[int, dict[str, Any]]:
    """Ask for an action from a page of the version ``of``; the status, and the answer."""
    request = {"version": of, **({"edits": {"schema_version": 1, **words}} if action == "apply" else words)}
    status, text = ask(address, action, json.dumps(request).encode())
    return status, json.loads(text)


def colour(address: str, of: str, row: int) -> str:
    """The strongest colour of an image that a page of the version ``of`` of the images enlarges."""
    with urlopen(f"{address}image/{of}/{row}") as answer:
        pixel = Image.open(io.BytesIO(answer.read())).getpixel((0, 0))
    return ("red", "green", "blue")[pixel.index(max(pixel))]
