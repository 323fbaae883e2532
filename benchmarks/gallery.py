"""The pictures of docs/gallery.md: reports of runs, in chromium, at 1280 x 800, each below 150 kB.

python benchmarks/gallery.py digits=runs/digits steel=runs/steel ...     writes docs/gallery-NAME.webp, -NAME-map.webp
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parent.parent / "docs"
MOST = 150_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    runs = dict(given.split("=", 1) for given in parser.parse_args().runs)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, run in runs.items():
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto((Path(run) / "report.html").absolute().as_uri())
            write(page, f"gallery-{name}.webp")
            page.get_by_role("tab", name="Map").click()
            page.wait_for_timeout(1500)
            page.mouse.move(5, 5)
            write(page, f"gallery-{name}-map.webp")
        browser.close()


def write(page: Page, name: str) -> None:
    page.wait_for_timeout(1000)
    picture = Image.open(io.BytesIO(page.screenshot()))
    for quality in (90, 80, 70, 60, 50):
        data = io.BytesIO()
        picture.save(data, "WEBP", quality=quality, method=6)
        if data.tell() <= MOST:
            break
    (DOCS / name).write_bytes(data.getvalue())
    print(f"{name}: {data.tell():,} bytes, quality {quality}")


if __name__ == "__main__":
    main()
