"""Serve the graph of a run: an image in, its cluster out. It needs onnxruntime, NumPy and Pillow, and no torch.

python examples/serve_onnx.py photos.onnx 8080
curl --data-binary @new.jpg http://127.0.0.1:8080
"""

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError


def pixels(data: bytes, size: int) -> np.ndarray:
    """Return an image as `deepcluster predict` sees it: uint8, 1 x 3 x size x size."""
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"))
    image.draft(None, (size * 3 // 2, size * 3 // 2))  # decodes a large JPEG at 1/2, 1/4 or 1/8 of its size
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        colour, image = image.convert("RGBA"), Image.new("RGB", image.size, "white")
        image.paste(colour, mask=colour)
    side, image = min(image.size), image.convert("RGB")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)[None]


def server(graph: str, port: int) -> ThreadingHTTPServer:
    session = onnxruntime.InferenceSession(graph)
    about = session.get_modelmeta().custom_metadata_map
    names, limit, size = json.loads(about["names"]), json.loads(about["outlier_residual"]), int(about["store_size"])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                data = self.rfile.read(min(int(self.headers["Content-Length"]), 50_000_000))
                _, distances, cluster, residual = session.run(None, {"images": pixels(data, size)})
                number, distance = int(cluster[0]), round(float(distances[0].min()), 6)
                is_outlier = limit is not None and bool(residual[0] > limit)
                answer = {"cluster": number, "name": names[number], "distance": distance, "is_outlier": is_outlier}
            except UnidentifiedImageError:
                answer = {"error": "not an image in an accepted format"}
            except Exception as error:  # damaged images raise all kinds
                answer = {"error": str(error)}
            body = json.dumps(answer).encode()
            self.send_response(400 if "error" in answer else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    server(sys.argv[1], int(sys.argv[2])).serve_forever()
