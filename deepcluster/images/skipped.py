"""What was wrong with the images that are not used, in a few words."""

from collections import Counter
from collections.abc import Iterable

# How a reason begins, and what is counted under which name.
KINDS = {
    "a HEIC or HEIF image": "HEIC (pip install 'deepcluster[heif]' reads them)",
    "an AVIF image": "AVIF (pip install --upgrade pillow reads them)",
    "not an image": "of another kind",
    "cannot be decoded": "damaged",
    "empty file": "empty",
    "too many pixels": "too large",
    "a symbolic link": "linked",
    "a FIFO": "no plain file",
    "a socket": "no plain file",
    "a device": "no plain file",
    "beside the shards": "beside the shards",
}


def counted(reasons: Iterable[str]) -> str:
    """``6 HEIC (...), 2 damaged, 1 empty``: how many for each kind of reason, most frequent first."""
    kinds = Counter(
        next((kind for start, kind in KINDS.items() if reason.startswith(start)), reason.partition(":")[0])
        for reason in reasons
    )
    return ", ".join(f"{times:,} {kind}" for kind, times in kinds.most_common())
