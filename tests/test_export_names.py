import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcluster.export.folders import MAX_NAME_BYTES, cluster_folder, distinct, plain

# What the name of a file can be: bytes that are no UTF-8 are surrogates from DC80 to DCFF, others cannot be written.
LETTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]
)
NAMES = st.text(LETTERS, min_size=1, max_size=60)


def caseless(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("", "003"),
        ("Strand & Meer", "003-Strand & Meer"),
        ("../../etc", "003-_.._etc"),
        ('<>:"\\|?*', "003-________"),
        ("two\nlines\x1b[31m", "003-two_lines_[31m"),
        ("dots...  ", "003-dots"),
        ("..", "003"),
        ("\udcff", "003-_"),
        ("e\u0301", "003-\u00e9"),
        ("ü" * 300, "003-" + "ü" * 50),
    ],
)
def test_folder_of_a_cluster(name, folder):
    assert cluster_folder(3, name) == folder
    assert cluster_folder(1000, name) == folder.replace("003", "1000")


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["a.jpg", "a.jpg", "a.jpg"], ["a.jpg", "a-2.jpg", "a-3.jpg"]),
        (["a.jpg", "A.JPG"], ["a.jpg", "A-2.JPG"]),
        (["a.jpg", "a.jpg", "a-2.jpg"], ["a.jpg", "a-3.jpg", "a-2.jpg"]),  # a name of its own is kept
        (["\u00e9", "e\u0301"], ["\u00e9", "e\u0301-2"]),
        (["a.tar.gz", "a.tar.gz"], ["a.tar.gz", "a.tar-2.gz"]),
        (["n" * 251 + ".png"] * 2, ["n" * 251 + ".png", "n" * 249 + "-2.png"]),
        (["\udcff"] * 2, ["\udcff", "\udcff-2"]),
    ],
)
def test_distinct(given, made):
    assert distinct(given) == made


@given(st.lists(NAMES, max_size=12), st.integers(0, 3))
def test_distinct_is_distinct_whatever_comes(names, repeated):
    names = names + names[: len(names) * repeated // 2]
    made = distinct(names)
    assert len({caseless(name) for name in made}) == len(names)
    assert made == distinct(names)
    first = {caseless(name): i for i, name in reversed(list(enumerate(names)))}
    assert all(made[i] == names[i] for i in first.values())


def test_many_equal_names_take_no_time():
    made = distinct(["a.jpg"] * 20_000)
    assert (made[0], made[-1], len(set(made))) == ("a.jpg", "a-20000.jpg", 20_000)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("a b-c_(1).jpg", "a b-c_(1).jpg"),
        ("a::b*[x]?.png", "a__b__x__.png"),
        ("__MACOSX.png", "MACOSX.png"),
        ("\udcff.png", "image.png"),
        ("हिन्दी.png", "हिन्दी.png"),
        ("#!$.png", "image.png"),
    ],
)
def test_plain(name, made):
    assert plain(name) == made


@given(NAMES)
def test_plain_names_are_utf8_and_fit(name):
    made = plain(name)
    assert 0 < len(made.encode()) <= MAX_NAME_BYTES
    assert not made.startswith((".", "_"))
    assert not set(made) & set('/*?[]<>:"|\\\n')
    assert os.fsencode(made) == made.encode()
