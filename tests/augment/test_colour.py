"""Every colour operation against torchvision, its draws against the distributions promised."""

import colorsys
from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Tensor

from scdd.augment import colour
from scdd.augment.colour import (
    SPARED,
    ColourDraw,
    adjust_hue,
    colour_jitter,
    draw_colours,
    gaussian_blur,
    solarise,
    to_grey,
)
from scdd.config.views import ViewConfig
from tests.augment.conftest import LUMA_ROUNDING, SIGNIFICANCE, draw, is_binomial, noise, only

EVERYTHING = ViewConfig(blur=0.5, solarise=0.3, grey=0.3, hue=0.5)
JITTERS = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
}


# Hue


@pytest.mark.parametrize("shift", [-1.7, -0.8, -0.5, -0.2, -1e-3, 0, 1e-3, 0.1, 0.3, 0.5, 0.6, 1.3])
def test_hue_turns_as_torchvisions(photo, shift):
    images = torch.cat([photo, noise(1, 3, 64, 64)]).double()
    wrapped = (shift + 0.5) % 1 - 0.5
    result = adjust_hue(images, torch.full((2,), shift, dtype=torch.float64))
    torch.testing.assert_close(result, TF.adjust_hue(images, wrapped), atol=1e-6, rtol=0)


def test_hue_is_per_image_and_a_whole_turn_changes_nothing():
    images = noise(6, 3, 8, 8)
    shift = torch.tensor([0.0, 1.0, -1.0, 0.25, -0.4, 0.5])
    expected = torch.stack(
        [TF.adjust_hue(x, (s + 0.5) % 1 - 0.5) for x, s in zip(images, shift.tolist(), strict=True)]
    )
    result = adjust_hue(images, shift)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(result[:3], images[:3], atol=1e-5, rtol=0)


def test_hue_leaves_grey_pixels_alone_and_turns_pure_colours():
    grey = torch.linspace(0, 1, 11).view(1, 1, 1, 11).expand(1, 3, 1, 11)
    assert torch.equal(adjust_hue(grey, torch.tensor([0.37])), grey)
    corners = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]])
    image = corners.double().t().view(1, 3, 1, 6)
    third = adjust_hue(image, torch.tensor([1 / 3], dtype=torch.float64))
    torch.testing.assert_close(third, image.roll(-2, dims=3), atol=1e-12, rtol=0)
    for shift in (-0.5, -0.2, 0.4):
        turned = adjust_hue(image, torch.tensor([shift]))
        torch.testing.assert_close(turned, TF.adjust_hue(image, shift), atol=1e-6, rtol=0)


@given(st.tuples(*[st.floats(0, 1, width=32)] * 3), st.floats(-0.5, 0.5, width=32))
def test_hue_of_any_colour_is_that_of_the_standard_library(rgb, shift):
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
    pixel = torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)
    result = adjust_hue(pixel, torch.tensor([shift], dtype=torch.float64))
    assert result.flatten().tolist() == pytest.approx(expected, abs=1e-9)


# Grey, solarise


def test_grey_is_torchvisions_and_the_standards_luma(photo):
    expected = TF.rgb_to_grayscale(photo, num_output_channels=3)
    torch.testing.assert_close(to_grey(photo), expected, atol=LUMA_ROUNDING, rtol=0)
    colours = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    luma = to_grey(colours)[:, :, 0, 0]
    expected = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None].expand(3, 3)
    torch.testing.assert_close(luma, expected)


def test_solarise_inverts_as_torchvision_does_the_256_levels_from_128_on():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = TF.solarize(levels, 128) / 255
    torch.testing.assert_close(solarise(levels / 255), expected, atol=1e-7, rtol=0)
    assert (solarise(levels / 255) * 255).round().max() == 127


def test_solarise_is_torchvisions_between_the_levels(photo):
    for images in (photo, noise(4, 3, 9, 9)):
        assert torch.equal(solarise(images), TF.solarize(images, 128 / 255))


# Blur


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 20), (31, 8)])
def test_blur_is_torchvisions_with_13_taps(height, width, sigma):
    images = noise(2, 3, height, width)
    expected = TF.gaussian_blur(images, [13, 13], [sigma, sigma])
    result = gaussian_blur(images, torch.full((2,), sigma))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (4, 6), (5, 9)])
def test_borders_are_mirrored_again_and_again_in_an_image_smaller_than_the_blur(height, width):
    image = noise(1, 3, height, width, dtype=torch.float64)
    blurred = image.numpy()
    for axis in (2, 3):
        blurred = ndimage.gaussian_filter1d(blurred, 1.7, axis=axis, mode="mirror", radius=6)
    result = gaussian_blur(image, torch.tensor([1.7], dtype=torch.float64))
    torch.testing.assert_close(result, torch.from_numpy(blurred), atol=1e-12, rtol=0)


