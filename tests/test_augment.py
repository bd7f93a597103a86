"""Every operation on a batch against torchvision, its draws against the distributions promised."""

import colorsys
import itertools
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from scdd.augment import (
    adjust_hue,
    augment,
    chance,
    colour_jitter,
    denormalise,
    gaussian_blur,
    normalise,
    random_resized_boxes,
    resized_crop,
    to_grey,
    uniform,
)
from scdd.config.squeeze import AugmentConfig

# torchvision rounds the luma weight of red to 0.2989; ours is the standard's 0.299.
LUMA_ROUNDING = 2e-4
# A correct draw fails a test at this level once in a thousand seeds; the seeds here are fixed.
SIGNIFICANCE = 1e-3
ORDERS = list(itertools.permutations(range(4)))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=draw(seed), dtype=dtype)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Return a real photograph: float32 [1, 3, 64, 64]."""
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    return TF.resize(image[..., :427], [64, 64], antialias=True)


def only(**changes: float | tuple[float, float]) -> AugmentConfig:
    """Return a configuration that changes nothing but what is named."""
    chances = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    return AugmentConfig.model_validate({"crop_scale": (1.0, 1.0)} | chances | strengths | changes)


def is_binomial(hits: int, count: int, probability: float) -> bool:
    return stats.binomtest(hits, count, probability).pvalue > SIGNIFICANCE


# Crop


@st.composite
def crops(draw_from: st.DrawFn) -> tuple[int, int, list[int], int, bool]:
    height, width = draw_from(st.integers(1, 40)), draw_from(st.integers(1, 40))
    box_h, box_w = draw_from(st.integers(1, height)), draw_from(st.integers(1, width))
    top = draw_from(st.integers(0, height - box_h))
    left = draw_from(st.integers(0, width - box_w))
    size, flip = draw_from(st.integers(1, 48)), draw_from(st.booleans())
    return height, width, [top, left, box_h, box_w], size, flip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(crops())
def test_a_crop_is_torchvisions_antialiased_resized_crop(crop):
    height, width, box, size, flip = crop
    image = noise(1, 3, height, width)
    expected = TF.resized_crop(image, *box, [size, size], antialias=True)
    expected = TF.horizontal_flip(expected) if flip else expected
    result = resized_crop(image, torch.tensor([box]), size, torch.tensor([flip]))
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (24, 90), (90, 24)])
@pytest.mark.parametrize("size", [32, 8])
def test_each_image_of_a_batch_gets_its_own_box_and_flip(height, width, size):
    images = noise(12, 3, height, width)
    boxes = random_resized_boxes(12, height, width, (0.1, 1.0), draw(1))
    flip = torch.arange(12) % 2 == 0
    one_by_one = [
        TF.resized_crop(image, *box, [size, size], antialias=True)
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    expected = torch.stack(
        [TF.horizontal_flip(x) if f else x for x, f in zip(one_by_one, flip, strict=True)]
    )
    result = resized_crop(images, boxes, size, flip)
    assert result.shape == (12, 3, size, size)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [11, 20, 45])
@pytest.mark.parametrize(
    "box",
    [
        [-4, -4, 20, 30],
        [4, 4, 20, 30],
        [-7, 9, 20, 30],
        [15, -25, 12, 30],
        [-3, 5, 8, 8],
        [19, 29, 5, 6],
        [20, 30, 6, 6],
        [-50, 0, 20, 30],
    ],
)
def test_a_box_that_leaves_the_image_reads_zeros_there(box, size):
    image = noise(2, 3, 20, 30)
    top, left, height, width = box
    padded = TF.pad(image, [60, 60, 60, 60], fill=0)
    expected = TF.resized_crop(
        padded, top + 60, left + 60, height, width, [size, size], antialias=True
    )
    result = resized_crop(image, torch.tensor([box]), size)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


def test_a_shift_by_whole_pixels_copies_pixels():
    image = noise(1, 3, 16, 16)
    expected = TF.crop(TF.pad(image, [3, 3, 3, 3]), 0, 6, 16, 16)
    result = resized_crop(image, torch.tensor([[-3, 3, 16, 16]]), 16)
    assert torch.equal(result, expected)


def test_one_box_and_one_flip_serve_the_whole_batch():
    images = noise(5, 3, 20, 20)
    box, mirrored = torch.tensor([[2, 3, 11, 7]]), torch.tensor([True])
    expected = resized_crop(images, box.expand(5, 4), 9, mirrored.expand(5))
    assert torch.equal(resized_crop(images, box, 9, mirrored), expected)
    some = torch.tensor([True, False, True, False, False])
    mixed = torch.where(some[:, None, None, None], expected, TF.horizontal_flip(expected))
    torch.testing.assert_close(resized_crop(images, box, 9, some), mixed)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels_is_cropped_alike(channels):
    images = noise(2, channels, 10, 14)
    result = resized_crop(images, torch.tensor([[1, 2, 8, 9]]), 6)
    expected = TF.resized_crop(images, 1, 2, 8, 9, [6, 6], antialias=True)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


def test_the_gradient_of_a_crop_is_exact():
    images = noise(3, 2, 6, 7, dtype=torch.float64).requires_grad_(True)
    boxes = torch.tensor([[0, 0, 6, 7], [1, 2, 3, 4], [-2, 3, 5, 6]])
    flip = torch.tensor([False, True, True])
    for size in (4, 9):
        assert torch.autograd.gradcheck(lambda x, s=size: resized_crop(x, boxes, s, flip), images)


def test_the_gradient_of_a_crop_is_torchvisions():
    ours = noise(1, 3, 32, 32).requires_grad_(True)
    theirs = ours.detach().clone().requires_grad_(True)
    towards = noise(1, 3, 20, 20, seed=1)
    (resized_crop(ours, torch.tensor([[3, 5, 25, 19]]), 20) * towards).sum().backward()
    expected = TF.resized_crop(theirs, 3, 5, 25, 19, [20, 20], antialias=True)
    (expected * towards).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=0)


# Boxes


def torchvision_boxes(count: int, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.tensor(
            [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
        )


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (224, 224, (0.08, 1.0)),
        (32, 32, (0.2, 1.0)),
        (90, 160, (0.3, 1.0)),
        (160, 90, (0.7, 0.9)),
        (100, 30, (0.1, 1.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    ours = random_resized_boxes(3000, height, width, scale, draw()).double()
    theirs = torchvision_boxes(3000, height, width, scale).double()
    # Area, aspect, and where the box lies in the room it has.
    for measure in (
        lambda b: b[:, 2] * b[:, 3] / (height * width),
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0] / (height - b[:, 2] + 1),
        lambda b: b[:, 1] / (width - b[:, 3] + 1),
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > SIGNIFICANCE


def test_area_is_uniform_and_aspect_log_uniform_where_every_try_fits():
    boxes = random_resized_boxes(5000, 1000, 1000, (0.1, 0.5), draw()).double()
    share = boxes[:, 2] * boxes[:, 3] / 1e6
    aspect = (boxes[:, 3] / boxes[:, 2]).log()
    bound = math.log(4 / 3)
    assert stats.kstest(share, stats.uniform(0.1, 0.4).cdf).pvalue > SIGNIFICANCE
    assert stats.kstest(aspect, stats.uniform(-bound, 2 * bound).cdf).pvalue > SIGNIFICANCE
    assert 0.0985 < share.min() < 0.102 and 0.498 < share.max() < 0.5015
    assert abs(share.mean() - 0.3) < 0.005 and abs(aspect.mean()) < 0.01
    assert abs(stats.pearsonr(share, aspect).statistic) < 0.05


def test_every_position_a_box_may_take_is_equally_likely():
    boxes = random_resized_boxes(20000, 8, 8, (0.25, 0.25), draw())
    # A quarter of 64 pixels at an aspect near 1 is 4 by 4, which leaves 5 rows and 5 columns.
    square = boxes[(boxes[:, 2] == 4) & (boxes[:, 3] == 4)]
    cells = torch.bincount(square[:, 0] * 5 + square[:, 1], minlength=25)
    assert len(cells) == 25 and cells.sum() > 5000
    assert stats.chisquare(cells).pvalue > SIGNIFICANCE


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    scale=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted).map(tuple),
    seed=st.integers(0, 2**31),
)
def test_every_box_is_inside_the_image_and_not_empty(height, width, scale, seed):
    boxes = random_resized_boxes(64, height, width, scale, draw(seed))
    assert boxes.dtype == torch.int64 and boxes.shape == (64, 4)
    top, left, box_h, box_w = boxes.unbind(dim=1)
    assert min(top.min(), left.min()) >= 0 and min(box_h.min(), box_w.min()) >= 1
    assert (top + box_h).max() <= height and (left + box_w).max() <= width


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (401, 33), (7, 100)])
def test_where_no_try_fits_the_largest_centred_box_is_taken_as_by_torchvision(height, width):
    boxes = random_resized_boxes(32, height, width, (0.8, 1.0), draw())
    expected = torchvision_boxes(1, height, width, (0.8, 1.0))
    assert torch.equal(boxes, expected.expand(32, 4))


def test_a_whole_square_is_its_own_only_crop():
    boxes = random_resized_boxes(200, 32, 32, (1.0, 1.0), draw())
    assert boxes.unique(dim=0).tolist() == [[0, 0, 32, 32]]


def test_boxes_of_one_batch_differ():
    boxes = random_resized_boxes(256, 224, 224, (0.2, 1.0), draw())
    assert len(boxes.unique(dim=0)) == 256


# Colour


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


def test_grey_is_torchvisions_and_the_standards_luma(photo):
    expected = TF.rgb_to_grayscale(photo, num_output_channels=3)
    torch.testing.assert_close(to_grey(photo), expected, atol=LUMA_ROUNDING, rtol=0)
    colours = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    luma = to_grey(colours)[:, :, 0, 0]
    expected = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None].expand(3, 3)
    torch.testing.assert_close(luma, expected)


def factor_brightness(before: Tensor, after: Tensor) -> Tensor:
    """Read [B] factors off the darkest value of each image, which is never clamped."""
    dark = before.flatten(1).argmin(dim=1, keepdim=True)
    return (after.flatten(1).gather(1, dark) / before.flatten(1).gather(1, dark)).squeeze(1)


def factor_contrast(before: Tensor, after: Tensor) -> Tensor:
    """Read [B] factors off a value near the mean luma, which is never clamped."""
    away = (before - to_grey(before).mean(dim=(1, 2, 3), keepdim=True)).flatten(1)
    near = torch.where(away.abs() > 0.01, away.abs(), 9.0).argmin(dim=1, keepdim=True)
    return 1 + ((after - before).flatten(1).gather(1, near) / away.gather(1, near)).squeeze(1)


def factor_saturation(before: Tensor, after: Tensor) -> Tensor:
    """Read [B] factors off a value near its pixel's luma, which is never clamped."""
    away = (before - to_grey(before)).flatten(1)
    near = torch.where(away.abs() > 0.01, away.abs(), 9.0).argmin(dim=1, keepdim=True)
    return 1 + ((after - before).flatten(1).gather(1, near) / away.gather(1, near)).squeeze(1)


