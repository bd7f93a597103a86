"""Decoding of bases, turns and approximations, held against numpy, Pillow's order and calculus."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scdd.distilled.factored import Approximation, enlarged, gram_error, turned
from tests.distilled.random_sets import random_set


def up_by_hand(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear values [3, size, size] at the centres of the larger pixels; edges repeat."""
    side = image.shape[-1]
    at = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, side - 1), at - np.floor(at)
    rows = image[:, low] * (1 - share)[:, None] + image[:, high] * share[:, None]
    return rows[:, :, low] * (1 - share) + rows[:, :, high] * share


@settings(deadline=None, max_examples=40)
@given(
    vectors=st.integers(1, 5),
    width=st.integers(1, 5),
    count=st.integers(1, 4),
    turns=st.permutations([1, 2, 3]).flatmap(
        lambda order: st.integers(0, 3).map(lambda n: (0, *order[:n]))
    ),
    hidden=st.integers(1, 3),
    side=st.integers(1, 4),
    grown=st.integers(0, 5),
    dim=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_images_and_targets_are_those_that_numpy_decodes_by_hand(
    vectors, width, count, turns, hidden, side, grown, dim, seed
):
    parts = random_set(
        vectors, width, count, turns, hidden, side, side + grown, dim, True, True, seed,
        torch.float64,
    )  # fmt: skip
    plain = {
        field.name: value.numpy()
        for field in dataclasses.fields(parts)
        if isinstance(value := getattr(parts, field.name), Tensor)
    }
    for view, quarters in enumerate(turns):
        for row in range(count):
            image = plain["image_mean"] + plain["image_coefficients"][row] @ plain["image_basis"]
            large = up_by_hand(image.reshape(3, side, side), side + grown)
            wanted = np.stack([np.rot90(channel, quarters) for channel in large])
            assert np.allclose(parts.images(view)[row], wanted, atol=1e-12)
            own = plain["target_coefficients"][row]
            kept = own
            if view:
                w0, b0, w1, b1 = (part[view - 1].numpy() for part in parts.approximation)
                own = own + w1 @ np.maximum(w0 @ own + b0, 0) + b1
                kept = plain["view_coefficients"][view - 1, row]
            wanted = plain["target_mean"] + own @ plain["target_basis"]
            assert np.allclose(parts.targets(view)[row], wanted, atol=1e-12)
            wanted = plain["target_mean"] + kept @ plain["target_basis"]
            assert np.allclose(parts.targets(view, stored=True)[row], wanted, atol=1e-12)


def test_some_rows_are_what_all_rows_have_there():
    parts = random_set(stored=True)
    rows = torch.tensor([2, 0, 2])
    for view in range(4):
        assert torch.allclose(parts.images(view, rows), parts.images(view)[rows], atol=1e-6)
        for stored in (False, True):
            some = parts.targets(view, rows, stored)
            assert torch.allclose(some, parts.targets(view, stored=stored)[rows], atol=1e-6)


@pytest.mark.parametrize("size", [4, 5, 8, 12])
def test_enlarging_and_turning_commute_and_four_turns_are_none(size: int):
    small = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    for quarters in range(4):
        one = turned(enlarged(small, size), quarters)
        other = enlarged(turned(small, quarters), size)
        assert torch.allclose(one, other, atol=1e-12)
        assert torch.equal(turned(turned(small, quarters), (4 - quarters) % 4), small)


@pytest.mark.parametrize("stored", [False, True])
def test_gradients_reach_every_part_and_are_those_of_finite_differences(stored: bool):
    made = random_set(count=2, size=3, dtype=torch.float64, approximation=not stored, stored=stored)
    names = [
        field.name
        for field in dataclasses.fields(made)
        if isinstance(getattr(made, field.name), Tensor)
    ]

    def decoded(*values: Tensor) -> Tensor:
        parts = dict(zip(names, values[: len(names)], strict=True))
        rest = values[len(names) :]
        changed = dataclasses.replace(
            made, **parts, approximation=Approximation(*rest) if rest else None
        )
        views = range(changed.num_views)
        return torch.cat(
            [changed.images(v).flatten() for v in views]
            + [changed.targets(v).flatten() for v in views]
        )

    values = [getattr(made, name) for name in names] + list(made.approximation or ())
    inputs = tuple(value.clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(decoded, inputs)
    grads = torch.autograd.grad((decoded(*inputs) ** 2).sum(), inputs)
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_half_precision_is_only_stored_and_autocast_changes_nothing():
    parts = random_set(dtype=torch.float16, stored=True)
    wide = random_set(dtype=torch.float16, stored=True)
    for field in dataclasses.fields(wide):
        if isinstance(value := getattr(wide, field.name), Tensor):
            object.__setattr__(wide, field.name, value.float())
    object.__setattr__(
        wide, "approximation", Approximation(*(p.float() for p in wide.approximation))
    )
    with torch.autocast("cpu", torch.bfloat16):
        for view in range(4):
            assert torch.equal(parts.images(view), wide.images(view))
            assert torch.equal(parts.targets(view), wide.targets(view))
            assert parts.images(view).dtype == torch.float32


def test_gram_error_is_the_distance_from_orthonormal_vectors():
    basis = torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64, generator=torch.manual_seed(0)))
    assert gram_error(basis.Q.T) < 1e-14
    assert gram_error(torch.tensor([[3.0, 0], [0, 1]])) == 8
    assert gram_error(torch.tensor([[1.0, 0], [0.5, 1]])) == 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"turns": (1, 2, 3, 0)}, "first view is not the image as it is"),
        ({"turns": ()}, "first view is not the image as it is"),
        ({"turns": (0, 1, 1, 2)}, "by 0, 1, 1, 2 quarters, not by different ones of 0..3"),
        ({"turns": (0, 1, 2, 4)}, "not by different ones"),
        ({"turns": (0, 1, 2)}, "approximation w0 has shape [3, 2, 2], not [2, 2, 2]"),
        ({"turns": (0,), "approximation": None}, None),
        ({"turns": (0,)}, "approximation w0 has shape"),
        ({"approximation": None}, "3 turned views have neither an approximation nor stored"),
        ({"view_coefficients": torch.zeros(3, 4, 5)}, "view_coefficients has shape [3, 4, 5], not"),
        ({"image_mean": torch.zeros(11)}, "11 values, not those of 3 channels of a square"),
        ({"image_mean": torch.zeros(0)}, "0 values, not those of 3 channels"),
        ({"image_size": 1}, "12 values, not those of 3 channels of a square of 1 .. 1 px"),
        ({"image_size": 65}, "12 values, not those of 3 channels of a square of 3 .. 65 px"),
        ({"image_basis": torch.zeros(2, 12)}, "image_coefficients has shape [4, 3], not [4, 2]"),
        ({"target_mean": torch.zeros(4)}, "target_basis has shape [2, 3], not [2, 4]"),
        ({"target_coefficients": torch.zeros(3, 2)}, "target_coefficients has shape [3, 2], not"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(change: dict, said: str | None):
    parts = random_set()
    if said is None:
        assert dataclasses.replace(parts, **change).num_views == 1
        return
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(parts, **change)
    assert said in str(caught.value)
