"""Pages of the report from small records, read as a browser reads them."""

from html.parser import HTMLParser
from typing import Any

import numpy as np
from PIL import Image

from deepcluster.report.page import RunData, render
from deepcluster.report.pictures import thumbnails
from deepcluster.storage.content import Facts, RunRecord, Tables

VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Elements as (tag, attributes, text inside), in order; closing tags must match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for i in self._open:
            self.elements[i][2].append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"comment {data!r}")

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        wanted = {name.removesuffix("_"): value for name, value in wanted.items()}
        return [
            (attributes, " ".join("".join(text).split()))
            for name, attributes, text in self.elements
            if name == tag and wanted.items() <= attributes.items()
        ]

    def text(self) -> str:
        return self.all("body")[0][1]


def row(path: str, cluster: int = 0, distance: str = "1", margin: str = "1", **more: str) -> dict[str, str]:
    fixed = {"status": "ok", "name": "", "by": "", "fine_cluster": str(cluster), "is_outlier": "0", "label": ""}
    return {"path": path, "cluster": str(cluster), "distance": distance, "margin": margin} | fixed | more


def summary_of(rows: list[dict[str, str]], **more: str) -> list[dict[str, str]]:
    numbers = sorted({int(r["cluster"]) for r in rows})
    table = []
    for number in numbers:
        inside = [r for r in rows if int(r["cluster"]) == number]
        values = {
            "cluster": number, "name": "", "size": len(inside), "share": len(inside) / len(rows), "mean_distance": 1.5,
            "nearest_cluster": numbers[numbers.index(number) - 1] if len(numbers) > 1 else "",
            "medoid_path": min(inside, key=lambda r: float(r["distance"]))["path"],
        }  # fmt: skip
        table.append({name: str(value) for name, value in values.items()} | more)
    return table


def picture(path: str) -> Image.Image:
    return Image.new("RGB", (40, 30), (len(path) % 256, 80, 160))


def page(**changes: Any) -> tuple[str, Page]:
    """The page of the records of a run, with ``changes``."""
    text = render(records(**changes))
    return text, Page(text)


def records(**changes: Any) -> RunData:
    """Two clusters of 20 images and three rounds, with ``changes``."""
    rows = [row(f"{c}/{i:02}.png", c, distance=str(1 + i), margin=str(50 - i)) for c in (0, 1) for i in range(20)]
    run = {"images_count": 1797, "seconds": 3723.4, "seed": 12345, "device": None}
    record = {"run": "holidays", "images": "Holidays", "base": "", "seed": 0, "rounds": 3} | changes.pop("run", run)
    arguments: dict[str, Any] = {"record": RunRecord.from_json(record), "facts": Facts(), "clusters": rows}
    arguments["thumbnails"] = thumbnails(changes.pop("picture", picture))
    arguments |= {"metrics": {}, "quality": None, "skipped": []} | changes
    if "summary" not in arguments:
        arguments["summary"] = summary_of(arguments["clusters"])
    result = Tables(**{name: arguments.pop(name) for name in [*arguments] if name in Tables.__dataclass_fields__})
    return RunData(result=result, **arguments)


def drawn(images: int) -> dict[str, Any]:
    """A map and a sheet for so many images."""
    positions = np.arange(2 * images, dtype=np.float32).reshape(images, 2)
    return {"positions": positions, "sheet": b"RIFF    WEBP"}
