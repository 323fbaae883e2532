"""A server on this machine that speaks as much of the Hugging Face Hub as a download needs."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from deepcluster.nets.names import PUBLISHED

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tiny_file() -> bytes:
    return save({"x": torch.arange(4000).to(torch.uint8)})


class Hub(ThreadingHTTPServer):
    """Sends ``content`` for every file that is asked for.

    Attributes:
        requests: The method and path of each.
        sent: The bytes that it sends, if they are not ``content``.
        etag: Its ETag, if that is not the digest of ``content``.
    """

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content, self.sent = content, content
        self.etag = hashlib.sha256(content).hexdigest()
        self.requests: list[str] = []


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        hub = self.server
        hub.requests.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("ETag", f'"{hub.etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(hub.sent)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.server.sent)


@contextmanager
def serving(content: bytes) -> Iterator[Hub]:
    with Hub(content) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        hub.shutdown()


def keep(content: bytes) -> Path:
    """Put the file of ``photos`` into the cache: itself, as on disks without links."""
    repository = Path(constants.HF_HUB_CACHE, f"models--timm--{PUBLISHED['photos'].network}")
    commit = hashlib.sha256(content).hexdigest()[:40]
    path = repository / "snapshots" / commit / "model.safetensors"
    for file, written in ((path, content), (repository / "refs" / "main", commit.encode())):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(written)
    return path


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Hub's client take another server for the Hub, as HF_ENDPOINT does when it is imported."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
