"""Sizes that fit the budget, by default or as asked, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdd.bilevel.sizes import plan_sizes
from scdd.config.condense_pairs import CondensePairsConfig
from scdd.distilled.bill import Sizes, budget_floats, storage_floats
from scdd.errors import ConfigError
from tests.bilevel.tiny_pairs import BASES, RAW


def plan(
    images: int = 50_000, image_size: int = 32, target_dim: int = 512, **changes: Any
) -> Sizes:
    cfg = CondensePairsConfig.model_validate(changes)
    return plan_sizes(cfg, images, image_size, target_dim)


ASKED = st.none() | st.integers(1, 500)


@given(
    st.integers(1, 300),
    st.integers(1, 400),
    st.sampled_from([8, 16, 32, 64]),
    st.integers(1, 600),
    st.sampled_from([RAW, BASES, {"approximation": False}, {}]),
    ASKED,
    ASKED,
    ASKED,
    st.none() | st.integers(1, 70),
)
def test_no_settings_ever_exceed_the_budget(n, images, size, dim, parts, pairs, u, v, side):
    bases = {"images": u, "targets": v, "size": side}
    try:
        sizes = plan(images, size, dim, budget_n=n, pairs=pairs, bases=bases, **parts)
    except ConfigError:
        return
    assert storage_floats(sizes) <= budget_floats(n, size, dim)
    assert 1 <= sizes.pairs <= images
    assert sizes.image_bases <= min(sizes.basis_floats, images)
    assert sizes.target_bases <= min(dim, images)


@given(st.integers(12, 300), st.sampled_from([16, 32, 64]), st.booleans(), st.booleans())
def test_without_wishes_there_is_always_room(n, image_size, rotations, predicted):
    parts = {"rotations": rotations, "approximation": rotations and predicted}
    sizes = plan(image_size=image_size, target_dim=128, budget_n=n, **parts)
    assert sizes.pairs >= n // 3


@pytest.mark.parametrize(
    ("budget_n", "bases", "pairs"),
    [
        (25, (50, 50), 229),
        (50, (100, 100), 236),
        (100, (200, 200), 239),
        (1000, (400, 256), 2000),
        (5000, (400, 256), 10_000),
    ],
)
def test_the_default_rule_on_32_px_with_512_outputs(budget_n, bases, pairs):
    sizes = plan(budget_n=budget_n)
    assert (sizes.image_bases, sizes.target_bases, sizes.pairs) == (*bases, pairs)
    assert (sizes.basis_size, sizes.approximations, sizes.hidden) == (16, 3, 4)


def test_raw_pairs_are_as_many_as_the_budget_says():
    assert plan(budget_n=37, **RAW) == Sizes(32, 512, 37)


def test_a_basis_image_has_half_the_side_of_an_image_and_at_most_16_px():
    sides = {size: plan(image_size=size, budget_n=100).basis_size for size in (8, 32, 64, 224)}
    assert sides == {8: 4, 32: 16, 64: 16, 224: 16}


def test_views_without_networks_are_on_the_bill_as_coefficients():
    sizes = plan(budget_n=100, approximation=False)
    assert (sizes.stored_views, sizes.approximations, sizes.hidden) == (3, 0, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"images": 99},
            "condense_pairs.budget_n is 100, but the training set holds only 99 images; choose at "
            "most 99",
        ),
        (
            {"images": 100, "pairs": 101},
            "condense_pairs.pairs is 101, but the training set holds only 100 images to start "
            "from; choose at most 100",
        ),
        (
            {"bases": {"images": 769}},
            "condense_pairs.bases.images is 769, more than there are values of a basis image "
            "(768), so that not all could be orthogonal; choose at most 768",
        ),
        (
            {"bases": {"targets": 513}},
            "condense_pairs.bases.targets is 513, more than there are entries of a target (512), "
            "so that not all could be orthogonal; choose at most 512",
        ),
        (
            {"images": 150, "bases": {"images": 151}},
            "condense_pairs.bases.images is 151, more than there are real images (150), so that "
            "not all could be orthogonal; choose at most 150",
        ),
        (
            {"images": 150, "bases": {"targets": 151}},
            "condense_pairs.bases.targets is 151, more than there are real images (150), so that "
            "not all could be orthogonal; choose at most 150",
        ),
        (
            {"bases": {"size": 33}},
            "condense_pairs.bases.size is 33, but an image has 32 px; choose at most 32",
        ),
        (
            {"budget_n": 25, "bases": {"images": 200}},
            "condense_pairs.budget_n is 25, whose 89600 numbers have no room for a pair beside 200 "
            "image and 1 target bases (155431 numbers); raise it, or lower "
            "condense_pairs.bases.images or condense_pairs.bases.targets",
        ),
        (
            {"pairs": 240},
            "condense_pairs.pairs is 240, which take 358692 numbers, more than the 358400 of "
            "condense_pairs.budget_n = 100; choose at most 239, or raise the budget",
        ),
        (
            {"pairs": 101, **RAW},
            "condense_pairs.pairs is 101, which take 361984 numbers, more than the 358400 of "
            "condense_pairs.budget_n = 100; choose at most 100, or raise the budget",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as caught:
        plan(**changes)
    assert str(caught.value) == sentence
