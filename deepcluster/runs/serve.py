"""The report from a server on this machine: edits, recuts and Undo at once; a button sorts into folders.

Only the loopback interface listens. It answers requests with the random token of its address, its own Host and, for a
change, its own Origin. No request names a path: images have row numbers, and sorted images a folder's name in one of
two places. Images and changes belong to one version of the page. Threads read and check requests; the calling thread
alone touches the run, so a signal ends its work as it ends any command. Other users of the machine can connect, but
without the token their connection is closed.
"""

import io
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Empty, Queue
from socket import SHUT_RDWR, socket
from socketserver import ThreadingTCPServer
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from deepcluster.errors import DataError, DeepClusterError, Stopped, UsageError
from deepcluster.report.page import SERVED, cluster, policy, served
from deepcluster.report.pictures import Picture, pictures, tile
from deepcluster.runs.actions import ACTIONS, QUESTIONS, Sort, act, default_name, places_for_folders
from deepcluster.runs.change import REDO, UNDO
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.run import read_run
from deepcluster.runs.views import report
from deepcluster.runtime import log, signals
from deepcluster.runtime.plain_files import MAX_JSON, parse_json, shaped
from deepcluster.storage import former, run_folder
from deepcluster.storage.clusters_file import Made
from deepcluster.storage.content import RESULT
from deepcluster.storage.state import HIDDEN
from deepcluster.texts import plural, quality_text

IDLE_SECONDS = 3600.0
IMAGE_SIDE = 1600  # px of an enlarged image
MAX_CONNECTIONS = 32  # whose request has not been read and checked
REQUEST_SECONDS = 10.0  # for a whole request, headers and body
REDIRECTING = "open-"  # begins the name of a folder for a page that leads to the server
Answer = tuple[str, bytes]  # Content-Type and body


class Refused(Exception):
    """A request that no page of this server makes."""

    status = HTTPStatus.FORBIDDEN


class Outdated(UsageError):
    """A request of a page that is older than the run."""

    def __init__(self) -> None:
        super().__init__("the run has changed since this page was loaded: reload the page, and repeat the edit")


def _page(folder: run_folder.RunFolder) -> tuple[str, dict[str, Any]]:
    """Return the page and its state."""
    return folder.file("report.html").read_text(encoding="utf-8"), _state(folder)


def _state(folder: run_folder.RunFolder) -> dict[str, Any]:
    """Return the state of the run for the script of its page, which needs no other page if the ``cut`` is its own.

    ``done``: The changes that ``undo`` takes back, the next first, as :func:`_line_of` returns them. ``undone``: The
    changes that ``redo`` makes again, likewise. After a new change the undone ones are among the done ones.
    """
    result = folder.read_json(RESULT)
    images = result["images_count"]
    done, undone = ([_line_of(made, images) for made in way] for way in former.history(folder))
    quality = result["quality"]
    return {
        "version": version_of(folder),
        "cut": result["cut"],
        "clusters": [cluster(row) for row in folder.read_rows("cluster_summary.csv")],
        "answers": result["answers"],
        "checked": result["checked"],
        "quality": quality_text(quality) if quality else "",
        "right": quality.get("share") if quality else None,
        "done": done,
        "undone": undone,
        "name": default_name(folder),
        "places": {key: place.name for key, place in places_for_folders(folder).items()},
        "duplicates": folder.has("duplicates.csv"),
    }


def _line_of(made: Made, images: int) -> tuple[str, int, str, str]:
    """Return a change for the page: words, the tile of an image of it, moved images if the words lack them, time."""
    moved = f"{plural(made.moved, 'image')} moved" if made.moved else ""
    return made.done, tile(made.row, images), moved if moved not in made.done else "", made.at


def version_of(folder: run_folder.RunFolder) -> str:
    """Return the version of a page, which knows the number of the next new cluster: an undo keeps that, too."""
    return f"{run_folder.version_of(folder)}-{former.given(folder)}"


