"""May a run go on, and from where? Its options, images and last checkpoint are compared with those of now."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.build import OWN
from deepcluster.errors import DataError, ModelError, UsageError
from deepcluster.images import Source
from deepcluster.nets.names import NO_NETWORK
from deepcluster.presets import RecipeRequest, spelt_out
from deepcluster.recipe import AUTO, Recipe, read_toml
from deepcluster.runtime.log import warn
from deepcluster.runtime.plain_files import RUN, is_run, shaped
from deepcluster.storage.checkpoint import Checkpoint, rounds_done
from deepcluster.storage.content import IMAGES, RunRecord
from deepcluster.storage.run_folder import RunFolder, open_run
from deepcluster.texts import one_line, some

# Options that a recipe may change although they were given: for a network of one size, or for few images.
ADAPTED = ("image_size", "pseudo_labels")


def check_request(
    folder: RunFolder, record: RunRecord, request: RecipeRequest, typed: Mapping[str, Any]
) -> tuple[Recipe, RecipeRequest]:
    """Return the recipe of a run that goes on, and the request that it began with.

    Only the options that the command names are compared: its ``request`` for a recipe, and others as ``typed``.
    """
    if record.backbone == NO_NETWORK:
        raise UsageError(f"{folder.path} is a run of features, which has no rounds to resume: use --overwrite")
    # An option that is newer than the run has its default.
    recipe = asdict(Recipe(**read_toml(folder.file("recipe.toml"))[1]))
    with folder.as_disk_errors(RUN):
        before = shaped(record.requested, RecipeRequest | None, "requested")
    before = before or RecipeRequest(str(folder.file("recipe.toml")))
    steps = record.steps or {}
    then = {name: getattr(record, name) for name in ("n_clusters", "seed", "labels", "like")} | {"recipe": before.base}
    now = {**typed, **dict.fromkeys(steps.keys() - typed.keys())}
    now |= {"recipe": request.base} if request.base != AUTO else {}
    options = request.all_options
    resolved = spelt_out(options)
    for name, value in options.items():
        is_adapted = name in ADAPTED and value == before.all_options.get(name)
        if value != AUTO and not is_adapted:
            now[name] = resolved[name]
    done = record.rounds or 0 if record.status == "done" else rounds_done(folder.path)
    if options.get("rounds", recipe["rounds"]) <= done:  # the run ends with the rounds that it has
        now.pop("rounds", None)
    check_options({**then, **recipe, **steps}, now)
    return Recipe(**recipe), before


def check_like(record: RunRecord, like: str | None) -> None:
    """Raise UsageError if the run of ``--like`` is neither at ``like`` nor, without it, at its place of then."""
    there = Path(like or record.like or "")
    if (run := record.like_run) and (not is_run(there) or open_run(there).read_record().run != run):
        raise UsageError(f"this fit began --like run {run}, which is not in {there}: give its folder, --like RUN")


def check_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError if an option has another value than the run began with."""
    for name, value in now.items():
        if then.get(name) != value:
            how = "give the options that the run began with, or --overwrite"
            if name.startswith(OWN):
                how = "resume from Python with the same steps: DeepCluster(...).fit(X, run=..., resume=True)"
            raise UsageError(f"--resume: {name} was {then.get(name)!r} and is {value!r} now: {how}")


def check_paths(folder: RunFolder, source: Source) -> None:
    """Raise DataError if files were added or removed since the run began; no image is read for it."""
    if not folder.has(IMAGES):
        return
    images = folder.read_images()
    updates = images.rows.column("added") != ""
    updated = {*images.rows.at(np.flatnonzero(updates)).column("path")}
    then = {*images.rows.at(np.flatnonzero(~updates)).column("path")}
    used = {*images.used.column("path")} - updated
    now = {*source.paths, *(path for path, _ in source.skipped)} - updated
    if used - now or now - then:
        raise _differing(added=sorted(now - then), removed=sorted(used - now))


def _differing(**differences: Sequence[str]) -> DataError:
    shown = {kind: some([*map(one_line, paths)]) for kind, paths in differences.items() if paths}
    texts = [f"{len(differences[kind]):,} {kind} ({paths})" for kind, paths in shown.items()]
    return DataError(
        f"the run began with other images: {'; '.join(texts) or 'they are in another order'}: put them"
        " back, or begin anew with --overwrite"
    )


def facts_of(record: RunRecord, recipe: Recipe) -> dict[str, Any]:
    """Return the facts about a run that its checkpoints hold, for :func:`check_same`."""
    others = {"n_clusters": record.n_clusters, "seed": record.seed, **(record.steps or {})}
    return {"options": {**asdict(recipe), **others}, "environment": record.environment, "run": record.run}


def check_same(
    folder: RunFolder, checkpoint: Checkpoint | None, about: Mapping[str, Any], images: Mapping[str, str]
) -> list[str] | None:
    """Compare a run that goes on with its beginning, and return the differences of machine, versions and threads.

    ``checkpoint``: The run's last checkpoint, or None. ``about``: The facts about the run now, as a checkpoint has
    them. ``images``: Digests of the images by path.

    Raises DataError if the images have changed, ModelError if the checkpoint is of another run, UsageError if the
    options differ.
    """
    if checkpoint and checkpoint.about.get("run") != about["run"]:
        raise ModelError(
            f"the last checkpoint in {folder.path / 'checkpoints'} is of run {checkpoint.about.get('run')}, and this is"
            f" run {about['run']}: put back the checkpoints of this run"
        )
    if checkpoint:
        # An option that is newer than the checkpoint had its default.
        check_options({**asdict(Recipe()), **checkpoint.about["options"]}, about["options"])
    rows = folder.read_images().used if folder.has(IMAGES) else None
    then = images if rows is None else {row["path"]: row["sha256"] for row in rows}
    if [*then.items()] != [*images.items()]:
        raise _differing(
            added=[path for path in images if path not in then],
            removed=[path for path in then if path not in images],
            changed=[path for path in images if path in then and then[path] != images[path]],
        )
    if not checkpoint:
        return None
    before = checkpoint.about["environment"]
    changed = {name: value for name, value in (about["environment"] or {}).items() if before.get(name) != value}
    differences = [f"{name} {before.get(name)} then, {value} now" for name, value in changed.items()]
    if differences:
        warn(f"the result may differ from that of an uninterrupted run: {'; '.join(differences)}")
    return differences
