"""Runs in memory: rows of features and their clusters, without a folder."""

from collections.abc import Collection, Sequence

from torch import Tensor

from deepcluster.model import Model
from deepcluster.runs.run import Rows, Run
from deepcluster.storage.content import FILES, IMAGES, Facts, RunRecord, Table
from deepcluster.storage.images_table import REJECTED, Images
from tests.helpers.tiny import RECORD


def images_of(
    paths: Sequence[str], *, added: int = 0, digests: Sequence[str] = (), rejected: Collection[int] = ()
) -> Images:
    """The table of usable images, of which the last ones came by an update, which rejected some."""
    cells = dict.fromkeys(FILES[IMAGES].columns, [""] * len(paths))
    cells |= {"path": [*paths], "status": ["ok"] * len(paths), "sha256": [*digests] or [""] * len(paths)}
    cells |= {"reason": [REJECTED if row in rejected else "" for row in range(len(paths))]}
    cells |= {"added": [""] * (len(paths) - added) + ["later"] * added}
    return Images(Table.of_columns(cells))


def run_of(
    model: Model,
    reduced: Tensor,
    paths: Sequence[str] = (),
    *,
    added: int = 0,
    digests: Sequence[str] = (),
    rejected: Collection[int] = (),
    seed: int = 0,
) -> Run:
    """A run of rows with these features; their paths are numbers, if no others are given."""
    images = images_of(paths or [*map(str, range(len(reduced)))], added=added, digests=digests, rejected=rejected)
    rows = Rows(images, reduced, reduced[: images.fitted], reduced.new_zeros(len(reduced)))
    return Run(RunRecord.from_json(RECORD | {"seed": seed}), Facts(), model, rows)
