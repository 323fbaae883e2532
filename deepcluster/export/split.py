"""A balanced sample of images, and their parts for training, validation and test without leakage."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch

from deepcluster.seeding import generator

PARTS = ("train", "validation", "test")  # folders that Hugging Face's `datasets` recognises


def balanced(cluster_of: Mapping[str, str], count: int, seed: int) -> set[str]:
    """Draw ``count`` paths, as many from every cluster; a cluster with fewer images gives all of them."""
    drawn: Counter[str] = Counter()  # images of a cluster so far

    def turn(path: str) -> int:
        drawn[cluster_of[path]] += 1
        return drawn[cluster_of[path]]

    return {*sorted(_shuffled(cluster_of, seed, "sample"), key=turn)[:count]}


def split(
    cluster_of: Mapping[str, str], shares: Sequence[float], set_of: Mapping[str, str], seed: int
) -> dict[str, str]:
    """Return the part of every image: about these ``shares`` of every cluster, drawn at random.

    Images of a set (near-duplicates) are in one part. Every part has every cluster of as many sets as parts.

    Args:
        cluster_of: The clusters of the images, by path.
        shares: Of ``PARTS``.
        set_of: The set of an image; an image without one is alone.
        seed: For the order among sets of one size.
    """
    members: dict[Hashable, list[str]] = defaultdict(list)
    for path in _shuffled(cluster_of, seed, "split"):
        members[(set_of[path],) if path in set_of else path].append(path)
    sizes = {key: Counter(cluster_of[path] for path in paths) for key, paths in members.items()}
    share_of = {part: share for part, share in zip(PARTS, shares, strict=True) if share}
    total = {**Counter(cluster_of.values()), "": len(cluster_of)}  # "": of all clusters
    room = {(part, name): share * total[name] for part, share in share_of.items() for name in total}
    waiting = Counter(cluster for size in sizes.values() for cluster in size)
    lacking = {cluster: {*share_of} for cluster in waiting}
    part_of: dict[str, str] = {}
    for key in sorted(sizes, key=lambda key: (-len(sizes[key]), -sizes[key].total())):
        size = sizes[key]
        # The last sets of a cluster go to the parts that lack it.
        last = [cluster for cluster in size if waiting[cluster] <= len(lacking[cluster])]
        part = max(
            share_of,
            key=lambda part: (
                sum(part in lacking[cluster] for cluster in last),
                sum(room[part, cluster] for cluster in size),
                room[part, ""],
            ),
        )
        part_of |= dict.fromkeys(members[key], part)
        room[part, ""] -= size.total()
        for cluster, count in size.items():
            room[part, cluster] -= count
            waiting[cluster] -= 1
            lacking[cluster].discard(part)
    return part_of


def _shuffled(paths: Mapping[str, str], seed: int, purpose: str) -> Iterator[str]:
    order = [*paths]
    return (order[i] for i in torch.randperm(len(order), generator=generator(seed, purpose)).tolist())