def test_blur_is_per_image():
    images, sigma = noise(4, 3, 16, 16), [0.3, 0.9, 1.4, 2.0]
    result = gaussian_blur(images, torch.tensor(sigma))
    for image, width, blurred in zip(images, sigma, result, strict=True):
        expected = TF.gaussian_blur(image, [13, 13], [width, width])
        torch.testing.assert_close(blurred, expected, atol=1e-5, rtol=0)


# Jitter


@pytest.mark.parametrize("strength", [0.4, 1.5])
@pytest.mark.parametrize("name", JITTERS)
def test_a_single_jitter_is_torchvisions_with_a_uniform_factor(photo, name, strength):
    images = photo[..., ::4, ::4].double().expand(400, -1, -1, -1)
    drawn = draw_colours(only(jitter=1.0, **{name: strength}), 400, draw())
    factors = drawn.factors[:, list(JITTERS).index(name)]
    expected = [JITTERS[name](x, f) for x, f in zip(images, factors.tolist(), strict=True)]
    result = colour_jitter(images, drawn)
    torch.testing.assert_close(result, torch.stack(expected), atol=LUMA_ROUNDING, rtol=0)
    low = max(0.0, 1 - strength)
    assert stats.kstest(factors, stats.uniform(low, 1 + strength - low).cdf).pvalue > SIGNIFICANCE
    assert len(factors.unique()) > 395


def test_jitter_of_hue_alone_is_torchvisions_with_a_uniform_shift(photo):
    images = photo[..., ::4, ::4].double().expand(400, -1, -1, -1)
    drawn = draw_colours(only(jitter=1.0, hue=0.3), 400, draw())
    expected = [TF.adjust_hue(x, s) for x, s in zip(images, drawn.shift.tolist(), strict=True)]
    result = colour_jitter(images, drawn)
    torch.testing.assert_close(result, torch.stack(expected), atol=1e-5, rtol=0)
    assert stats.kstest(drawn.shift, stats.uniform(-0.3, 0.6).cdf).pvalue > SIGNIFICANCE


def order_of(drawn: ColourDraw, row: int) -> list[str]:
    """Names of the four operations of an image as they come."""
    order = [list(JITTERS)[kind] for kind in drawn.order[row].tolist()]
    order.insert(int(drawn.hue_place[row]), "hue")
    return order


def by_torchvision(image: Tensor, drawn: ColourDraw, row: int) -> Tensor:
    """Jitter, grey and blur one image [3, H, W] with its draws, by torchvision's functions."""
    if drawn.hue_place[row] != SPARED:
        factors = dict(zip(JITTERS, drawn.factors[row].tolist(), strict=True))
        for name in order_of(drawn, row):
            if name == "hue":
                image = TF.adjust_hue(image, drawn.shift[row].item())
            else:
                image = JITTERS[name](image, factors[name])
    if drawn.grey[row]:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if drawn.sigma[row] > 0:
        image = TF.gaussian_blur(image, [13, 13], [drawn.sigma[row].item()] * 2)
    return image


@pytest.mark.parametrize("cfg", [EVERYTHING, ViewConfig(brightness=0.8, contrast=0.8, hue=0.2)])
def test_a_batch_is_what_torchvision_makes_image_by_image_of_the_same_draws(photo, cfg):
    noisy = noise(100, 3, 32, 32)
    images = torch.cat([photo[..., ::2, ::2].expand(100, -1, -1, -1), noisy]).double()
    drawn = draw_colours(cfg, 200, draw())
    plain = drawn._replace(solarise=torch.zeros(200, dtype=torch.bool))
    expected = torch.stack([by_torchvision(x, drawn, row) for row, x in enumerate(images)])
    result = colour(images, plain)
    # The luma's rounding, magnified by what comes after.
    torch.testing.assert_close(result, expected, atol=8 * LUMA_ROUNDING, rtol=0)
    assert (result - expected).abs().mean() < LUMA_ROUNDING / 4
    # Solarising is a jump, so it is compared on the same pixels: it comes last.
    solarised = TF.solarize(result, 128 / 255)
    result = torch.where(drawn.solarise[:, None, None, None], solarised, result)
    assert torch.equal(colour(images, drawn), result)


def test_all_24_orders_of_the_jitter_are_equally_likely_in_every_part_of_the_batch():
    drawn = draw_colours(only(jitter=1.0, hue=0.1), 9600, draw())
    for rows in torch.arange(9600).chunk(4):
        counts = Counter(tuple(order_of(drawn, row)) for row in rows.tolist())
        assert len(counts) == 24
        assert stats.chisquare(list(counts.values())).pvalue > SIGNIFICANCE


