"""Numbers, names and junk marks that groups inherit from the groups that they continue."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.errors import DataError
from deepcluster.groups.cut import Cut, Placement
from deepcluster.images import Source
from deepcluster.images.store import read_once
from deepcluster.model import Annotations, Model
from deepcluster.runs.rows import IMAGES_READ, image_digests, read_run, recipe_of
from deepcluster.runtime.partition import Partition
from deepcluster.storage.run_folder import RunFolder
from deepcluster.texts import plural

READ_AT_ONCE = 1024  # images


def heirs(before: Tensor, after: Tensor, *, mutual: bool) -> dict[int, int]:
    """Return the new cluster that continues each old one, one to one; an old cluster may have none.

    ``before``, ``after``: Clusters of the same images (int64, N). An old cluster continues as the new one with more
    than half of its images; if ``mutual``, these must also be more than half of the new one's. Of several that would
    continue as the same one, the one with most images there does.
    """
    pairs, shared = torch.unique(torch.stack([before, after], 1), dim=0, return_counts=True)
    continues = 2 * shared > torch.bincount(before)[pairs[:, 0]]
    if mutual:
        continues &= 2 * shared > torch.bincount(after)[pairs[:, 1]]
    fewest_first = shared[continues].argsort(descending=True, stable=True).flip(0)
    ancestor = {new: old for old, new in pairs[continues][fewest_first].tolist()}
    return {old: new for new, old in ancestor.items()}


def carried_over(before: Annotations, heir: Mapping[int, int], count: int) -> Annotations:
    """Return names and junk marks of ``count`` new clusters: those ``before`` by their :func:`heirs`."""
    names = [""] * count
    for old, new in heir.items():
        names[new] = before.names[old]
    junk = sorted(heir[old] for old in before.junk if old in heir)
    return Annotations(names=tuple(names), junk=tuple(junk))


def with_coarse_names(model: Model, after: Tensor, old: Model, before: Tensor) -> Model:
    """Return the model with the names of the coarse groups of the ``old`` one that its own continue.

    ``after``, ``before``: The clusters of the same images (int64, N) in both.
    """
    if not (model.coarse and old.coarse):
        return model
    heir = heirs(torch.tensor(old.coarse)[before], torch.tensor(model.coarse)[after], mutual=True)
    names = {heir[group]: name for group, name in enumerate(old.coarse_names) if group in heir}
    return replace(model, coarse_names=tuple(names.get(group, "") for group in range(len(model.coarse_names))))


def carried_text(before: Annotations, after: Annotations) -> str:
    """Describe the names and marks that :func:`carried_over` kept and dropped."""
    names = [name for name in (*after.names, *after.coarse_names) if name]
    named_before = Counter(name for name in (*before.names, *before.coarse_names) if name)
    dropped = sorted((named_before - Counter(names)).elements())
    marks = len(before.junk) - len(after.junk)
    texts = [
        f"{plural(len(names), 'name')} kept",
        *([f"dropped, because their clusters did not survive: {', '.join(map(repr, dropped))}"] if dropped else []),
        *([f"{plural(marks, 'junk mark')} dropped"] if marks else []),
    ]
    return "; ".join(texts)


# ---- a new fit like an earlier run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Former:
    """The groups of an earlier run."""

    path: Path
    model: Model
    cluster_of: Mapping[str, int]  # clusters by the digests of the images
    store_size: int  # side of the images with these digests, in px


def read_former(folder: RunFolder) -> Former:
    """Read the groups of a run."""
    _, model, rows = read_run(folder)
    digest_of = {row["path"]: row["sha256"] for row in [*folder.read_rows(IMAGES_READ), *folder.read_added()]}
    clusters = model.place(rows.reduced).cluster.tolist()
    with folder.as_disk_errors(IMAGES_READ):
        cluster_of = dict(zip((digest_of[path] for path in rows.paths), clusters, strict=True))
    return Former(folder.path, model, cluster_of, recipe_of(folder).store_size)


def clusters_before(former: Former, source: Source, digests: Mapping[str, str], size: int) -> Tensor:
    """Return the clusters of images in an earlier run (int64, N); -1 for an image that it lacks.

    ``digests``: By path, of images of ``size`` px. If those of the run have another size, the images are read again.

    Raises DataError if the run has none of the images.
    """
    if size != former.store_size:
        digest_of = dict.fromkeys(digests, "")
        for begin in range(0, len(source.paths), READ_AT_ONCE):
            part = source.rows(range(begin, min(begin + READ_AT_ONCE, len(source.paths))))
            digest_of |= image_digests(part, read_once(part, former.store_size, none_is_fine=True))
        digests = {path: digest_of[path] for path in digests}
    before = torch.tensor([former.cluster_of.get(digest, -1) for digest in digests.values()], dtype=torch.int64)
    if before.max() < 0:
        raise DataError(f"--like {former.path}: that run has none of these images, so no group continues: name another")
    return before


def continued(
    model: Model, placement: Placement, former: Former | None, before: Tensor | None, partition: Partition
) -> tuple[Model, Placement, str]:
    """Give groups the numbers, names and marks of those that they continue, and new numbers to others. A collective.

    ``placement``: Of this rank's images. ``former``, ``before``: The earlier run, and the clusters of all images in it;
    on the main rank. Returns the model and the placement with these numbers, and a description.
    """
    after = partition.gather(placement.cluster)

    def decided() -> list[Any]:
        assert former is not None and before is not None
        heir = heirs(before[before >= 0], after[before >= 0], mutual=False)
        ancestor = {new: old for old, new in heir.items()}
        unused = count(former.model.cut.count)
        numbers = [ancestor[group] if group in ancestor else next(unused) for group in range(model.cut.count)]
        groups = former.model.cut.group_of.unique().tolist()
        kinds = {"ended": {*groups} - {*numbers}, "new": {*numbers} - {*groups}}
        lists = [f"{kind}: {', '.join(map(str, sorted(group)))}" for kind, group in kinds.items() if group]
        texts = [f"{len(heir)} of {plural(len(groups), 'group')} of {former.path} continue, with their numbers", *lists]
        of_number = {number: group for group, number in enumerate(numbers)}
        coarse = [model.coarse[of_number.get(number, 0)] for number in range(max(numbers) + 1) if model.coarse]
        named = with_coarse_names(model, after[before >= 0], former.model, before[before >= 0])
        annotations = replace(
            carried_over(former.model, {old: old for old in heir}, max(numbers) + 1),
            coarse=tuple(coarse),
            coarse_names=named.coarse_names,
        )
        return [numbers, vars(annotations), "; ".join([*texts, carried_text(former.model, annotations)])]

    numbers, annotations, text = partition.processes.broadcast_json(decided)
    number = torch.tensor(numbers, dtype=torch.int64)
    cut = Cut(model.cut.centroids, number[model.cut.group_of])
    placement = replace(placement, cluster=number[placement.cluster])
    tuples: dict[str, Any] = {name: tuple(values) for name, values in annotations.items()}
    return replace(model, cut=cut, **tuples), placement, text
