"""Undo and redo: the earlier and later states of a run's clusters, a file for each.

``former/000007.safetensors`` is ``model/clusters.safetensors`` as it was in state 7, byte for byte. The header of a
state has its number and the change that made it, so the history is read without a tensor. An undo or a redo puts
a copy of another state in the place of the present one. A change after an undo makes the present state anew behind
all others, and its own state after that: nothing that was taken back is lost.
"""

from dataclasses import replace
from pathlib import Path

from deepcluster.runtime import signals
from deepcluster.storage.clusters_file import Made, read_clusters, with_made
from deepcluster.storage.content import CLUSTERS
from deepcluster.storage.lock import own_files
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from deepcluster.texts import plural

MAX_STATES = 100  # of more, and of more bytes, the first and the newest stay
MAX_BYTES = 1 << 26


def name_of(number: int) -> str:
    """Return the name of the file of a state."""
    return f"former/{number:06d}.safetensors"


def numbers_of(folder: RunFolder) -> list[int]:
    """Return the numbers of the states in former/, ascending."""
    return sorted(int(Path(name).stem) for name in own_files(folder.path, "former/"))


def history(folder: RunFolder) -> tuple[list[Made], list[Made]]:
    """Return the changes that an undo takes back and those that a redo makes again, the nearest first."""
    now = folder.read_header().made
    states = [folder.read_header(name_of(number)).made for number in numbers_of(folder)]
    back = [now, *(made for made in reversed(states) if made.number < now.number)]
    return back[:-1], [made for made in states if made.number > now.number]


def given(folder: RunFolder) -> int:
    """Return how many cluster numbers were ever used: the newest state has all."""
    names = [CLUSTERS, *(name_of(number) for number in numbers_of(folder)[-1:])]
    return max(len(folder.read_header(name).names) for name in names)


def keep(folder: LockedFolder) -> int:
    """Keep the present state before a change, and return the number of the next one."""
    now = _save_present(folder)
    numbers = numbers_of(folder)
    last = numbers[-1]
    taken_back = sum(number > now.number for number in numbers)
    if taken_back and not _is_present(folder, name_of(last)):  # else a kill came after the next lines
        last += 1
        again = with_made(folder.file(CLUSTERS), Made(last, f"{plural(taken_back, 'change')} taken back", at=now.at))
        folder.write(name_of(last), again)
    _prune(folder)
    return last + 1


def _save_present(folder: LockedFolder) -> Made:
    """Keep a copy of the present state, and return the change that made it."""
    now = folder.read_header().made
    if not folder.has(name_of(now.number)):
        folder.write(name_of(now.number), folder.file(CLUSTERS).read_bytes())
    return now


def _is_present(folder: RunFolder, name: str) -> bool:
    """Return whether a state equals the present one except for the change that made it."""
    with folder.as_disk_errors(name):
        (one, _, said), (other, _, said_now) = (read_clusters(folder.file(place)) for place in (name, CLUSTERS))
    return said == said_now and replace(one, made=other.made) == other


def go_to(folder: LockedFolder, number: int) -> None:
    """Put another state in the place of the present one, which stays in former/."""
    _save_present(folder)
    put(folder, folder.file(name_of(number)).read_bytes())


def put(folder: LockedFolder, content: bytes) -> None:
    """Replace the present state. A stop from now on says that the run has changed."""
    signals.check()
    with signals.uninterrupted():
        folder.write(CLUSTERS, content)
        signals.changed(folder.path)


def _prune(folder: LockedFolder) -> None:
    sizes = {number: folder.file(name_of(number)).stat().st_size for number in numbers_of(folder)}
    while len(sizes) > 2 and (len(sizes) > MAX_STATES or sum(sizes.values()) > MAX_BYTES):
        del sizes[number := sorted(sizes)[1]]
        folder.remove(name_of(number))
