"""The languages of the report: every phrase is in one file, in English and in Chinese."""

import json
import re
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo

import deepcluster.report
from deepcluster.report.hints import above, plain

TEMPLATES = Path(deepcluster.report.__file__).parent / "templates"
PHRASES = json.loads((TEMPLATES / "phrases.json").read_text(encoding="utf-8"))
HOLE = re.compile(r"\{\d\}")
SCRIPTS = "".join(re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL) for path in TEMPLATES.glob("*.js"))


def test_every_phrase_has_its_translation():
    for english, chinese in PHRASES.items():
        assert chinese.strip() and sorted(HOLE.findall(english)) == sorted(HOLE.findall(chinese)), english


def test_every_text_of_the_scripts_is_a_phrase():
    """A call of ``t`` names its phrase, and no other literal reads like a sentence."""
    calls = re.findall(r"""\bt\((?:[\w.= ]+ \? )?"([^"]+)"(?: : "([^"]+)")?""", SCRIPTS)
    said = {text for pair in calls for text in pair if text}
    several = {text: re.sub(r"(image|cluster|edit|file)\b", r"\1s", text) for text in said}  # Chinese has no plural
    assert len(said) > 60 and all({one, many} & PHRASES.keys() for one, many in several.items())
    literals = [text for text in re.findall(r'(?<!t\()(?<![?:] )"([^"\n]*)"', SCRIPTS) if text not in PHRASES]
    sentences = [text for text in literals if re.search(r"[A-Za-z]{2,} [a-z]{2,}|^[A-Z][a-z]+[ …:.]", text)]
    assert [text for text in sentences if not re.fullmatch(r"use strict|cluster made|quiet ends|[#.\[].*", text)] == []


def test_every_word_of_the_tables_can_be_a_hint():
    nouns = [str(label).split(",")[0] for label in ImageNetInfo().label_descriptions()]
    words = {word for noun in nouns for word in [noun, *above(noun)]}
    rare, chinese = (json.loads((TEMPLATES.parent / f"{name}_words.json").read_text()) for name in ("plain", "chinese"))
    assert rare.keys() <= words and chinese.keys() <= {plain(word) for word in words}
