"""Names for copies: such that every file system takes them, and that none takes two of them for one."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

LONGEST = 255  # bytes: ext4, APFS, NTFS (there UTF-16 units, which are never more)
LONGEST_LABEL = 100
LONGEST_SUFFIX = 20
_FORBIDDEN = set('<>:"/\\|?*')  # on Windows


def cluster_folder(number: int, name: str = "") -> str:
    """``003``, or ``003-name`` where the cluster has a name; what a file system may refuse in it becomes ``_``."""
    letters = unicodedata.normalize("NFC", name)
    safe = "".join(letter if letter.isprintable() and letter not in _FORBIDDEN else "_" for letter in letters)
    label = _shortened(safe.strip(), LONGEST_LABEL).strip(" .")
    return f"{number:03}-{label}" if label else f"{number:03}"


def plain(name: str) -> str:
    """The name of a file in letters, digits, spaces and ``-_.()``, not hidden: one that loaders do not take for a
    pattern, an address or a file to leave out."""
    letters = unicodedata.normalize("NFC", name)
    safe = "".join(each if unicodedata.category(each)[0] in "LMN" or each in " -_.()" else "_" for each in letters)
    stem, suffix = split(safe)
    return fitting(stem.lstrip(" ._") or "image", suffix)


def split(name: str) -> tuple[str, str]:
    """Stem and suffix (``.jpg``); the suffix is empty where it is too long for one."""
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix), suffix) if len(suffix) <= LONGEST_SUFFIX else (name, "")


def fitting(stem: str, end: str) -> str:
    """``stem`` and ``end`` as one name, the stem cut where both are too long together."""
    return _shortened(stem, LONGEST - len(os.fsencode(end))) + end


def distinct(names: Sequence[str]) -> list[str]:
    """The same names in their order; the second that is equal gets ``-2`` before its suffix, and so on.

    Equal but for capitals or for the Unicode form of their letters is equal: on some file systems that is one file.
    """
    taken = {_key(name) for name in names}
    counts: dict[str, int] = {}
    found = []
    for name in names:
        key = _key(name)
        number = counts.get(key, 0) + 1
        chosen = name
        if number > 1:
            stem, suffix = split(name)
            while _key(chosen := fitting(stem, f"-{number}{suffix}")) in taken:
                number += 1
            taken.add(_key(chosen))
        counts[key] = number
        found.append(chosen)
    return found


def _key(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _shortened(text: str, most: int) -> str:
    """The beginning of ``text``, at most ``most`` bytes."""
    while len(os.fsencode(text)) > most:
        text = text[:-1]
    return text
