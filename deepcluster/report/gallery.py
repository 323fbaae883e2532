"""The clusters of a run with their pictures, as HTML for a notebook's cell."""

from collections.abc import Sequence

from deepcluster.report.page import templates
from deepcluster.report.pictures import data_uri
from deepcluster.report.sections import Picture, members_of, representatives
from deepcluster.report.text import Row, count, percent, short

IMAGES = 8  # of a cluster
MAX_CLUSTERS = 50
MOST_BYTES = 4000  # of a picture: a saved notebook holds them all


def gallery(title: str, clusters: Sequence[Row], summary: Sequence[Row], picture: Picture) -> str:
    """A row for each cluster, largest first: number, name, size, and representative pictures, the medoid first.

    Args:
        title: The heading.
        clusters: Rows of clusters.csv.
        summary: Rows of cluster_summary.csv.
        picture: As in ``page.RunData``.
    """
    by_size = sorted(summary, key=lambda row: (-int(row["size"]), int(row["cluster"])))
    members = members_of(clusters, [row["cluster"] for row in by_size[:MAX_CLUSTERS]])

    def tile(path: str) -> tuple[str, str]:
        image = picture(path)
        return short(path), "" if image is None else data_uri(image, MOST_BYTES, scale=1)

    shown = [
        {
            "number": row["cluster"],
            "name": row["name"],
            "size": count(int(row["size"]), "image"),
            "share": percent(float(row["share"])),
            "tiles": [
                tile(chosen["path"])
                for chosen, _ in representatives(members[row["cluster"]], IMAGES, medoid=row["medoid_path"])
            ],
        }
        for row in by_size[:MAX_CLUSTERS]
    ]
    template = templates().get_template("gallery.html.j2")
    return template.render(title=title, clusters=shown, hidden=len(by_size) - len(shown))