def test_what_is_drawn_for_an_image_is_independent():
    drawn = draw_colours(EVERYTHING, 4000, draw())
    columns = [drawn.shift, *drawn.factors.T, drawn.grey, drawn.sigma, drawn.solarise]
    columns += [drawn.hue_place, *drawn.order.T[:2]]
    table = np.corrcoef(torch.stack([column.double() for column in columns]).numpy())
    table[-2, -1] = table[-1, -2] = 0  # Two places of one order do depend on each other.
    assert np.abs(table - np.eye(len(columns))).max() < 0.07
    earlier = np.corrcoef(drawn.shift[1:], drawn.shift[:-1])[0, 1]
    assert abs(earlier) < 0.07


# How often


def hit(result: Tensor, images: Tensor) -> Tensor:
    """Which images [B] are not the same bits any more."""
    return (result != images).flatten(1).any(dim=1)


SINGLE = {
    "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grey": {},
    "blur": {"blur_sigma": (0.5, 2.0)},
    "solarise": {},
}


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", SINGLE)
def test_an_operation_strikes_the_share_of_images_it_should_and_no_bit_of_the_others(
    name, probability
):
    images = noise(2000, 3, 8, 8)
    before = images.clone()
    drawn = draw_colours(only(**{name: probability}, **SINGLE[name]), 2000, draw())
    struck = hit(colour(images, drawn), images)
    assert is_binomial(int(struck.sum()), 2000, probability)
    chosen = {
        "jitter": drawn.hue_place != SPARED,
        "grey": drawn.grey,
        "blur": drawn.sigma > 0,
        "solarise": drawn.solarise,
    }
    assert torch.equal(struck, chosen.pop(name))
    assert not any(other.any() for other in chosen.values())
    assert torch.equal(images, before)


def test_an_image_that_no_operation_strikes_passes_all_of_them_bit_for_bit():
    images = noise(1000, 3, 8, 8)
    wide = {"jitter": 0.4, "blur_sigma": (0.5, 2.0)}  # A blur of 0.1 px changes no bit.
    drawn = draw_colours(EVERYTHING.model_copy(update=wide), 1000, draw())
    spared = (drawn.hue_place == SPARED) & ~drawn.grey & (drawn.sigma == 0) & ~drawn.solarise
    assert 50 < spared.sum() < 250
    assert torch.equal(hit(colour(images, drawn), images), ~spared)


def test_jitter_of_strength_zero_changes_nothing():
    images = noise(4, 3, 5, 5)
    assert torch.equal(colour(images, draw_colours(only(jitter=1.0), 4, draw())), images)


def test_the_width_of_the_blur_is_uniform_and_read_off_the_picture_of_a_point():
    point = torch.zeros(1500, 3, 17, 17)
    point[:, :, 8, 8] = 1
    drawn = draw_colours(only(blur=0.4, blur_sigma=(0.5, 2.0)), 1500, draw())
    row = colour(point, drawn)[:, 0, 8].double()
    blurred = row[:, 8] < 0.999
    # A Gaussian falls by exp(-1 / (2 sigma^2)) from its centre to the next pixel.
    sigma = (-0.5 / (row[blurred, 9] / row[blurred, 8]).log()).sqrt()
    assert stats.kstest(sigma, stats.uniform(0.5, 1.5).cdf).pvalue > SIGNIFICANCE
    torch.testing.assert_close(sigma, drawn.sigma[blurred].double(), atol=1e-4, rtol=0)


def test_a_change_of_one_probability_moves_no_other_draw():
    base = draw_colours(EVERYTHING, 200, draw())
    for name, touched in (
        ("jitter", {"hue_place"}),
        ("grey", {"grey"}),
        ("blur", {"sigma"}),
        ("solarise", {"solarise"}),
    ):
        for probability in (0.0, 1.0):
            cfg = EVERYTHING.model_copy(update={name: probability})
            changed = draw_colours(cfg, 200, draw())
            moved = {
                field
                for field in ColourDraw._fields
                if not torch.equal(getattr(base, field), getattr(changed, field))
            }
            assert moved == touched


def test_a_flat_grey_image_is_a_fixed_point_of_contrast_saturation_and_hue():
    levels = torch.linspace(0.1, 0.9, 16)
    images = levels.view(16, 1, 1, 1).expand(16, 3, 8, 8)
    cfg = only(jitter=1.0, contrast=0.4, saturation=0.4, hue=0.1)
    # Only a mix-up of rows could change it.
    result = colour(images, draw_colours(cfg, 16, draw()))
    torch.testing.assert_close(result, images, atol=1e-5, rtol=0)
