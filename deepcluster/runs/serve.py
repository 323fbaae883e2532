"""The report from a server on this machine: edits, recuts and Undo at once; a button sorts into folders.

Only the loopback interface listens. It answers requests with the random token of its address, its own Host and, for a
change, its own Origin. No request names a path: images have row numbers, and sorted images a folder's name in one of
two places. A request names the version of the run that its page shows; the server refuses any other. The answer to a
change is the page after it. Threads read and check requests; the calling thread alone touches the run, so a signal ends
its work as it ends any command.
"""

import io
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Empty, Queue
from socketserver import ThreadingTCPServer
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import scipy.sparse.linalg  # noqa: F401 (takes .4 s, which the first question would wait for)

from deepcluster.errors import DataError, DeepClusterError, Stopped, UsageError
from deepcluster.images import Source
from deepcluster.report.page import SERVED, policy, render
from deepcluster.report.pictures import THUMBNAIL, Picture, pictures, pictures_on, thumbnail
from deepcluster.runs.actions import (
    CHANGES,
    QUESTIONS,
    Read,
    Sort,
    default_name,
    places_for_folders,
    preview_of,
    read_folder,
    sort_images,
)
from deepcluster.runs.change import REDO, UNDO, Change, ChangeOf, commit
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.page import Drawings, page_data, read_drawings, read_sheet
from deepcluster.runs.result import Outcome, describe
from deepcluster.runs.run import Run, read_run
from deepcluster.runs.views import checked, refresh
from deepcluster.runtime import log, signals
from deepcluster.runtime.bounded import MAX_JSON, parse_json, shaped
from deepcluster.runtime.console import Several
from deepcluster.storage import former, run_folder
from deepcluster.storage.clusters_file import Made
from deepcluster.storage.content import IMAGES
from deepcluster.storage.lock import HIDDEN
from deepcluster.texts import plural, quality_text

IDLE_SECONDS = 3600.0
REST_SECONDS = 10.0  # without a request, after which report.html and the other views are made
MAX_CHECKED = 5000  # images: some 450 rows of pictures; of more the page asks about single ones
IMAGE_SIDE = 1600  # px of an enlarged image
THUMBNAIL_BYTES = 8000
REDIRECTING = "open-"  # begins the name of a folder for a page that leads to the server
FOREVER = "private, max-age=31536000, immutable"  # a picture at an address with a version
Response = tuple[str, bytes]  # Content-Type and body


class Refused(Exception):
    """A request that no page of this server makes."""

    status = HTTPStatus.FORBIDDEN


class Outdated(UsageError):
    """A request of a page that is older than the run."""

    def __init__(self) -> None:
        super().__init__("the run has changed since this page was loaded: reload the page, and repeat the edit")


def _state(folder: run_folder.RunFolder, outcome: Outcome, pictures: str) -> dict[str, Any]:
    """Return the state of the run for the script of its page.

    ``done``: The changes that ``undo`` takes back, the next first, as :func:`_line_of` returns them. ``undone``: The
    changes that ``redo`` makes again, likewise. After a new change the undone ones are among the done ones.
    ``pictures``: Version of the images, in the addresses of their pictures; empty if there are none.
    """
    done, undone = ([_line_of(made) for made in way] for way in former.history(folder))
    quality = outcome.quality
    return {
        "version": page_version(folder),
        "pictures": pictures,
        "answers": len(outcome.run.model.said),
        "checked": checked(outcome.run),
        "images": len(outcome.run.rows.paths),
        "large": len(outcome.run.rows.paths) > MAX_CHECKED,
        "quality": quality_text(quality) if quality else "",
        "right": quality.get("share") if quality else None,
        "done": done,
        "undone": undone,
        "name": default_name(folder),
        "places": {key: place.name for key, place in places_for_folders(folder).items()},
        "duplicates": folder.has("duplicates.csv"),
    }


def _line_of(made: Made) -> tuple[str, int, str, str]:
    """Return a change for the page: words, the row of an image of it, moved images if the words lack them, time."""
    moved = f"{plural(made.moved, 'image')} moved" if made.moved else ""
    return made.text, made.row, moved if moved not in made.text else "", made.at


def page_version(folder: run_folder.RunFolder) -> str:
    """Return the version of a page, which knows the number of the next new cluster: an undo keeps that, too."""
    return f"{run_folder.version_of(folder)}-{former.given(folder)}"


