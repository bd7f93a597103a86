"""Stratified hold-out and the first images of a class."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scdd.datasets.splits import first_per_class, hold_out
from scdd.errors import DataError

shares = st.floats(0.01, 0.99)
class_sizes = st.lists(st.integers(2, 30), min_size=1, max_size=6)


def shuffled_labels(sizes: list[int]) -> torch.Tensor:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(len(sizes)))]


@given(class_sizes, shares)
def test_hold_out_divides_every_class_by_the_share(sizes, share):
    labels = shuffled_labels(sizes)
    kept, held = hold_out(labels, share, [str(c) for c in range(len(sizes))], "test")
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist()) and held.tolist() == sorted(held.tolist())
    for label, size in enumerate(sizes):
        count = int((labels[held] == label).sum())
        assert 1 <= count <= size - 1
        assert abs(count - size * share) <= 1


def test_hold_out_takes_the_rows_with_the_smallest_hashes():
    labels = torch.tensor([1, 0, 0, 1, 0, 0, 1])
    _, held = hold_out(labels, 0.5, ["a", "b"], "test")
    rows = {0: [1, 2, 4, 5], 1: [0, 3, 6]}
    expected = []
    for label, own in rows.items():
        digests = [
            hashlib.sha256(f"test/{label}/{position}".encode()).hexdigest()
            for position in range(len(own))
        ]
        expected += [own[digests.index(digest)] for digest in sorted(digests)[:2]]
    assert held.tolist() == sorted(expected)


def test_hold_out_ignores_the_global_random_state_and_depends_on_the_purpose():
    labels = torch.zeros(100).long()
    first = hold_out(labels, 0.3, ["a"], "one")[1]
    torch.manual_seed(7)
    assert torch.equal(first, hold_out(labels, 0.3, ["a"], "one")[1])
    assert not torch.equal(first, hold_out(labels, 0.3, ["a"], "two")[1])


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 0]])
def test_a_class_too_small_to_divide_is_named(labels):
    with pytest.raises(DataError, match=r"class 'bee' has [01] training image"):
        hold_out(torch.tensor(labels), 0.2, ["ant", "bee"], "test")


def test_the_first_images_of_each_class_are_those_first_in_order():
    labels = torch.tensor([2, 0, 1, 0, 2, 0, 2])
    assert first_per_class(labels, 2).tolist() == [0, 1, 2, 3, 4]
    assert first_per_class(labels, 99).tolist() == list(range(7))
