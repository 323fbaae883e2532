from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from deepcluster.clustering.agreement import ari
from deepcluster.groups import confidence as judging
from deepcluster.groups.confidence import (
    GRADES,
    Confidence,
    ari_by_group,
    confidence_of,
    confidence_text,
    grade,
    next_step,
)
from deepcluster.groups.cut import cut, place
from deepcluster.seeding import generator
from tests.helpers.features import blobs

WIDTH = 32


def of(rows: torch.Tensor, k: int) -> Confidence:
    found = confidence_of(rows, place(rows, cut(rows, k), rows[:1]).cluster)
    assert found is not None
    return found


def kinds(*apart: float, each: int = 40) -> torch.Tensor:
    """Rows of as many kinds, each as far from all others, in every number, as told; 0: like any other."""
    random = generator(0, "rows")
    means = torch.randn(len(apart), WIDTH, generator=random) * torch.tensor(apart).unsqueeze(1)
    noise = torch.randn(each * len(apart), WIDTH, generator=random)
    return F.normalize(means.repeat_interleave(each, 0) + noise, dim=1)


def test_groups_by_chance_are_poor_whatever_the_features_are():
    rows = kinds(2, 2, 2, 2, each=250)
    random = torch.randint(0, 4, (len(rows),), generator=generator(0, "labels"))
    found = confidence_of(rows, random)
    assert abs(found.kept) < 0.1 and found.halves > 0.9
    assert found.grade.word == "poor" and set(found.grades) == {"poor"}


def test_the_farther_groups_are_apart_the_better_the_grade():
    """From one Gaussian blob to five that nothing lies between; with as many ties cut, each has its own grade."""
    found = [of(kinds(*[apart] * 5, each=100), 5) for apart in (0, 0.45, 0.53, 0.8)]
    assert [each.grade.word for each in found] == ["poor", "weak", "useful", "strong"]
    scores = [each.score for each in found]
    assert scores == sorted(scores)


def test_each_group_has_its_grade():
    """Of six kinds two are as one: whatever divides them is weaker than the other four."""
    rows = kinds(2, 2, 2, 2, 0, 0, each=170)
    found = confidence_of(rows, torch.arange(6).repeat_interleave(170))
    assert found.grades[:4] == ["strong"] * 4
    assert "strong" not in found.grades[4:]
    assert set(found.weaker) == {4, 5}
    assert f"Weakest: clusters {found.weaker[0]}, {found.weaker[1]}." in confidence_text(found)


def test_of_a_group_that_is_hardly_in_the_sample_nothing_is_said():
    rows = kinds(2, 2, 2)
    cluster = torch.arange(3).repeat_interleave(40)
    cluster[:3] = 3
    assert confidence_of(rows, cluster).grades[3] == ""


def test_the_parts_of_groups_in_the_rand_index():
    one = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 3, 3, 3, 3])
    other = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 1, 2, 1, 2])
    assert ari_by_group(one, other, torch.zeros_like(one)).item() == pytest.approx(ari(one, other))
    assert ari_by_group(one, one, one).tolist() == [1, 1, 0, 1]  # nobody is in the third
    parts = ari_by_group(one, other, one)
    assert parts[0] == 1 and parts[1] == parts[3] < 0.2


def test_no_two_grades_have_one_sentence_and_each_says_what_to_do():
    texts, commands = set(), set()
    for word in ("poor", "weak", "useful", "strong"):
        (degree,) = (each for each in GRADES if each.word == word)
        text = confidence_text(Confidence(1.0, max(degree.least, 0.0), 0.9, [None], 1000))
        assert text.startswith(f"The groups are {word}, ")
        texts.add(text.partition("(")[0])
        commands.add(next_step(degree, has_weights=True, n_clusters=7)[1])
    assert len(texts) == len(commands) == len(GRADES) == 4
    assert grade(-1).word == "poor" and grade(1).word == "strong"


@pytest.mark.parametrize(
    ("word", "has_weights", "n_clusters", "command"),
    [
        ("poor", False, 10, "deepcluster fit IMAGES -k 10 --backbone photos-small"),
        ("weak", False, None, "deepcluster fit IMAGES --backbone photos-small"),
        ("poor", True, 10, "deepcluster fit IMAGES -k 10 --backbone photos-ssl"),
        ("weak", True, 10, "deepcluster recut RUN -k auto"),
        ("weak", True, None, "deepcluster recut RUN -k 4"),
        ("useful", False, 10, "deepcluster apply RUN edits.json"),
        ("strong", True, 10, "deepcluster predict RUN NEW_IMAGES"),
    ],
)
def test_the_next_step(word, has_weights, n_clusters, command):
    (degree,) = (each for each in GRADES if each.word == word)
    assert next_step(degree, has_weights=has_weights, n_clusters=n_clusters, other=4)[1] == command


@pytest.mark.parametrize(("rows", "k"), [(60, 1), (20, 2)])
def test_of_too_little_nothing_is_said(rows, k):
    found = confidence_of(torch.eye(60)[:rows], torch.arange(rows) % k)
    assert found is None
    assert "Too few" in confidence_text(found)


def test_of_few_numbers_nothing_is_said():
    """Half of them need not show what all do."""
    rows = blobs([40] * 2, width=8)
    assert confidence_of(rows, torch.arange(2).repeat_interleave(40)) is None


@pytest.mark.parametrize(("rows", "k"), [(3200, 3200), (3200, 1501), (40, 21)])
def test_of_more_groups_than_the_sample_can_show_nothing_is_said(rows, k):
    """The sample of 3,000 rows cannot be cut into more groups; with a row or less for each no neighbour can agree."""
    found = confidence_of(F.normalize(torch.randn(rows, WIDTH, generator=generator(0, "rows"))), torch.arange(rows) % k)
    assert found is None
    assert "images in a group" in confidence_text(found)


def test_a_score_of_few_images_counts_for_more():
    """By the power law it was read off: a quarter of the images is worth 4 ** .7 times as much."""
    many = Confidence(0.5, 0.2, 0.3, [], 1000)
    assert many.score == pytest.approx(0.1)
    assert replace(many, rows=3000).score == many.score
    assert replace(many, rows=250).score == pytest.approx(0.1 * 4**0.7)
    assert replace(many, rows=10).score == 1
    assert "with only 250 images" in confidence_text(replace(many, rows=250))
    assert "with only" not in confidence_text(many)


def test_the_score_of_a_group_is_that_of_all_where_all_are_alike(monkeypatch):
    monkeypatch.setattr(judging, "stability", lambda *_: 0.2)
    found = confidence_of(kinds(2, 2, 2, 2, each=50), torch.arange(4).repeat_interleave(50))
    assert found.by_group == pytest.approx([found.score] * 4, rel=0.1) and 0.5 < found.score < 0.7
    assert found.rows == 200


def test_groups_that_one_half_of_the_numbers_shows_are_poor_each():
    rows, cluster = kinds(2, 2, 2, 2, each=250), torch.arange(4).repeat_interleave(250)
    rows[:, 1::2] = kinds(0, 0, 0, 0, each=250)[:, 1::2]
    found = confidence_of(F.normalize(rows), cluster)
    assert found.halves < 0.05 < 0.3 < found.kept and set(found.grades) == {"poor"}


def test_the_weakest_are_named_first_and_the_worse_agreement_is_said():
    found = Confidence(1.0, 0.9, 0.6, [0.3, None, 0.9, 0.01, 0.2, 0.1], 1000)
    assert found.weaker == [3, 5, 4, 0]
    text = confidence_text(found)
    assert "they agree to 60%" in text and text.endswith("Weakest: clusters 3, 5, 4.")
