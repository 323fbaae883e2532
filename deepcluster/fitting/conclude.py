"""Step 7 of a run: its result, computed by all ranks together."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from deepcluster.algorithm import Conclusion
from deepcluster.build import conclusion_of
from deepcluster.errors import DataError, NonFiniteError
from deepcluster.fitting.plan import Former, ImagesRead, Job
from deepcluster.groups.cut import Cut, Placement
from deepcluster.model import Model
from deepcluster.nets.network import Network
from deepcluster.runs import inherit
from deepcluster.runs.result import Outcome, choose_number, describe
from deepcluster.runs.run import Rows, Run, cut_rows, sample_of
from deepcluster.runtime.compute import GROUPING_PHASE
from deepcluster.runtime.log import warn
from deepcluster.storage.content import RunRecord
from deepcluster.texts import plural

COLLAPSED = 0.5  # share of the images in one fine cluster
MIN_COLLAPSED = 30  # images: of fewer, one cluster may have most of them by chance


def conclude_run(
    job: Job,
    network: Network,
    images: ImagesRead,
    record: RunRecord,
    features: Tensor,
    baseline: Mapping[str, float],
) -> Outcome:
    """Compute the result of the network as it is now. A collective.

    ``record`` has the number of rounds. ``features``: This rank's, N x D, of one pass.
    ``baseline``: As in :func:`describe`.
    """
    recipe = images.recipe
    store = images.store
    job.display.progress(GROUPING_PHASE, 0, 0)
    try:
        final = conclusion_of(network, store, recipe, record.seed, features)
    except NonFiniteError as error:
        if job.features is None:
            raise
        raise DataError("the features are too large or too small to compare: scale them, say to length 1") from error
    if record.rounds and (text := collapse(final)):
        warn(text)
    rows = Rows(
        paths=[job.source.paths[i] for i in store.usable],
        labels=job.truth(store.usable),
        skipped=store.skipped,
        reduced=final.reduced,
        sample=sample_of(final.reduced, store.partition, record.seed),
        partition=store.partition,
        residuals=final.residuals,
    )
    n_clusters = 0
    if store.partition.processes.is_main:
        n_clusters, record = choose_number(record.n_clusters, rows, record, recipe, job.display)
    cut, placement = cut_rows(rows, final.clustering, n_clusters, record.seed, recipe)
    if cut.count < n_clusters:
        why = "the features have no more distinct values (are many equal?)"
        warn(f"only {cut.count} of {n_clusters} clusters are not empty: {why}")
    # Without a network the model takes no images.
    image_size, store_size = (recipe.image_size, recipe.store_size) if job.features is None else (1, 1)
    model = Model(
        network=network,
        reduction=final.reduction,
        fine_centroids=final.clustering.centroids,
        cut=cut,
        outliers=final.outliers,
        names=("",) * cut.count,
        image_size=image_size,
        store_size=store_size,
        batch_size=recipe.batch_size,
    )
    if job.request.like:
        model, placement, text = continued(model, placement, rows, job.former, images.places_before)
        job.display.say("Names", text)
    return describe(Run(record, model, rows), placement, recipe, baseline)


def collapse(conclusion: Conclusion) -> str:
    """Return a warning if most images are in one fine cluster or the features differ in one direction only, else ""."""
    share = conclusion.clustering.largest_share
    sizes = conclusion.clustering.sizes
    is_crowded = share > COLLAPSED and sizes.sum() >= MIN_COLLAPSED
    if len(sizes) <= 2 or not (is_crowded or conclusion.reduced.shape[1] == 1):
        return ""
    what = f"{share:.0%} of the images are in one fine cluster" if is_crowded else "all features are alike"
    return f"training has collapsed ({what}): lower --lr, or give --rounds 0 for the network before training"


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
