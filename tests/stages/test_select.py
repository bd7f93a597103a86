"""Real images chosen at random: counts, order, nesting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scdd.datasets import ResidentSource
from scdd.errors import DataError
from scdd.stages.select import random_real


def source(labels: list[int], classes: int) -> ResidentSource:
    names = tuple(f"class {i}" for i in range(classes))
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    return ResidentSource(images, torch.tensor(labels), names, (0.5,) * 3, (0.2,) * 3)


@st.composite
def sources(draw):
    """Shuffled labels with at least three images of each class."""
    classes = draw(st.integers(1, 5))
    labels = [c for c in range(classes) for _ in range(draw(st.integers(3, 8)))]
    return source(draw(st.permutations(labels)), classes)


@given(sources(), st.integers(1, 3), st.integers(0, 2**31))
def test_each_class_gives_its_number_of_different_images_in_rank_major_order(images, ipc, seed):
    rows = random_real(images, ipc, seed)
    classes = len(images.classes)
    assert rows.dtype == torch.int64 and rows.shape == (classes * ipc,)
    assert len(set(rows.tolist())) == len(rows)
    assert images.labels[rows].tolist() == list(range(classes)) * ipc


@given(sources(), st.integers(0, 2**31))
def test_a_smaller_choice_is_the_beginning_of_a_larger_one(images, seed):
    three = random_real(images, 3, seed).tolist()
    for ipc in (1, 2):
        assert random_real(images, ipc, seed).tolist() == three[: ipc * len(images.classes)]


def test_the_seed_decides():
    images = source([i % 2 for i in range(200)], 2)
    assert random_real(images, 5, 0).tolist() == random_real(images, 5, 0).tolist()
    assert random_real(images, 5, 0).tolist() != random_real(images, 5, 1).tolist()


def test_every_image_is_chosen_about_equally_often():
    images = source([0] * 10 + [1] * 10, 2)
    counts = torch.zeros(20)
    for seed in range(400):
        counts[random_real(images, 3, seed)] += 1
    # 400 draws of probability 0.3: mean 120, standard deviation 9.2.
    assert (counts - 120).abs().max() < 5 * 9.2


def test_classes_of_equal_size_are_not_chosen_alike():
    images = source([0] * 50 + [1] * 50, 2)
    rows = random_real(images, 5, 0).view(5, 2)
    assert rows[:, 0].tolist() != (rows[:, 1] - 50).tolist()


def test_too_few_images_of_a_class_are_one_sentence():
    with pytest.raises(DataError) as caught:
        random_real(source([0, 0, 0, 1, 1], 2), 3, 0)
    assert str(caught.value) == (
        "class 'class 1' has 2 training images, but ipc is 3; lower ipc or add images"
    )


def test_a_class_without_images_is_refused_too():
    with pytest.raises(DataError, match="'class 2' has 0 training images"):
        random_real(source([0, 1], 3), 1, 0)
