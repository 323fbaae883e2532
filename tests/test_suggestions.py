"""The candidates of a run without -k, and the names of clusters, as its page suggests them."""

from deepcluster.groups.tree import Tree, nodes_at
from deepcluster.report.pictures import MAX_PICTURES
from deepcluster.report.sections import suggested_name, suggestions
from deepcluster.storage.content import Table
from tests.helpers.report import drawn, page, row

# Four pieces: 0 and 2 merge into node 4, 1 and 3 into 5, and both into 6.
TREE = Tree(
    groups=(0, 1, 0, 1), merges=((0, 2), (1, 3), (4, 5)), sizes=(5, 1, 3, 2, 8, 3, 11), medoids=(0, 6, 7, 9, 3, 10, 4)
)


def test_the_groups_of_each_candidate_are_a_cut_of_the_tree() -> None:
    assert [[*nodes_at(len(TREE.groups), TREE.merges, k)] for k in (4, 3, 2, 1)] == [
        [0, 1, 2, 3],
        [1, 3, 4],
        [4, 5],
        [6],
    ]


def test_largest_groups_first_by_the_image_in_their_middle() -> None:
    three, two = {"k": 3, "silhouette": 0.5, "stability": -0.01}, {"k": 2, "silhouette": 0.3}
    candidates = [three, two, {"k": 9}]  # the tree has no nine groups
    assert suggestions(candidates, TREE, 11) == [
        {"k": 3, "about": "silhouette 0.500, stability 0%", "groups": [(8, 3), (2, 9), (1, 6)], "hidden": 0},
        {"k": 2, "about": "silhouette 0.300", "groups": [(8, 3), (3, 10)], "hidden": 0},
    ]
    many = 2 * MAX_PICTURES
    assert suggestions([two], TREE, many)[0]["groups"] == [(8, -1), (3, 5)]  # every second image has a picture


def test_the_page_shows_them_only_where_no_number_was_asked_for() -> None:
    run = {"candidates": [{"k": 3, "silhouette": 0.5}, {"k": 2, "silhouette": 0.25}]}
    _, parsed = page(run=run, **drawn(40))
    listed = [text for _, text in parsed.all("b") if "groups" in text]
    assert listed == ["3 groups", "2 groups"]
    commands = [text for _, text in parsed.all("code") if "recut" in text]
    assert "deepcluster recut RUN -k 3" in commands and "deepcluster recut RUN -k 2" not in commands  # it has two
    for without in ({}, run | {"edits": "0123"}):  # another cut would lose the edits
        _, parsed = page(run=without, **drawn(40))
        assert not [text for _, text in parsed.all("b") if "groups" in text]


def test_a_name_is_suggested_if_it_surely_fits_the_typical_images_of_a_cluster() -> None:
    def suggested(*nouns: tuple[str, float], others: int = 0) -> str:
        images = Table.of(row(str(i), distance=str(i)) for i in range(len(nouns) + others))
        return suggested_name(images, {str(i): noun for i, noun in enumerate(nouns)})

    sure, unsure, other = ("daisy", 0.9), ("daisy", 0.6), ("bee", 1.0)
    assert suggested(*[sure] * 20) == "daisy"
    assert suggested(*[sure] * 19, others=9) == ""  # too few with a noun
    assert suggested(*[sure] * 10, *[other] * 10) == "daisy"  # the nearer half counts
    assert suggested(*[other] * 10, *[sure] * 10) == "bee"
    assert suggested(*[sure] * 8, *[other] * 12) == "daisy"  # 7.2 / 10
    assert suggested(*[sure] * 6, *[other] * 14) == ""  # 5.4 / 10
    assert suggested(*[unsure] * 20) == ""
