"""Continue the clusters of an earlier run in a new fit (``--like``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.errors import DataError
from deepcluster.groups.cut import Cut
from deepcluster.images import Source, read_once
from deepcluster.runs import inherit
from deepcluster.runs.images import pixel_digests
from deepcluster.runs.run import Run, read_run, recipe_of
from deepcluster.runtime.compute import Progress, ignore_progress
from deepcluster.storage import run_folder
from deepcluster.texts import plural

READ_AT_ONCE = 1024  # images


@dataclass(frozen=True)
class Former:
    """The clusters of an earlier run."""

    path: Path
    run: Run
    digests: Sequence[str]  # of its images, by their rows
    store_size: int  # side of the images with these digests, in px


def read_former(folder: run_folder.RunFolder) -> Former:
    """Read the clusters of a run."""
    run = read_run(folder)
    return Former(folder.path, run, [*run.rows.images.used.column("sha256")], recipe_of(folder).store_size)


def former_rows(
    former: Former, source: Source, digests: Mapping[str, str], size: int, progress: Progress = ignore_progress
) -> Tensor:
    """Return the rows of images in an earlier run (int64, N); -1 for an image that it lacks.

    Of equal images each takes the row of its own path, else the next row that no other one takes, else the last.

    ``digests``: By path, of images of ``size`` px. If the run stored another size, the images are read again.

    Raises DataError if the run has none of the images.
    """
    if size != former.store_size:
        digest_of = dict.fromkeys(digests, "")
        for number, part in enumerate(source.parts(READ_AT_ONCE)):
            progress("reading again", number * READ_AT_ONCE, len(source.paths))
            store = read_once(part, former.store_size, none_is_fine=True)
            digest_of |= zip((part.paths[i] for i in store.usable), pixel_digests(store), strict=True)
        digests = {path: digest_of[path] for path in digests}
    row_of = {path: row for row, path in enumerate(former.run.rows.paths)}
    unmoved = {path for path in digests if path in row_of and former.digests[row_of[path]] == digests[path]}
    equal: dict[str, list[int]] = {}
    for row, digest in enumerate(former.digests):
        equal.setdefault(digest, []).append(row)
    chosen: dict[str, int] = {}
    for path in sorted(digests, key=unmoved.__contains__, reverse=True):  # these first
        unused = equal.get(digests[path], [-1])
        chosen[path] = row_of[path] if path in unmoved else unused[0]
        if len(unused) > 1:
            unused.remove(chosen[path])
    rows = torch.tensor([chosen[path] for path in digests], dtype=torch.int64)
    if rows.max() < 0:
        raise DataError(f"--like {former.path}: it has none of these images, so no cluster continues: name another")
    return rows


def continued(run: Run, former: Former, former_rows: Tensor) -> tuple[Run, str]:
    """Give continuing clusters their earlier numbers, names and marks, and others new numbers.

    A cluster with a name, a mark or a decision about an image that nothing continues is made anew. After answers,
    images of the earlier fit begin in their former clusters, and those of its updates in the new ones. Then all follow.

    Returns the run with these numbers, and a description.
    """
    model = run.model
    past = inherit.past_of(former.run, former_rows)
    is_known = former_rows >= 0
    was_placed = past.cluster >= 0
    heir = inherit.heirs(past.cluster[was_placed], run.placement.cluster[was_placed], mutual=False)
    lost = inherit.lost(past, heir)
    ancestor = {new: old for old, new in heir.items()}
    unused = count(len(former.run.model.names))
    number = [ancestor[new] if new in ancestor else next(unused) for new in range(model.cut.count)]
    cut = Cut(model.cut.centroids, torch.tensor(number)[model.cut.cluster_of])
    numbers = max(len(former.run.model.names), max(number) + 1)
    numbered = replace(run, model=replace(model, cut=cut, names=("",) * numbers))
    stays = is_known & (former_rows < former.run.rows.fitted)
    new = inherit.taught_again(numbered, past, {old: old for old in (*heir, *lost)}, stays)
    clusters, now = ({*one.cut.cluster_of.tolist()} for one in (former.run.model, new))
    fates = {"ended": clusters - now, "new": now - clusters, "made anew": {*lost} & now}
    texts = [f"{len(heir)} of {plural(len(clusters), 'cluster')} of {former.path} continue, with their numbers"]
    texts += [f"{fate}: {', '.join(map(str, sorted(numbers)))}" for fate, numbers in fates.items() if numbers]
    text = "; ".join([*texts, inherit.inherited_text(former.run.model, new)])
    return replace(run, model=new), text
