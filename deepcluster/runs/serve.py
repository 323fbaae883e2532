"""The report from a server on this machine: edits and Undo are applied at once, and a button sorts into folders.

Only the loopback interface listens. It answers requests with the random token of its address, its own Host and, for a
change, its own Origin. No request names a path: images have row numbers, and the sorted images have one place. Threads
read and check requests; the calling thread alone touches the run, so a signal ends its work like that of any command.
"""

import io
import json
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Empty, Queue
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import Any

from deepcluster import log
from deepcluster.errors import DataError, DeepClusterError, Stopped, UsageError
from deepcluster.report.page import SERVED, policy, served
from deepcluster.report.sections import Picture
from deepcluster.runs.page import pictures
from deepcluster.runs.recut import apply, undo
from deepcluster.runs.rows import images_at_hand
from deepcluster.runtime import signals
from deepcluster.runtime.console import Log
from deepcluster.runtime.plain_files import MOST_JSON, parse_json, sha256, shaped
from deepcluster.storage import run_folder as files
from deepcluster.storage.edits_file import edits_of

IDLE_SECONDS = 3600.0
IMAGE_SIDE = 1600  # px of an enlarged image
Answer = tuple[str, bytes]  # Content-Type and body


class Refused(Exception):
    """A request that no page of this server makes."""

    status = HTTPStatus.FORBIDDEN


def _read(folder: files.RunFolder) -> tuple[str, dict[str, Any]]:
    """Return the page and its state. Every change of a run alters run.json."""
    version, former = sha256(folder.file(files.RUN)), folder.has(files.FORMER)
    return folder.file("report.html").read_text(encoding="utf-8"), {"version": version, "undo": former}


class _Server(ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, run: Path, sort: Callable[..., object]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.run, self.sort, self.token = run, sort, secrets.token_urlsafe(16)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.calls: Queue[tuple[Callable[[], Answer], Future[Answer]]] = Queue()

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client has gone away."""

    def page(self) -> Answer:
        return "text/html; charset=utf-8", served(*files.read_state(self.run, _read)).encode()

    @cached_property
    def _images(self) -> tuple[list[str], Picture]:
        folder = files.open_run(self.run)
        paths = [*folder.read_clusters().where("status", "ok").column("path")]
        return paths, pictures(images_at_hand(folder), IMAGE_SIDE)

    def image(self, row: int) -> Answer:
        paths, picture = self._images
        if row >= len(paths) or (image := picture(paths[row])) is None:
            raise DataError("this image is not at hand")
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        image.save(file := io.BytesIO(), "JPEG", quality=90)
        return "image/jpeg", file.getvalue()

    def change(self, action: str, request: dict[str, Any]) -> Answer:
        if request.get("version") != files.read_state(self.run, _read)[1]["version"]:
            raise UsageError("the run has changed since this page was loaded: reload the page, and repeat the edit")
        with log.logged(f"the served report: {action}"):
            if action == "apply":
                apply(self.run, edits_of(request.get("edits")))
            elif action == "undo":
                undo(self.run)
            else:
                out = Path(f"{os.path.abspath(self.run)}-sorted")  # noqa: PTH100
                self.sort(self.run, out, overwrite=True, display=Log())
            said = "\n".join(line.partition(" ")[2].removeprefix("INFO ") for line in log.lines().splitlines()[1:])
        return "application/json", json.dumps({"said": said}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30  # seconds without a byte from the client

    def log_message(self, *_: object) -> None:
        """Say nothing of single requests."""

    def do_GET(self) -> None:
        status, future = HTTPStatus.OK, Future[Answer]()
        try:
            self.server.calls.put((self._checked(), future))
            kind, body = future.result()
        except Exception as error:
            known = isinstance(error, Refused | DeepClusterError | ValueError)
            status = getattr(error, "status", HTTPStatus.CONFLICT)
            words = str(error) if known else f"{type(error).__name__}: {error}"
            kind, body = "application/json", json.dumps({"error": words}).encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": policy(SERVED)}
        for name, value in {**headers, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def _checked(self) -> Callable[[], Answer]:
        """Return the work of a request for the calling thread."""
        server, headers, reads = self.server, self.headers, self.command == "GET"
        origins = headers.get_all("Origin", [] if reads else ["none"])
        if headers.get_all("Host") != [server.host] or any(origin != f"http://{server.host}" for origin in origins):
            raise Refused("wrong Host or Origin")
        token, _, path = self.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), server.token.encode()):
            raise Refused("wrong token")
        row = path.removeprefix("image/")
        if reads and (path == "" or row.isdecimal()):
            return partial(server.image, int(row)) if path else server.page
        length, kind = headers.get("Content-Length", ""), headers.get("Content-Type")
        if reads or path not in ("apply", "undo", "export"):
            raise Refused("no such page or action")
        if kind != "application/json" or not length.isdecimal() or int(length) > MOST_JSON:
            raise Refused(f"an action takes application/json of at most {MOST_JSON:,} bytes")
        return partial(server.change, path, shaped(parse_json(self.rfile.read(int(length))), dict, "the request"))


def serve(
    run: Path, sort: Callable[..., object], show: Callable[[str], object], idle_seconds: float = IDLE_SECONDS
) -> None:
    """Serve the report of a run until a signal comes, or until no request has come for an hour.

    Args:
        run: The run folder. This version has just written its report.html.
        sort: Sorts images into folders: ``export.folders``.
        show: Gets the address of the page.
        idle_seconds: Time without a request that ends the server.
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
            server.shutdown()
