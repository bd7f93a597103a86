"""DSA: every operation against torchvision, SciPy or a closed form, its draws, its gradients."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Tensor

from scdd.augment import DsaDraw, draw_dsa, dsa
from scdd.augment.dsa import IDENTITY, OPERATIONS, cut_side
from tests.augment.conftest import SIGNIFICANCE, draw, is_binomial, noise

ALL = tuple(OPERATIONS)
BILINEAR = TF.InterpolationMode.BILINEAR
CLOSE = {"atol": 2e-6, "rtol": 0}


def normalised(count: int, size: int = 16, seed: int = 0) -> Tensor:
    """Images float64 [count, 3, size, size] as a network sees them."""
    return 2 * noise(count, 3, size, size, seed=seed, dtype=torch.float64) - 1


def drawn(operation: str, count: int = 40, size: int = 16, seed: int = 1) -> DsaDraw:
    return draw_dsa((operation,), count, size, draw(seed))


def still(operation: str, count: int) -> DsaDraw:
    """A draw whose operation has no strength."""
    ones, none = torch.ones(count), torch.zeros(count)
    nowhere = torch.zeros(count, 2, dtype=torch.int64)
    return DsaDraw(
        operation=torch.full((count,), ALL.index(operation)),
        brightness=none,
        saturation=ones,
        contrast=ones,
        shift=nowhere,
        cut=nowhere - 100,
        flip=none.bool(),
        scale=torch.ones(count, 2),
        angle=none,
    )


@pytest.mark.parametrize("operation", ALL)
def test_an_operation_without_strength_changes_nothing(operation: str):
    images = normalised(5)
    torch.testing.assert_close(dsa(images, still(operation, 5)), images, **CLOSE)


def test_no_operation_changes_nothing():
    images = normalised(5)
    nothing = draw_dsa((), 5, 16, draw())
    assert (nothing.operation == IDENTITY).all() and torch.equal(dsa(images, nothing), images)


def test_colour_adds_brightness_then_stretches_from_grey_and_from_the_mean():
    images, numbers = normalised(40), drawn("colour")
    factors = torch.stack([numbers.brightness, numbers.saturation, numbers.contrast], dim=1)
    for image, result, (add, saturation, contrast) in zip(
        images.numpy(), dsa(images, numbers).numpy(), factors.tolist(), strict=True
    ):
        bright = image + add
        grey = bright.sum(axis=0) / 3
        tinted = np.stack([grey + saturation * (channel - grey) for channel in bright])
        truth = tinted.mean() + contrast * (tinted - tinted.mean())
        np.testing.assert_allclose(result, truth, atol=1e-6)


def test_colours_have_the_ranges_of_the_released_code():
    numbers = drawn("colour", 4000)
    for values, low, high in (
        (numbers.brightness, -0.5, 0.5),
        (numbers.saturation, 0.0, 2.0),
        (numbers.contrast, 0.5, 1.5),
    ):
        assert stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > SIGNIFICANCE


def test_crop_is_torchvisions_of_a_shifted_box_with_nothing_outside():
    images, numbers = normalised(40), drawn("crop")
    assert set(numbers.shift.flatten().tolist()) == {-2, -1, 0, 1, 2}, "an eighth of the side"
    for image, (top, left), result in zip(images, numbers.shift, dsa(images, numbers), strict=True):
        assert torch.equal(result, TF.crop(image, int(top), int(left), 16, 16))


@pytest.mark.parametrize("size", [16, 13, 32])
def test_cutout_erases_a_square_of_half_the_side_that_may_stand_out(size: int):
    images, numbers = normalised(60, size), drawn("cutout", 60, size)
    side = round(size / 2 + 0.01)
    assert cut_side(size) == side
    erased = []
    for image, (top, left), result in zip(images, numbers.cut, dsa(images, numbers), strict=True):
        (top, bottom), (left, right) = (
            (max(0, int(at)), min(size, int(at) + side)) for at in (top, left)
        )
        truth = TF.erase(image, top, left, bottom - top, right - left, torch.zeros(()).double())
        assert torch.equal(result, truth)
        erased.append((bottom - top) * (right - left))
    assert max(erased) == side**2 and min(erased) < side**2, "some stand out, and some do not"


def test_the_square_that_is_cut_out_is_centred_anywhere_in_the_image():
    for size in (13, 16):  # Squares of an odd and of an even side.
        middle = drawn("cutout", 4000, size).cut + (cut_side(size) - 1) / 2
        assert (middle.min().item(), middle.max().item()) in {(0, size - 1), (-0.5, size - 0.5)}
        counts = middle.flatten().unique(return_counts=True)[1]
        assert stats.chisquare(counts.numpy()).pvalue > SIGNIFICANCE


def test_flip_is_torchvisions_in_half_of_the_cases():
    images, numbers = normalised(40), drawn("flip")
    for image, flipped, result in zip(images, numbers.flip, dsa(images, numbers), strict=True):
        assert torch.equal(result, TF.horizontal_flip(image) if flipped else image)
    assert is_binomial(int(drawn("flip", 4000).flip.sum()), 4000, 0.5)


def test_rotation_is_torchvisions_counter_clockwise():
    images, numbers = normalised(40), drawn("rotate")
    for image, angle, result in zip(images, numbers.angle, dsa(images, numbers), strict=True):
        truth = TF.rotate(image.float(), float(angle), BILINEAR)
        torch.testing.assert_close(result.float(), truth, atol=1e-5, rtol=0)
    angles = drawn("rotate", 4000).angle
    assert stats.kstest(angles.numpy(), "uniform", (-15, 30)).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("share", [1 / 1.2, 0.93, 1.1, 1.2])
def test_a_field_of_view_of_another_size_is_torchvisions_zoom(share: float):
    images = normalised(3)
    numbers = still("scale", 3)._replace(scale=torch.full((3, 2), share))
    truth = TF.affine(images.float(), 0.0, [0, 0], 1 / share, [0.0], BILINEAR)
    torch.testing.assert_close(dsa(images, numbers).float(), truth, atol=1e-5, rtol=0)


def test_height_and_width_are_scaled_apart_as_by_scipy():
    images, numbers = normalised(20), drawn("scale", 20)
    centre = (16 - 1) / 2
    for image, scale, result in zip(images, numbers.scale, dsa(images, numbers), strict=True):
        matrix = np.array([1.0, *scale.tolist()])
        offset = np.array([0.0, centre, centre]) * (1 - matrix)
        truth = ndimage.affine_transform(
            image.numpy(), matrix, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(result.numpy(), truth, atol=2e-6)
    scales = drawn("scale", 4000).scale
    for axis in scales.T.numpy():
        low = 1 / 1.2
        assert stats.kstest(axis, "uniform", (low, 1.2 - low)).pvalue > SIGNIFICANCE
    assert abs(np.corrcoef(scales.T.numpy())[0, 1]) < 0.06


@pytest.mark.parametrize("operation", ALL)
def test_gradients_are_those_of_finite_differences(operation: str):
    images = normalised(2, 6).requires_grad_(True)
    numbers = drawn(operation, 2, 6, seed=3)
    assert torch.autograd.gradcheck(lambda x: dsa(x, numbers), images)
    (gradient,) = torch.autograd.grad(dsa(images, numbers).sum(), images)
    assert gradient.abs().sum() > 0


@given(
    st.lists(st.sampled_from(ALL), unique=True, max_size=6),
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_rows_of_a_draw_do_to_an_image_what_they_do_in_any_batch(
    operations: list, rows: list[int], seed: int
):
    images, numbers = normalised(7, 8), draw_dsa(operations, 7, 8, draw(seed))
    alone = torch.cat(
        [dsa(images[row : row + 1], numbers.rows(torch.tensor([row]))) for row in range(7)]
    )
    chosen = torch.tensor(rows)
    together = dsa(images[chosen], numbers.rows(chosen))
    torch.testing.assert_close(together, alone[chosen], atol=1e-12, rtol=0)


@pytest.mark.parametrize("operations", [ALL, ("colour", "rotate"), ("cutout",)])
def test_each_operation_is_as_likely_and_no_other_happens(operations: tuple):
    places = draw_dsa(operations, 6000, 16, draw()).operation
    values, counts = places.unique(return_counts=True)
    assert values.tolist() == sorted(ALL.index(name) for name in operations)
    assert len(counts) == 1 or stats.chisquare(counts.numpy()).pvalue > SIGNIFICANCE


def test_what_is_drawn_depends_on_the_generator_alone():
    one, same, other = (draw_dsa(ALL, 9, 16, draw(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.angle, other.angle)
    # Numbers do not hang on the list of operations, so runs with and without one can be compared.
    fewer = draw_dsa(("crop",), 9, 16, draw(1))
    assert torch.equal(one.shift, fewer.shift) and torch.equal(one.scale, fewer.scale)


def test_the_same_numbers_serve_single_precision():
    images, numbers = normalised(30), draw_dsa(ALL, 30, 16, draw())
    result = dsa(images.float(), numbers)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), dsa(images, numbers), atol=1e-5, rtol=0)
