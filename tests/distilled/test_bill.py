"""The storage bill against the arrays themselves, and against what is known of Boost."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scdd.distilled.bill import (
    Sizes,
    budget_floats,
    describe_bill,
    least_budget,
    most_pairs,
    storage_floats,
)


def arrays(sizes: Sizes) -> list[np.ndarray]:
    """Every array of a set with bases, as a file holds them."""
    m, u, v, h = sizes.pairs, sizes.image_bases, sizes.target_bases, sizes.hidden
    side, d = sizes.basis_size, sizes.target_dim
    shapes = [(u, 3, side, side), (3, side, side), (m, u), (v, d), (d,), (m, v)]
    shapes += [(m, v)] * sizes.stored_views
    shapes += [(h, v), (h,), (v, h), (v,)] * sizes.approximations
    return [np.empty(shape, np.uint8) for shape in shapes]


SMALL = st.integers(1, 12)


@given(SMALL, SMALL, SMALL, SMALL, SMALL, SMALL, st.integers(0, 3), st.booleans())
def test_the_bill_counts_every_number_of_every_array(m, u, v, h, side, d, views, predicted):
    sizes = Sizes(16, d, m, u, v, side)
    sizes = sizes._replace(
        approximations=views if predicted else 0,
        hidden=h if predicted else 0,
        stored_views=0 if predicted else views,
    )
    assert storage_floats(sizes) == sum(array.size for array in arrays(sizes))


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 600))
def test_raw_pairs_take_exactly_their_budget(budget_n, image_size, target_dim):
    sizes = Sizes(image_size, target_dim, budget_n)
    assert storage_floats(sizes) == budget_floats(budget_n, image_size, target_dim)
    assert most_pairs(sizes, budget_n) == budget_n


@given(SMALL, st.integers(1, 40), st.integers(1, 600), st.integers(0, 3))
def test_the_least_budget_has_room_for_all_views_and_one_less_has_not(m, image_size, dim, views):
    sizes = Sizes(image_size, dim, m, stored_views=views)
    least = least_budget(sizes)
    assert budget_floats(least - 1, image_size, dim) < storage_floats(sizes)
    assert storage_floats(sizes) <= budget_floats(least, image_size, dim)


@given(
    st.integers(1, 200),
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 16),
    st.integers(0, 3),
    st.integers(1, 16),
)
def test_the_pairs_that_fit_never_exceed_the_budget_and_one_more_would(n, u, v, side, a, h):
    sizes = Sizes(32, 512, 0, u, v, side, a, h)
    pairs, budget = most_pairs(sizes, n), budget_floats(n, 32, 512)
    assume(pairs >= 0)
    assert storage_floats(sizes._replace(pairs=pairs)) <= budget
    assert storage_floats(sizes._replace(pairs=pairs + 1)) > budget


@pytest.mark.parametrize(
    ("budget_n", "bases", "budget", "fixed", "pairs"),
    [
        (25, (50, 50), 89_600, 66_642, 229),
        (50, (100, 100), 179_200, 131_992, 236),
        (100, (200, 200), 358_400, 262_692, 239),
        (1000, (400, 256), 3_584_000, 446_476, 4_782),
        (5000, (400, 256), 17_920_000, 446_476, 26_636),
    ],
)
def test_the_bills_of_boost_on_cifar_100(budget_n, bases, budget, fixed, pairs):
    sizes = Sizes(32, 512, 0, *bases, basis_size=16, approximations=3, hidden=4)
    assert budget_floats(budget_n, 32, 512) == budget
    assert sizes.fixed_floats == fixed
    assert most_pairs(sizes, budget_n) == pairs


def test_networks_are_cheaper_than_the_coefficients_they_predict_which_beat_raw_targets():
    predicted = Sizes(32, 512, 100, 200, 200, 16, approximations=3, hidden=4)
    stored = predicted._replace(approximations=0, hidden=0, stored_views=3)
    none = predicted._replace(approximations=0, hidden=0)
    assert storage_floats(predicted) - storage_floats(none) == 5_412
    assert storage_floats(stored) - storage_floats(none) == 60_000


def test_bases_beyond_the_budget_leave_less_than_no_pairs():
    assert most_pairs(Sizes(32, 512, 0, 200, 200, 16), 1) < 0


def test_the_bill_in_words():
    sizes = Sizes(32, 512, 100, 200, 200, 16, approximations=3, hidden=4)
    assert describe_bill(sizes, 100) == (
        "100 pairs, 200 image and 200 target bases, 3 networks of 4 hidden units: 302692 numbers, "
        "84.5 % of the 358400 of 100 raw images with targets (605384 bytes in half precision)"
    )
