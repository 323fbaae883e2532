"""Recipe ``classic`` end to end: clusters by k-means, and k centroids are all that a new image needs."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcluster.clustering.kmeans import kmeans
from deepcluster.groups.cut import as_clusters, cut_features
from deepcluster.groups.graph import Embeddings
from deepcluster.recipes import build
from deepcluster.recipes.options import Recipe
from deepcluster.runs.recut import recut
from deepcluster.seeding import derive
from deepcluster.storage import model_files as models
from tests.helpers.runs import rows

K = 3
KMEANS, EMBEDDING = Recipe(grouping="kmeans"), Recipe(grouping="embedding")
cut_sample = partial(build.cut_sample, embed=Embeddings())


@pytest.fixture(scope="module")
def classic(fit_once) -> Path:
    return fit_once("--recipe", "classic")


def test_each_image_is_in_the_cluster_of_the_nearest_of_k_means(classic):
    """One more update moves no mean, as k-means has converged on so few images."""
    centroids, features = models.load(classic).cut.centroids, torch.from_numpy(np.load(classic / "features.npy"))
    table = rows(classic / "clusters.csv")
    cluster, distance = (torch.tensor([float(row[name]) for row in table]) for name in ("cluster", "distance"))
    away = torch.cdist(features.double(), centroids.double())
    assert torch.equal(away.argmin(1), cluster.long())
    assert torch.allclose(away.min(1).values.float(), distance, atol=1e-4)
    means = torch.stack([features[cluster == number].mean(0) for number in range(K)])
    assert torch.allclose(means, centroids, atol=1e-5)


def test_only_classic_says_that_images_are_few(classic, finished):
    """Both have 48 images and no weights."""
    assert [(run / "log.txt").read_text().count(" Few: 48 images") for run in (classic, finished)] == [1, 0]


@pytest.mark.parametrize(("recipe", "centroids"), [("classic", 2), ("auto", 5)])
def test_recut_groups_as_the_recipe_of_the_run_says(fit_once, tmp_path, recipe, centroids):
    run = Path(shutil.copytree(fit_once("--recipe", recipe), tmp_path / "run"))
    recut(run, 2)
    groups = models.load(run).cut
    assert groups.count == 2 and len(groups.centroids) == centroids


@pytest.mark.parametrize("fine", [20, 9])
def test_the_best_of_several_starts_counts(fine):
    """Nine blobs: a single random start merges two of them more often than not, that of as many fine clusters, too."""
    middles = 5 * torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)).repeat_interleave(30, 0)
    x = middles + 0.1 * torch.randn(270, 2, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        groups = cut_sample(x, kmeans(x, fine, seed=seed), 9, seed, KMEANS)
        nearest = torch.cdist(x, groups.centroids).argmin(1)
        assert torch.bincount(nearest).tolist() == [30] * 9


def test_the_option_and_the_number_decide(monkeypatch):
    """Very many groups, if as many as pseudo-labels, are the last clustering."""
    x = torch.nn.functional.normalize(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)))
    fine = kmeans(x, 5)
    groups, expected = cut_sample(x, fine, 4, 0, EMBEDDING), cut_features(x, 4, seed=derive(0, "groups"))
    assert torch.equal(groups.centroids, expected.centroids) and torch.equal(groups.cluster_of, expected.cluster_of)
    assert cut_sample(x, fine, 4, 0, KMEANS).cluster_of.tolist() == [0, 1, 2, 3]
    assert len(cut_sample(x, fine, 5, 0, EMBEDDING).centroids) > 5
    monkeypatch.setattr(build, "MAX_IN_CUT", 4)  # very many
    for recipe in (KMEANS, EMBEDDING):
        assert torch.equal(cut_sample(x, fine, 5, 0, recipe).centroids, as_clusters(fine).centroids)
    assert cut_sample(x, fine, 6, 0, replace(KMEANS, empty="faiss")).count == 6
