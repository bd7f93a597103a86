"""k-center against distances of scikit-learn, and against the best centres there are."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances

from scdd.coresets import k_center


def radius(distances: np.ndarray, centres: list[int]) -> float:
    """How far the farthest point is from its centre."""
    return float(distances[:, centres].min(axis=1).max())


def test_four_points_on_a_line_by_hand():
    # 2 is nearest to the mean 3; 9 is farthest from it; then 0 is 2 away and 1 only 1.
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    assert k_center(points, 4).tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_each_centre_is_the_point_farthest_from_those_before(seed: int):
    points = np.random.default_rng(seed).normal(3.0, 1.0, (25, 3))
    distances = pairwise_distances(points)
    chosen = k_center(torch.from_numpy(points), 25).tolist()
    to_mean = pairwise_distances(points, points.mean(axis=0, keepdims=True))
    assert chosen[0] == to_mean.argmin() and sorted(chosen) == list(range(25))
    for rank in range(1, 25):
        assert chosen[rank] == distances[:, chosen[:rank]].min(axis=1).argmax()


@pytest.mark.parametrize("count", [2, 3])
def test_the_radius_is_at_most_twice_the_best_one(count: int):
    """What the greedy choice is known for (Gonzalez, 1985)."""
    for seed in range(10):
        points = np.random.default_rng(seed).uniform(0.0, 1.0, (12, 2))
        distances = pairwise_distances(points)
        best = min(radius(distances, [*c]) for c in itertools.combinations(range(12), count))
        assert radius(distances, k_center(torch.from_numpy(points), count).tolist()) <= 2 * best


def test_equal_images_are_different_choices():
    assert sorted(k_center(torch.ones(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]
