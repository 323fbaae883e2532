"""Cells, numbers and names as text for a person: figures of three digits, and names that do no harm.

Names of files come from strangers: a name may be invalid UTF-8, hold control characters, or reverse the direction of
writing. ``inert`` makes such things visible; the templates escape for HTML.
"""

import math
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence

JOINERS = "\u200c\u200d"  # between letters of Persian, Hindi and others, and between emoji
NOTHING = "\u2013"  # a dash if there is no value
MAX_NAME = 160  # characters of a path in the page; Linux allows 4096, and 1,600 of those would be the whole page


def plural(number: int, thing: str) -> str:
    """Return ``1 image`` or ``3 images``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def a_few(things: Sequence[object], most: int = 5) -> str:
    """Return the first texts or numbers in a line."""
    return ", ".join([*map(str, things[:most]), *["..."][: len(things) > most]])


def number(value: object) -> float | None:
    """Return a finite number, or None for an empty cell, NaN, infinity and everything else."""
    try:
        parsed = float(str(value))
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) else None


def figure(value: float | None) -> str:
    """Return three significant digits; whole numbers in full."""
    if value is None:
        return NOTHING
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:#.3g}".removesuffix(".") if abs(value) >= 1e-4 else f"{value:.2g}"


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}%"


def quality_text(quality: Mapping[str, float]) -> str:
    """Describe an estimate of the quality (``estimated_quality``) in a sentence."""
    if "unnamed" in quality:
        return "Right: not known until all clusters have names"
    if "share" not in quality:
        return f"Right: not known yet ({quality['drawn']} of {quality['needed']} drawn)"
    share, low, high = (100 * quality[name] for name in ("share", "low", "high"))
    return f"Right: about {share:.0f} % ({low:.0f} to {high:.0f})"


def in_words(seconds: float) -> str:
    """Return ``40 s``, ``12 min`` or ``1.5 h``."""
    unit, name = next(
        (unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 1.5 * unit or unit == 1
    )
    return f"{seconds / unit:.{0 if seconds >= 10 * unit or unit == 1 else 1}f} {name}"


def short(text: str, most: int = 40) -> str:
    """Return the text, or the two ends of one that is too long."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def bare(word: str) -> str:
    """Replace the folders of an absolute path by ``...``, also inside an option."""
    return re.sub(r"^((?:.*=|-\w)?)/.*/", r"\1.../", word, flags=re.DOTALL)


def retold(command: str) -> str:
    """Return a command line whose words are :func:`bare`; empty if it cannot be split into words."""
    try:
        return shlex.join(map(bare, shlex.split(command)))
    except ValueError:
        return ""


def one_line(text: str) -> str:
    """Return the text with every control character, line break and undecodable byte turned into a space."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def printable(text: str) -> str:
    """Return ``text`` with control characters and the lone surrogates of odd file names escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def inert(text: str) -> str:
    """Return text that can be encoded, and that cannot hide or reorder its surroundings.

    Control characters, bytes that were not UTF-8 (surrogate escapes) and invisible format characters, such as those
    that reverse the direction of writing, become Python's escapes. The two joiners stay: names in Persian, Hindi or
    with composed emoji need them. (:func:`printable` is stricter: on a terminal, width and cursor matter too.)
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(char: str) -> str:
    is_hidden = unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and char not in JOINERS
    return char.encode("unicode_escape").decode() if is_hidden else char
