"""Herding against its definition: the mean of the chosen is brought to the mean of all."""

import itertools

import numpy as np
import pytest
import torch

from scdd.coresets import herding


def by_definition(points: np.ndarray, count: int) -> list[int]:
    """Algorithm 4 of arXiv:1611.07725 word by word, every candidate tried at every rank."""
    mean, chosen = points.mean(axis=0), []
    for _ in range(count):
        left = [row for row in range(len(points)) if row not in chosen]
        distances = [np.linalg.norm(mean - points[[*chosen, row]].mean(axis=0)) for row in left]
        chosen.append(left[int(np.argmin(distances))])
    return chosen


def test_four_points_on_a_line_by_hand():
    # The mean is 3. First 2; then with 1, 0 or 9 the mean is 1.5, 1 or 5.5; then with 9 it is 4.
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    assert herding(points, 4).tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize(("count", "width", "seed"), [(1, 3, 0), (9, 4, 1), (30, 2, 2)])
def test_the_order_is_that_of_the_definition(count: int, width: int, seed: int):
    points = np.random.default_rng(seed).normal(5.0, 2.0, (30, width))
    assert herding(torch.from_numpy(points), count).tolist() == by_definition(points, count)


def test_equal_images_are_different_choices():
    points = torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 4.0]])
    assert sorted(herding(points, 4).tolist()) == [0, 1, 2, 3]


def test_features_far_from_0_lose_no_digits():
    points = np.random.default_rng(3).normal(0.0, 1.0, (20, 3))
    near = herding(torch.from_numpy(points), 20).tolist()
    far = herding(torch.from_numpy(points + 4096.0), 20).tolist()
    assert near == far


def test_ten_herded_points_have_a_mean_nearer_than_most_sets_of_ten_have():
    points = torch.from_numpy(np.random.default_rng(4).normal(0.0, 1.0, (14, 2)))
    mean = points.mean(dim=0)
    ours = (points[herding(points, 10)].mean(dim=0) - mean).norm()
    sets = torch.tensor(list(itertools.combinations(range(14), 10)))
    others = (points[sets].mean(dim=1) - mean).norm(dim=1)
    assert (others > ours).double().mean() > 0.9
