"""Text for a person: words that are explained, figures of three digits, and names that do no harm.

Names of files come from strangers: a name may be invalid UTF-8, hold control characters, or reverse the direction of
writing. ``inert`` makes such things visible; the templates escape for HTML.
"""

import math
import re
import shlex
import unicodedata
from collections.abc import Mapping

# A line of a CSV file: cells as text, an empty cell if there is no value.
Row = Mapping[str, str]

NOTHING, MINUS = "\u2013", "\u2212"  # a dash if there is no value; a minus as wide as the plus
MAX_NAME = 160  # characters of a path; Linux allows 4096, and 1,600 of those would be the whole page

# Words of the page that need a sentence: they are underlined, and say this.
TERMS = {
    "cluster": ("cluster", "A group of images that the network finds alike. Its number stays, whatever you call it."),
    "medoid": ("medoid", "The most typical image: the one nearest to the mean of its cluster."),
    "diverse": ("diverse", "Images from all over the cluster, from the most typical on outwards."),
    "borderline": ("borderline", "Images that are nearly as near to another cluster: the first to check."),
    "outlying": ("outlying", "Outliers, which are framed, and the images farthest from the rest of their cluster."),
    "outlier": (
        "outlier",
        "An image unlike those of the fit: its features lie beyond a limit that about one image of the same kind in 150"
        " exceeds.",
    ),
    "distance": (
        "mean distance",
        "How far the images are from the centroids of their cluster, from 0 to 2. Small: a tight cluster.",
    ),
    "centroid": ("centroid", "The mean of some images' features. A new image goes to the cluster of the nearest one."),
    "cohesion": ("cohesion", "How close together the images of a cluster are: the smaller the mean distance."),
    "junk": ("junk", "A mark for clusters of no use. Predict with --reject gives their images no cluster."),
    "map": (
        "map",
        "All images on a plane, like ones together (the objective of UMAP). Only neighbourhoods mean something; the"
        " distances between groups and their sizes do not.",
    ),
    "tree": (
        "merge tree",
        "The order in which clusters would merge if there were fewer, and split if there were more (Ward's method).",
    ),
    "silhouette": (
        "silhouette",
        "How much nearer images are to their own group than to the next: 1 is best, 0 means no difference.",
    ),
    "stability": (
        "stability",
        "How well groups cut from different samples of the images agree (adjusted Rand index): 100% means the same"
        " groups, 0% unrelated ones. Stable groups need not be the ones that you look for.",
    ),
    "round": ("round", "One clustering of all images and the training on it."),
    "pseudo-label": (
        "pseudo-label",
        "The number of the fine cluster that an image is in, which the network learns to predict. No person gave it.",
    ),
    "fine": ("fine clusters", "The many small clusters the network was trained on; the clusters are made after that."),
    "chance": ("chance", "The loss of a network that guesses among K equally frequent numbers: the logarithm of K."),
    "loss": ("loss", "How badly the network predicts the pseudo-labels. It should fall well below chance."),
    "nmi": (
        "NMI",
        "Normalised mutual information: how far one division of the images tells the other. 1: the same, 0: nothing.",
    ),
    "ami": ("AMI", "NMI corrected for what chance gives, so that many small clusters do not look good."),
    "ari": ("ARI", "Adjusted Rand index: how many pairs of images are together in both, 1: all, 0: as by chance."),
    "accuracy": (
        "accuracy",
        "The share of images with the right label, each label having the one cluster it fits best.",
    ),
    "inertia": ("inertia", "The sum of the squared distances of all images to their fine cluster."),
    "reseeded": ("reseeded", "Fine clusters that had become empty and were given new images."),
    "largest": ("largest share", "The share of the largest fine cluster. Near 100% means that the training collapsed."),
}


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


def three(value: float | None) -> str:
    """Return three decimals, as usual for measures between 0 and 1."""
    return NOTHING if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}%"


def agreement(index: float) -> str:
    """Return an adjusted Rand index as text. One below that of unrelated groups is 0%."""
    return f"{max(0.0, index):.0%}"


def count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min {round(seconds) % 60:02d} s"


def short(text: str) -> str:
    """Return the text, or the two ends of one that is too long."""
    return text if len(text) <= MAX_NAME else text[: MAX_NAME // 2].rstrip() + "…" + text[-MAX_NAME // 2 :]


def bare(word: str) -> str:
    """Replace the folders of an absolute path by ``...``, also inside an option."""
    return re.sub(r"^((?:.*=|-\w)?)/.*/", r"\1.../", word, flags=re.DOTALL)


def retold(command: str) -> str:
    """Return a command line whose words are :func:`bare`; empty if it cannot be split into words."""
    try:
        return shlex.join(map(bare, shlex.split(command)))
    except ValueError:
        return ""


def inert(text: str) -> str:
    r"""Return text that can be encoded, and that cannot hide or reorder its surroundings.

    Bytes that were not UTF-8 (surrogate escapes) and control characters become ``\xNN``; invisible format characters,
    such as those that reverse the direction of writing, ``\uNNNN``. The two joiners stay: names in Persian, Hindi or
    with composed emoji need them. (``terminal.printable`` is stricter: on a terminal, width and cursor matter too.)
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(char: str) -> str:
    if unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} or char in "\u200c\u200d":
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