JITTERS = {
    "brightness": (factor_brightness, TF.adjust_brightness),
    "contrast": (factor_contrast, TF.adjust_contrast),
    "saturation": (factor_saturation, TF.adjust_saturation),
}


@pytest.mark.parametrize("strength", [0.4, 1.5])
@pytest.mark.parametrize("name", JITTERS)
def test_a_single_jitter_is_torchvisions_with_a_uniform_factor(photo, name, strength):
    images = photo[..., ::4, ::4].double().clamp(0.05, 1).expand(400, -1, -1, -1)
    result = colour_jitter(images, only(jitter=1.0, **{name: strength}), draw())
    read, reference = JITTERS[name]
    factors = read(images, result)
    expected = torch.stack(
        [reference(x, f) for x, f in zip(images, factors.clamp(min=0).tolist(), strict=True)]
    )
    torch.testing.assert_close(result, expected, atol=LUMA_ROUNDING, rtol=0)
    low = max(0.0, 1 - strength)
    law = stats.uniform(low, 1 + strength - low)
    assert stats.kstest(factors, law.cdf).pvalue > SIGNIFICANCE
    assert len(factors.unique()) > 395


def test_jitter_of_hue_alone_is_torchvisions_with_a_uniform_shift(photo):
    images = photo[..., ::4, ::4].double().expand(400, -1, -1, -1)
    result = colour_jitter(images, only(jitter=1.0, hue=0.3), draw())
    chroma = (images[0].amax(dim=0) - images[0].amin(dim=0)).flatten()
    vivid = chroma.argmax()
    start, *_ = colorsys.rgb_to_hsv(*images[0].flatten(1)[:, vivid].tolist())
    hues = [colorsys.rgb_to_hsv(*x.flatten(1)[:, vivid].tolist())[0] for x in result]
    shifts = (np.array(hues) - start + 0.5) % 1 - 0.5
    expected = torch.stack([TF.adjust_hue(x, s) for x, s in zip(images, shifts, strict=True)])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert stats.kstest(shifts, stats.uniform(-0.3, 0.6).cdf).pvalue > SIGNIFICANCE