@dataclass(frozen=True)
class _Images:
    """The images of a run, and what a page shows of them whatever their clusters are."""

    version: str
    source: Source | None  # those at hand
    paths: list[str]  # of all usable ones
    large: Picture
    small: Picture  # or else tiny, of the sheet
    sheet: bytes
    drawings: Drawings


def _version_of_images(folder: run_folder.RunFolder) -> str:
    return f"{folder.read_record().run}-{folder.file(IMAGES).stat().st_size}"


def _images(folder: run_folder.RunFolder) -> _Images:
    version = _version_of_images(folder)
    images = folder.read_images()
    source = images_at_hand(images, Path(folder.read_record().base))
    paths = [*images.used.column("path")]
    sheet = read_sheet(folder)
    row_of = {path: row for row, path in enumerate(paths)} if sheet else {}
    tiny = pictures_on(sheet, len(paths)) if sheet else lambda row: None
    small = pictures(source, THUMBNAIL, lambda path: tiny(row_of[path]) if sheet else None)
    drawings = read_drawings(folder, source)
    return _Images(version, source, paths, pictures(source, IMAGE_SIDE), small, sheet, drawings)


class _Server(ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, run: Path, sort: Sort, read: Read):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.run = run
        self.sort = sort
        self.changes: dict[str, Callable[[Mapping[str, Any]], ChangeOf]] = {
            **CHANGES,
            "read": partial(read_folder, read=read),
        }
        self.token = secrets.token_urlsafe(16)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.calls: Queue[tuple[Callable[[], Response], Future[Response]]] = Queue()
        self.known_images: _Images | None = None
        self.known: tuple[str, Outcome] | None = None  # the version of the run, and its result
        self.last_change: tuple[str, Change] | None = None  # a request, of a change or its preview, and the change
        self.is_behind = False  # the views are older than the run

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client has gone away."""

    def result(self, folder: run_folder.RunFolder) -> Outcome:
        """Return the result of the run, which is read if another process has changed it."""
        if self.known is None or self.known[0] != page_version(folder):
            return self.keep(folder, read_run(folder))
        return self.known[1]

    def keep(self, folder: run_folder.RunFolder, run: Run, **_: Any) -> Outcome:
        """Keep a run and its result for the next request."""
        self.known = page_version(folder), describe(run)
        self.last_change = None  # it is of the run before
        return self.known[1]

    def images(self, folder: run_folder.RunFolder) -> _Images:
        if self.known_images is None or self.known_images.version != _version_of_images(folder):
            self.known_images = _images(folder)
        return self.known_images

    def page_text(self, folder: run_folder.RunFolder) -> str:
        outcome = self.result(folder)
        images = self.images(folder)
        version = images.version if images.source or images.sheet else ""
        row_of = {path: row for row, path in enumerate(images.paths)}
        data = page_data(
            folder,
            images.source,
            outcome,
            images.drawings,
            lambda path, limit: f"thumb/{version}/{row_of[path]}" if version else "",
        )
        return render(data, _state(folder, outcome, version))

    def page(self) -> Response:
        return "text/html; charset=utf-8", self.page_text(run_folder.open_run(self.run)).encode()

    def draw(self) -> None:
        """Make the views of the run, if it has changed: report.html gets its own pictures."""
        if self.is_behind:
            with suppress(DeepClusterError), run_folder.locked(self.run) as folder:  # or else it tries again
                refresh(folder, self.result(folder).run, source=self.images(folder).source, page=True)
                self.is_behind = False

    def picture(self, kind: str, version: str, row: int) -> Response:
        """Answer with the image, the thumbnail or the sheet of all tiny pictures of a version of the images."""
        images = self.images(run_folder.open_run(self.run))
        if version != images.version:
            raise Outdated
        if kind == "sheet":
            return "image/webp", images.sheet
        path = images.paths[row] if row < len(images.paths) else ""
        image = (images.small if kind == "thumb" else images.large)(path) if path else None
        if image is None:
            raise DataError("this image was not found")
        if kind == "thumb":
            return "image/webp", thumbnail(image, THUMBNAIL, THUMBNAIL_BYTES)
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        image.save(file := io.BytesIO(), "JPEG", quality=90)
        return "image/jpeg", file.getvalue()

    def act(self, action: str, request: Mapping[str, Any]) -> Response:
        """Answer an action of the page: a change, or a question, which writes nothing."""
        folder = run_folder.open_run(self.run)
        is_question = action in (*QUESTIONS, "preview")
        with nullcontext() if is_question else log.logged(f"the served report: {action}"):
            if action in self.changes:
                with run_folder.locked(self.run) as locked:
                    run = self._checked(locked, request)
                    change = self._change(action, request, locked, run)
                    commit(locked, run, change, Several(), self.keep)
                    self.is_behind |= change.run is not run
                answer: dict[str, Any] = {"page": self.page_text(folder)}
            elif action == "preview":
                run = self._checked(folder, request)
                answer = preview_of(request, run, lambda wanted: self._change(wanted, request, folder, run))
            elif action in QUESTIONS:
                answer = QUESTIONS[action](folder, self._checked(folder, request), request)
            else:
                self._checked(folder, request)
                self.draw()  # the export reads the views
                answer = sort_images(folder, request, self.sort)
            said = _said(log.lines())
        return "application/json", json.dumps({"said": said, **answer}).encode()

    def _change(self, action: str, request: Mapping[str, Any], folder: run_folder.RunFolder, run: Run) -> Change:
        """Return the change by an action: that of the last preview, if it was of the same request and version."""
        asked = json.dumps([action, {**request, "change": None}], sort_keys=True)
        if self.last_change is None or self.last_change[0] != asked or action not in CHANGES:  # a folder is read anew
            self.last_change = asked, self.changes[action](request)(folder, run)
        return self.last_change[1]

    def _checked(self, folder: run_folder.RunFolder, request: Mapping[str, Any]) -> Run:
        """Return the run that the page of a request shows."""
        if request.get("version") != page_version(folder):
            raise Outdated
        return self.result(folder).run


def _said(log_lines: str) -> str:
    """Return the lines of a change for the page, which has buttons for undo and redo."""
    lines = (line.partition(" ")[2].removeprefix("INFO ") for line in log_lines.splitlines()[1:])
    return "\n".join(line for line in lines if not line.startswith((f"{UNDO}: ", f"{REDO}: ")))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30  # seconds to read a request or send an answer

    def log_message(self, *_: object) -> None:
        """Say nothing of single requests."""

    def do_GET(self) -> None:
        status = HTTPStatus.OK
        future = Future[Response]()
        try:
            work = self._checked()
            self.server.calls.put((work, future))
            kind, body = future.result()
        except Exception as error:
            known = isinstance(error, Refused | DeepClusterError | ValueError)
            status = getattr(error, "status", HTTPStatus.CONFLICT)
            words = str(error) if known else f"{type(error).__name__}: {error}"
            kind = "application/json"
            body = json.dumps({"error": words}).encode()
        self.send_response(status)
        is_kept = status is HTTPStatus.OK and kind == "image/webp"
        headers = {"Content-Type": kind, "Content-Length": str(len(body))}
        headers["Cache-Control"] = FOREVER if is_kept else "no-store"
        headers["Content-Security-Policy"] = f"{policy(SERVED)}; frame-ancestors 'none'"  # no meta element can say it
        for name, value in {**headers, "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def _checked(self) -> Callable[[], Response]:
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
        picture = re.fullmatch(r"(image|thumb|sheet)/([\w-]*)/(\d+)", path, re.ASCII)
        if reads and picture:
            return partial(server.picture, picture[1], picture[2], int(picture[3]))
        if reads and not path:
            return server.page
        length = headers.get("Content-Length", "")
        kind = headers.get("Content-Type")
        if reads or path not in (*server.changes, *QUESTIONS, "preview", "export"):
            raise Refused("no such page or action")
        if kind != "application/json" or not length.isdecimal() or int(length) > MAX_JSON:
            raise Refused(f"an action takes application/json of at most {MAX_JSON:,} bytes")
        return partial(server.act, path, shaped(parse_json(self.rfile.read(int(length))), dict, "the request"))


def serve(run: Path, sort: Sort, read: Read, show: Callable[[str], object], idle_seconds: float = IDLE_SECONDS) -> None:
    """Serve the report of a run until a signal comes, or until no request has come for ``idle_seconds``.

    This version has just written report.html. ``sort`` sorts images into folders (``export.folders``), ``read`` reads
    them back (``export.read_back.by_folder``), and ``show`` gets the address of the page.
    """
    with _Server(run, sort, read) as server, suppress(Stopped):
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            signals.check()
            show(f"http://{server.host}/{server.token}/")
            last = time.monotonic()
            while time.monotonic() - last < idle_seconds:
                signals.check()
                try:
                    # Short waits: on Windows a signal cannot end a long one.
                    call, future = server.calls.get(timeout=min(1.0, idle_seconds))
                except Empty:
                    if time.monotonic() - last >= REST_SECONDS:
                        server.draw()
                    continue
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
