"""Serve the graph of a run: an image in, its cluster out. It needs onnxruntime, NumPy and Pillow, and no torch.

python examples/serve_onnx.py photos.onnx 8080
curl --data-binary @new.jpg http://127.0.0.1:8080
curl http://127.0.0.1:8080/health
"""

import io
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError, features

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(["AVIF"] if features.check("avif") else [])]
try:
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    FORMATS.append("HEIF")  # HEIC of phones
except ImportError:
    pass
MAX_BYTES = 50_000_000
MAX_PIXELS = 89_478_485
MAX_CONNECTIONS = 32
DECODING = BoundedSemaphore(os.cpu_count() or 1)  # an image of MAX_PIXELS takes 1 GB


def pixels(data: bytes, size: int) -> np.ndarray:
    """Return an image as `deepcluster predict` sees it: uint8, 1 x 3 x size x size."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels")
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if 50706 in tags or (tags.get(254) == 1 and 330 in tags):
        raise ValueError("a RAW file, of which this is only a thumbnail: send a JPEG")
    image.draft(None, (size * 3 // 2, size * 3 // 2))  # decodes a large JPEG at 1/2, 1/4 or 1/8 of its size
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "FI":  # 32 or 16 bits
        grey, clear = np.asarray(image), image.info.get("transparency")
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise ValueError("grey values of 32 bits and of unknown range: send 8 or 16 bits")
        image = Image.fromarray(np.where(grey == clear, 255, grey >> 8).astype(np.uint8))
    if image.has_transparency_data:
        colour, image = image.convert("RGBA"), Image.new("RGB", image.size, "white")
        image.paste(colour, mask=colour)
    side, image = min(image.size), image.convert("RGB")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)[None]


class Server(ThreadingHTTPServer):
    """Serves a graph on this machine."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, graph: str, port: int):
        self.session = onnxruntime.InferenceSession(graph)
        about = self.session.get_modelmeta().custom_metadata_map
        self.names, self.limit = json.loads(about["names"]), json.loads(about["outlier_residual"])
        self.size, self.digest = int(about["store_size"]), about["digest"]
        self.free = BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that goes away is no fault
            super().handle_error(request, client_address)

    def place(self, data: bytes) -> dict[str, object]:
        """Return the place of an image, as `deepcluster predict` does."""
        with DECODING:
            images = pixels(data, self.size)
        _, distances, cluster, residual = self.session.run(None, {"images": images})
        number, distance = int(cluster[0]), round(float(distances[0].min()), 6)
        is_outlier = self.limit is not None and bool(residual[0] > self.limit)
        answer = {"cluster": number, "name": self.names[number], "distance": distance, "is_outlier": is_outlier}
        return {**answer, "model": self.digest}


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30  # seconds without a byte

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok", "model": self.server.digest})
        else:
            self.answer(404, {"error": "POST an image, or GET /health"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            self.answer(413, {"error": f"give a Content-Length of at most {MAX_BYTES:,} bytes"})
            return
        try:
            status, content = 200, self.server.place(self.rfile.read(int(length)))
        except UnidentifiedImageError:
            status, content = 400, {"error": "not an image in an accepted format"}
        except Exception as error:  # damaged images raise all kinds
            status, content = 400, {"error": str(error)}
        self.answer(status, content)

    def answer(self, status: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Server(sys.argv[1], int(sys.argv[2])).serve_forever()