def test_factors_of_different_operations_are_independent():
    count, pixels = 2000, noise(1, 3, 4, 4, dtype=torch.float64) * 0.3 + 0.2
    cfg = only(jitter=1.0, brightness=0.2, saturation=0.2)
    images = pixels.expand(count, -1, -1, -1)
    # Without clamping, saturation keeps the luma: its change is the brightness, in any order.
    result = colour_jitter(images, cfg, draw())
    luma = to_grey(result).mean(dim=(1, 2, 3)) / to_grey(images).mean(dim=(1, 2, 3))
    colour = (result - to_grey(result)).norm(dim=1).mean(dim=(1, 2)) / luma
    assert abs(stats.pearsonr(luma, colour).statistic) < 0.08


@pytest.mark.parametrize("jitter", [0.0, 0.3, 0.8, 1.0])
def test_jitter_strikes_the_share_of_images_it_should(jitter):
    images = noise(2000, 3, 3, 3) * 0.5 + 0.1
    result = colour_jitter(images, only(jitter=jitter, brightness=0.4), draw())
    hit = (result != images).flatten(1).any(dim=1)
    assert is_binomial(int(hit.sum()), 2000, jitter)
    assert torch.equal(result[~hit], images[~hit])


def test_an_image_that_jitter_spares_is_spared_by_every_operation():
    images = noise(2000, 3, 3, 3)
    cfg = only(jitter=0.4, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    change = (colour_jitter(images, cfg, draw()) - images).abs().flatten(1).amax(dim=1)
    spared = change < 1e-5
    assert is_binomial(int(spared.sum()), 2000, 0.6)
    assert change[~spared].min() > 1e-4


def test_jitter_of_strength_zero_changes_nothing():
    images = noise(4, 3, 5, 5)
    assert torch.equal(colour_jitter(images, only(jitter=1.0), draw()), images)


def jittered(image: Tensor, order: tuple[int, ...], settings: Tensor) -> Tensor:
    """Apply brightness, contrast, saturation, hue (0 .. 3) in `order`; settings [B, 4] -> [B, P].

    The operations themselves are compared with torchvision's above.
    """
    x = image.expand(len(settings), -1, -1, -1)
    for operation in order:
        if operation == 3:
            x = adjust_hue(x, settings[:, 3])
            continue
        grey = to_grey(x)
        base = [torch.zeros_like(grey), grey.mean(dim=(2, 3), keepdim=True), grey][operation]
        factor = settings[:, operation].view(-1, 1, 1, 1)
        x = (factor * x + (1 - factor) * base).clamp(0, 1)
    return x.flatten(1)


def misfit(image: Tensor, order: tuple[int, ...], seen: Tensor) -> Tensor:
    """Return [B]: how far the best factors leave this order from the pixels `seen` [B, P].

    Levenberg-Marquardt with a numerical derivative, all images at once.
    """
    eye = torch.eye(4, dtype=torch.float64)
    at = torch.tensor([[1.0, 1, 1, 0]], dtype=torch.float64).repeat(len(seen), 1)
    damping = torch.full((len(seen), 1, 1), 1e-3, dtype=torch.float64)
    error = jittered(image, order, at) - seen
    for _ in range(15):
        moved = [jittered(image, order, at + 1e-6 * axis) - seen for axis in eye]
        slope = (torch.stack(moved, dim=2) - error[..., None]) / 1e-6
        normal = slope.transpose(1, 2) @ slope + damping * eye
        step = torch.linalg.solve(normal, slope.transpose(1, 2) @ error[..., None]).squeeze(2)
        tried = jittered(image, order, at - step) - seen
        better = tried.norm(dim=1, keepdim=True) < error.norm(dim=1, keepdim=True)
        at, error = torch.where(better, at - step, at), torch.where(better, tried, error)
        damping = torch.where(better[..., None], damping / 10, damping * 10).clamp(1e-12, 1e3)
    return error.norm(dim=1)


@pytest.fixture(scope="module")
def order_shares() -> Tensor:
    """Return [480, 24]: to which orders of the four operations each jittered image is owed.

    Operations commute where nothing is clamped. Orders that give the same pixels share the image
    evenly, which leaves the expected share of every order at 1 / 24.
    """
    image = noise(1, 3, 4, 4, dtype=torch.float64)
    cfg = only(jitter=1.0, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.1)
    seen = colour_jitter(image.expand(480, -1, -1, -1), cfg, draw()).flatten(1)
    explains = torch.stack([misfit(image, order, seen) for order in ORDERS], dim=1) < 1e-9
    assert explains.any(dim=1).double().mean() > 0.97
    assert (explains.sum(dim=1) == 1).sum() > 100
    return explains / explains.sum(dim=1, keepdim=True).clamp(min=1)


def test_all_24_orders_of_the_jitter_are_equally_likely(order_shares):
    assert stats.chisquare(order_shares.sum(dim=0)).pvalue > SIGNIFICANCE


def test_the_place_of_hue_does_not_depend_on_the_row_of_the_batch(order_shares):
    places = torch.tensor([order.index(3) for order in ORDERS])
    for rows in order_shares.chunk(4):
        counts = [rows[:, places == place].sum().item() for place in range(4)]
        assert stats.chisquare(counts).pvalue > SIGNIFICANCE


# Grey, blur, normalisation, draws


@pytest.mark.parametrize("grey", [0.0, 0.2, 1.0])
def test_grey_strikes_the_share_of_images_it_should(grey):
    images = noise(2000, 3, 4, 4)
    result = augment(images, only(grey=grey), draw())
    hit = (result.amax(dim=1) - result.amin(dim=1)).flatten(1).amax(dim=1) < 1e-6
    assert is_binomial(int(hit.sum()), 2000, grey)
    torch.testing.assert_close(result[hit], to_grey(images)[hit], atol=1e-6, rtol=0)
    torch.testing.assert_close(result[~hit], images[~hit], atol=1e-6, rtol=0)


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_flips_strike_the_share_of_images_they_should(flip):
    images = noise(2000, 3, 4, 4)
    result = augment(images, only(flip=flip), draw())
    hit = (result - images.flip(3)).abs().flatten(1).amax(dim=1) < 1e-6
    assert is_binomial(int(hit.sum()), 2000, flip)
    torch.testing.assert_close(result[~hit], images[~hit], atol=1e-6, rtol=0)


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


def test_blur_is_per_image_and_passes_the_others_unchanged():
    images = noise(4, 3, 16, 16)
    sigma = torch.tensor([0.3, 0.9, 1.4, 2.0])
    pick = torch.tensor([True, False, True, False])
    result = gaussian_blur(images, sigma, pick)
    assert torch.equal(result[~pick], images[~pick])
    for index in (0, 2):
        width = sigma[index].item()
        expected = TF.gaussian_blur(images[index], [13, 13], [width, width])
        torch.testing.assert_close(result[index], expected, atol=1e-5, rtol=0)


def test_views_are_blurred_as_often_and_as_widely_as_configured():
    point = torch.zeros(1500, 3, 17, 17)
    point[:, :, 8, 8] = 1
    result = augment(point, only(blur=0.4, blur_sigma=(0.5, 2.0)), draw())[:, 0, 8].double()
    hit = result[:, 8] < 0.999
    assert is_binomial(int(hit.sum()), 1500, 0.4)
    # A Gaussian falls by exp(-1 / (2 sigma^2)) from its centre to the next pixel.
    sigma = (-0.5 / (result[hit, 9] / result[hit, 8]).log()).sqrt()
    assert stats.kstest(sigma, stats.uniform(0.5, 1.5).cdf).pvalue > SIGNIFICANCE


def test_normalising_is_torchvisions_and_can_be_undone():
    images, mean, std = noise(2, 3, 5, 6), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normal = normalise(images, mean, std)
    torch.testing.assert_close(normal, TF.normalize(images, list(mean), list(std)))
    torch.testing.assert_close(denormalise(normal, mean, std), images)


def test_draws_are_uniform_and_chances_keep_their_probability():
    values = uniform(5000, draw())
    assert values.shape == (5000,) and values.min() >= 0 and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > SIGNIFICANCE
    assert is_binomial(int(chance(5000, 0.37, draw()).sum()), 5000, 0.37)
    assert not chance(5000, 0.0, draw()).any() and chance(5000, 1.0, draw()).all()


# The whole view

EVERYTHING = AugmentConfig(blur=0.5)


def test_the_same_generator_state_gives_the_same_bits_and_the_next_state_others(photo):
    images = photo.expand(8, -1, -1, -1)
    generator = draw(3)
    state = generator.get_state()
    first, second = augment(images, EVERYTHING, generator), augment(images, EVERYTHING, generator)
    generator.set_state(state)
    assert torch.equal(augment(images, EVERYTHING, generator), first)
    assert torch.equal(augment(images, EVERYTHING, generator), second)
    assert not torch.equal(first, second)


def test_a_view_draws_from_its_generator_only(photo):
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        augment(photo, EVERYTHING, draw())
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("side", [1, 8, 33])
def test_views_keep_the_shape_and_the_range_of_the_images(count, side):
    strong = AugmentConfig(
        crop_scale=(0.05, 1), brightness=1.5, contrast=1.5, saturation=1.5, hue=0.5, blur=0.5
    )
    for images in (noise(count, 3, side, side), noise(count, 3, side, side).round()):
        before = images.clone()
        views = augment(images, strong, draw())
        assert views.shape == images.shape and views.dtype == images.dtype
        assert views.isfinite().all()
        assert views.min() >= -1e-5 and views.max() <= 1 + 1e-5
        assert torch.equal(images, before)


def test_two_views_of_one_photograph_differ(photo):
    generator = draw()
    images = photo.expand(64, -1, -1, -1)
    first = augment(images, AugmentConfig(), generator)
    second = augment(images, AugmentConfig(), generator)
    difference = (first - second).abs().mean(dim=(1, 2, 3))
    assert difference.mean() > 0.05 and difference.min() > 0.01


def test_every_image_of_a_batch_gets_a_view_of_its_own(photo):
    views = augment(photo.expand(64, -1, -1, -1), AugmentConfig(), draw()).flatten(1)
    apart = torch.cdist(views, views) + 1e3 * torch.eye(64)
    assert apart.min() > 0.5


def test_a_view_stays_in_its_own_row():
    levels = torch.linspace(0.1, 0.9, 16)
    images = levels.view(16, 1, 1, 1).expand(16, 3, 8, 8)
    views = augment(images, only(jitter=1.0, contrast=0.4, saturation=0.4, hue=0.1), draw())
    # A flat grey image is a fixed point of all three, so only a mix-up of rows can change it.
    torch.testing.assert_close(views, images, atol=1e-5, rtol=0)
