"""Names for copies that every file system accepts, and that none takes for the same name."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

LONGEST = 255  # bytes: ext4, APFS, NTFS (there UTF-16 units, which are never more)
LONGEST_LABEL = 100
LONGEST_SUFFIX = 20
_FORBIDDEN = set('<>:"/\\|?*')  # on Windows


def cluster_folder(number: int, name: str = "") -> str:
    """``003``, or ``003-name`` if the cluster has a name; characters that a file system may refuse become ``_``."""
    letters = unicodedata.normalize("NFC", name)
    safe = "".join(letter if letter.isprintable() and letter not in _FORBIDDEN else "_" for letter in letters)
    label = _shortened(safe.strip(), LONGEST_LABEL).strip(" .")
    return f"{number:03}-{label}" if label else f"{number:03}"


def plain(name: str) -> str:
    """The name in letters, digits, spaces and ``-_.()``, not hidden.

    So that loaders do not take it for a pattern, an address or a file to ignore.
    """
    letters = unicodedata.normalize("NFC", name)
    safe = "".join(char if unicodedata.category(char)[0] in "LMN" or char in " -_.()" else "_" for char in letters)
    stem, suffix = split(safe)
    return fitting(stem.lstrip(" ._") or "image", suffix)


def split(name: str) -> tuple[str, str]:
    """Stem and suffix (``.jpg``); what is too long for a suffix belongs to the stem."""
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix), suffix) if len(suffix) <= LONGEST_SUFFIX else (name, "")


def fitting(stem: str, end: str) -> str:
    """``stem + end``, the stem shortened if the name would be too long."""
    return _shortened(stem, LONGEST - len(os.fsencode(end))) + end


def distinct(names: Sequence[str]) -> list[str]:
    """The names in order; the second of equal ones gets ``-2`` before its suffix, and so on.

    Names that differ only in case or Unicode normalisation are equal: on some file systems they are one file.
    """
    taken = {_key(name) for name in names}
    counts: dict[str, int] = {}
    unique = []
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
        unique.append(chosen)
    return unique


def _key(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _shortened(text: str, most: int) -> str:
    """The beginning of ``text``, at most ``most`` bytes."""
    while len(os.fsencode(text)) > most:
        text = text[:-1]
    return text
