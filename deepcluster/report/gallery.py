"""The clusters of a run with their pictures, as HTML for a notebook's cell."""

from collections.abc import Sequence

from deepcluster.report.page import templates
from deepcluster.report.pictures import data_uri
from deepcluster.report.sections import Picture, by_size, represented
from deepcluster.report.text import Row, count, percent, short

IMAGES = 8  # of a cluster
MAX_CLUSTERS = 50
MOST_BYTES = 4000  # of a picture: a saved notebook holds them all


def gallery(title: str, clusters: Sequence[Row], summary: Sequence[Row], picture: Picture) -> str:
    """A row for each cluster, largest first: number, name, size, and representative pictures, the medoid first.

    Args:
        clusters: Rows of clusters.csv.
        summary: Rows of cluster_summary.csv.
        picture: As in ``page.RunData``.
    """
    largest = by_size(summary)[:MAX_CLUSTERS]
    _, chosen = represented(largest, clusters, IMAGES)

    def tile(path: str) -> tuple[str, str]:
        image = picture(path)
        return short(path), "" if image is None else data_uri(image, MOST_BYTES, scale=1)

    shown = [
        {
            "number": row["cluster"],
            "name": row["name"],
            "size": count(int(row["size"]), "image"),
            "share": percent(float(row["share"])),
            "tiles": [tile(member["path"]) for member, _ in chosen[row["cluster"]]],
        }
        for row in largest
    ]
    template = templates().get_template("gallery.html.j2")
    return template.render(title=title, clusters=shown, hidden=len(summary) - len(shown))
