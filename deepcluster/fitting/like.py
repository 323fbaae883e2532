"""A fit like an earlier run, whose groups it continues."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.errors import DataError
from deepcluster.groups.cut import Cut, Placement
from deepcluster.images import Source, read_once
from deepcluster.model import Model
from deepcluster.runs import inherit
from deepcluster.runs.images import image_digests
from deepcluster.runs.inherit import decisions
from deepcluster.runs.run import Rows, read_run, recipe_of
from deepcluster.runtime.compute import Progress, ignore_progress
from deepcluster.storage import run_folder
from deepcluster.storage.content import IMAGES_READ
from deepcluster.texts import plural

READ_AT_ONCE = 1024  # images


@dataclass(frozen=True)
class Former:
    """The groups of an earlier run."""

    path: Path
    model: Model
    places: Mapping[str, tuple[int, int]]  # by the image's digest: its cluster, and its cluster by decisions() or -1
    store_size: int  # side of the images with these digests, in px
    run: str | None = None  # its identifier


def read_former(folder: run_folder.RunFolder) -> Former:
    """Read the groups of a run."""
    run = read_run(folder)
    digest_of = {row["path"]: row["sha256"] for row in [*folder.read_rows(IMAGES_READ), *folder.read_added()]}
    before = run.placement.cluster
    clusters = before.tolist()
    left = decisions(run.model, before)
    places = {digest_of[path]: (clusters[row], left.get(row, -1)) for row, path in enumerate(run.rows.paths)}
    return Former(folder.path, run.model, places, recipe_of(folder).store_size, run.record.run)


def places_before(
    former: Former, source: Source, digests: Mapping[str, str], size: int, progress: Progress = ignore_progress
) -> Tensor:
    """Return the places of images in an earlier run, as in Former (int64, N x 2); -1 for an image that it lacks.

    ``digests``: By path, of images of ``size`` px. If the run stored another size, the images are read again.

    Raises DataError if the run has none of the images.
    """
    if size != former.store_size:
        digest_of = dict.fromkeys(digests, "")
        for number, part in enumerate(source.parts(READ_AT_ONCE)):
            progress("reading again", number * READ_AT_ONCE, len(source.paths))
            digest_of |= image_digests(part, read_once(part, former.store_size, none_is_fine=True))
        digests = {path: digest_of[path] for path in digests}
    before = torch.tensor([former.places.get(digest, (-1, -1)) for digest in digests.values()], dtype=torch.int64)
    if before.max() < 0:
        raise DataError(f"--like {former.path}: it has none of these images, so no cluster continues: name another")
    return before


def continued(
    model: Model, placement: Placement, rows: Rows, former: Former | None, places: Tensor | None
) -> tuple[Model, Placement, str]:
    """Give continuing groups their earlier numbers, names and marks, and others new numbers. A collective.

    Images that a person moved move again if both clusters continue.

    ``placement``: Of this rank's images. ``former``, ``places``: The earlier run, and the places of all images in it,
    as :func:`places_before`; on the main rank. Returns the model and the placement with these numbers, and a
    description.
    """
    after = rows.partition.gather(placement.cluster)

    def decided() -> list[Any]:
        assert former is not None and places is not None
        before, left = places.T
        heir = inherit.heirs(before[before >= 0], after[before >= 0], mutual=False)
        ancestor = {new: old for old, new in heir.items()}
        unused = count(len(former.model.names))
        numbers = [ancestor[group] if group in ancestor else next(unused) for group in range(model.cut.count)]
        groups = former.model.cut.group_of.unique().tolist()
        kinds = {"ended": {*groups} - {*numbers}, "new": {*numbers} - {*groups}}
        texts = [f"{len(heir)} of {plural(len(groups), 'cluster')} of {former.path} continue, with their numbers"]
        texts += [f"{kind}: {', '.join(map(str, sorted(group)))}" for kind, group in kinds.items() if group]
        decided = {row: (int(left[row]), int(before[row])) for row in (left >= 0).nonzero().flatten().tolist()}
        old = replace(former.model, **inherit.as_annotations(decided))
        moves = inherit.surviving_moves(old, before, {number: number for number in heir})
        given = max(len(former.model.names), max(numbers) + 1)
        annotations = replace(
            inherit.carried_over(former.model, {old: old for old in heir}, given),
            **inherit.as_annotations(moves),
        )
        text = "; ".join([*texts, inherit.carried_text(old, annotations, before)])
        return [numbers, vars(annotations), [*moves.items()], text]

    numbers, annotations, moves, text = rows.partition.processes.broadcast_json(decided)
    number = torch.tensor(numbers, dtype=torch.int64)
    cut = Cut(model.cut.centroids, number[model.cut.group_of])
    placement = replace(placement, cluster=number[placement.cluster])
    tuples: dict[str, Any] = {name: tuple(values) for name, values in annotations.items()}
    model = replace(model, cut=cut, **tuples)
    return *inherit.with_moves(model, placement, rows, dict(moves)), text
