"""Labels of class folders by the names that releases give them."""

import pytest
import torch

from scdd.errors import DataError
from scdd.exchange.class_order import check_classes, class_order, rank_major

KNOWN = tuple(f"n{number:08}" for number in (11, 5, 7))


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["n00000005", "n00000007", "n00000011"], [1, 2, 0]),
        (["0", "1", "2"], [0, 1, 2]),
        (["00002", "00000", "00001"], [2, 0, 1]),
        (["new000", "new001", "new002"], [0, 1, 2]),
        (["class1", "class2", "class0"], [1, 2, 0]),
    ],
)
def test_folders_named_or_numbered_as_known_classes_have_their_labels(
    folders: list[str], labels: list[int]
):
    assert class_order(folders, KNOWN, "here", "there") == (labels, KNOWN)


def test_numbers_that_are_names_of_the_known_classes_are_names():
    """An image folder sorts its classes as text, so that 10 is the third of twelve."""
    known = tuple(sorted(map(str, range(12))))
    folders = [*map(str, range(12))]
    labels, names = class_order(folders, known, "here", "there")
    assert names == known and labels[10] == 2 and labels[2] == 4


def test_without_known_classes_numbers_count_and_names_are_sorted():
    assert class_order(["c10", "c9", "c1"], None, "", "") == ([2, 1, 0], ("c1", "c9", "c10"))
    assert class_order(["b", "a10", "a9"], None, "", "") == ([2, 0, 1], ("a10", "a9", "b"))
    # As numbers these are the same, so they can only be names.
    assert class_order(["01", "1"], None, "", "") == ([0, 1], ("01", "1"))


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["1", "2", "3"], "has class '1', which there has not"),
        (["0", "1"], "has class '0', which there has not and lacks class 'n00000005' of there"),
        (["new000", "old001", "new002"], "has class 'new000'"),
        ([*KNOWN, "dog"], "has class 'dog', which there has not (4 classes here, 3 there)"),
        ([*KNOWN[1:]], "lacks class 'n00000011' of there (2 classes here, 3 there)"),
        (["\x1b[31m", *KNOWN[1:]], r"has class '\x1b[31m'"),
    ],
)
def test_other_classes_are_refused_by_the_first_difference(folders: list[str], said: str):
    with pytest.raises(DataError) as refusal:
        class_order(folders, KNOWN, "here", "there")
    assert str(refusal.value).startswith(f"here: {said}")


def test_the_same_classes_in_another_order_are_refused_by_the_first_difference():
    check_classes(KNOWN, KNOWN, "here", "there")
    with pytest.raises(DataError, match="here: class 1 is 'c', but 'b' in there"):
        check_classes(("a", "c", "b"), ("a", "b", "c"), "here", "there")
    with pytest.raises(DataError, match="names classes of there twice"):
        check_classes(("a", "a", "b"), ("a", "b"), "here", "there")


def test_rank_major_takes_one_of_each_class_in_turn():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert rank_major(labels).tolist() == [0, 3, 4, 1, 5, 2]