def _images(folder: run_folder.RunFolder) -> tuple[str, list[str], Picture]:
    """Return the version, the paths of the usable images, and a function from a path to its image."""
    images = folder.read_images()
    at_hand = images_at_hand(images, Path(folder.read_record().base))
    return version_of(folder), [*images.used.column("path")], pictures(at_hand, IMAGE_SIDE)


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, run: Path, sort: Sort):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.run = run
        self.sort = sort
        self.token = secrets.token_urlsafe(16)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.calls: Queue[tuple[Callable[[], Answer], Future[Answer]]] = Queue()
        self.unchecked: dict[socket, float] = {}  # connections and when they came, the oldest first
        self.images: tuple[str, list[str], Picture] = "", [], lambda path: None
        self.state: tuple[str, Any] = "", None  # version and run, with its graph, between questions
        self.is_quick = False  # the page lacks pictures

    def get_request(self) -> tuple[socket, Any]:
        try:
            connection, address = super().get_request()
        except OSError:  # no file is left, and the connection stays in the queue: do not spin
            time.sleep(0.1)
            raise
        self.unchecked[connection] = time.monotonic()
        return connection, address

    def service_actions(self) -> None:
        """Close late connections, and the oldest of too many: idle ones cannot shut the owner out."""
        connections = list(self.unchecked.items())
        for i, (connection, came) in enumerate(connections):
            if i < len(connections) - MAX_CONNECTIONS or time.monotonic() - came > REQUEST_SECONDS:
                with suppress(OSError):  # already closed
                    connection.shutdown(SHUT_RDWR)  # ends the thread that reads it

    def shutdown_request(self, request: Any) -> None:
        self.unchecked.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client has gone away."""

    def page(self) -> Answer:
        self.draw()
        return "text/html; charset=utf-8", served(*_page(run_folder.open_run(self.run))).encode()

    def draw(self) -> None:
        """Draw the pictures that the page lacks, which has small ones in their places."""
        if self.is_quick:
            with suppress(DeepClusterError):  # another process has the lock: the next load tries again
                report(self.run)
                self.is_quick = False

    def image(self, version: str, row: int) -> Answer:
        if self.images[0] != version_of(run_folder.open_run(self.run)):
            self.images = _images(run_folder.open_run(self.run))
        current, paths, picture = self.images
        if version != current:
            raise Outdated
        if row >= len(paths) or (image := picture(paths[row])) is None:
            raise DataError("this image was not found")
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        image.save(file := io.BytesIO(), "JPEG", quality=90)
        return "image/jpeg", file.getvalue()

    def act(self, action: str, request: dict[str, Any]) -> Answer:
        """Answer an action of the page: a change, or a question, which writes nothing."""

        def check(folder: run_folder.RunFolder) -> str:
            if request.get("version") != (version := version_of(folder)):
                raise Outdated
            return version

        version = check(run_folder.open_run(self.run))
        if action in QUESTIONS:
            if self.state[0] != version:
                self.state = version, read_run(run_folder.open_run(self.run))
            answer = QUESTIONS[action](run_folder.RunFolder(self.run), self.state[1], request)
        else:
            with log.logged(f"the served report: {action}"):
                self.is_quick |= action != "export"
                answer = {**act(self.run, action, request, self.sort, check), "said": _said(log.lines())}
                answer["state"] = _state(run_folder.open_run(self.run))
        return "application/json", json.dumps(answer).encode()


def _said(log_lines: str) -> str:
    """Return the lines of a change for the page, which has buttons for the steps."""
    lines = (line.partition(" ")[2].removeprefix("INFO ") for line in log_lines.splitlines()[1:])
    return "\n".join(line for line in lines if not line.startswith((f"{UNDO}: ", f"{REDO}: ")))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30  # seconds to send an answer

    def log_message(self, *_: object) -> None:
        """Say nothing of single requests."""

    def do_GET(self) -> None:
        status = HTTPStatus.OK
        future = Future[Answer]()
        try:
            work = self._checked()
            self.server.unchecked.pop(self.request, None)
            self.server.calls.put((work, future))
            kind, body = future.result()
        except Exception as error:
            known = isinstance(error, Refused | DeepClusterError | ValueError)
            status = getattr(error, "status", HTTPStatus.CONFLICT)
            words = str(error) if known else f"{type(error).__name__}: {error}"
            kind = "application/json"
            body = json.dumps({"error": words, "outdated": isinstance(error, Outdated)}).encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body))}
        headers["Content-Security-Policy"] = f"{policy(SERVED)}; frame-ancestors 'none'"  # no meta element can say it
        for name, value in {**headers, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def _checked(self) -> Callable[[], Answer]:
        """Return the work of a request for the calling thread."""
        server = self.server
        headers = self.headers
        reads = self.command == "GET"
        origins = headers.get_all("Origin", [] if reads else ["none"])
        if headers.get_all("Host") != [server.host] or any(origin != f"http://{server.host}" for origin in origins):
            raise Refused("wrong Host or Origin")
        token, _, path = self.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), server.token.encode()):
            raise Refused("wrong token")
        image = re.fullmatch(r"image/([\w-]*)/(\d+)", path, re.ASCII)
        if reads and image:
            return partial(server.image, image[1], int(image[2]))
        if reads and not path:
            return server.page
        length = headers.get("Content-Length", "")
        kind = headers.get("Content-Type")
        if reads or path not in (*ACTIONS, *QUESTIONS):
            raise Refused("no such page or action")
        if kind != "application/json" or not length.isdecimal() or int(length) > MAX_JSON:
            raise Refused(f"an action takes application/json of at most {MAX_JSON:,} bytes")
        return partial(server.act, path, shaped(parse_json(self.rfile.read(int(length))), dict, "the request"))


def serve(run: Path, sort: Sort, show: Callable[[str], object], idle_seconds: float = IDLE_SECONDS) -> None:
    """Serve the report of a run until a signal comes, or until no request has come for ``idle_seconds``.

    This version has just written report.html. ``sort`` sorts images into folders (``export.folders``), and ``show``
    gets the address of the page.
    """
    with _Server(run, sort) as server, suppress(Stopped):
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            signals.check()
            show(f"http://{server.host}/{server.token}/")
            last = time.monotonic()
            while time.monotonic() - last < idle_seconds:
                signals.check()
                with suppress(Empty):
                    # Short waits: on Windows a signal cannot end a long one.
                    call, future = server.calls.get(timeout=min(1.0, idle_seconds))
                    try:
                        future.set_result(call())
                    except Exception as error:
                        future.set_exception(error)
                    last = time.monotonic()
        finally:
            with signals.uninterrupted():  # Ctrl-C is the usual end; a second one ends the process at once
                server.draw()
            server.shutdown()


@contextmanager
def redirecting(run: Path, address: str) -> Iterator[Path]:
    """Yield a page that leads to an address, for a browser's command line, which every user of the machine can read.

    It lies in the run, because browsers in a sandbox (snap) cannot see /tmp, and not in its scratch folder, which every
    change empties. The next page of this kind replaces one that a killed process left.
    """
    hidden = run.absolute() / HIDDEN
    for left in hidden.glob(f"{REDIRECTING}*"):
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=REDIRECTING, dir=hidden, ignore_cleanup_errors=True) as folder:  # mode 700
        page = Path(folder) / "report.html"
        page.touch(mode=0o600)
        page.write_text(f'<meta http-equiv="refresh" content="0; url={address}">', encoding="ascii")
        yield page
