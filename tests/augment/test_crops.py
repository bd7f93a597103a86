"""Crops against torchvision's, and their boxes against the distributions promised."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from scdd.augment import chance, random_resized_boxes, resized_crop, shifted, uniform
from scdd.augment.crops import ATTEMPTS, boxes_from
from tests.augment.conftest import SIGNIFICANCE, draw, is_binomial, noise

side = st.integers(1, 300)
scales = st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(lambda pair: tuple(sorted(pair)))


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


def test_a_shifted_image_is_padded_with_black_and_cut_as_torchvision_does():
    images, corners = noise(4, 3, 9, 9), torch.tensor([[0, 0], [-3, 2], [3, -3], [1, 3]])
    flip = torch.tensor([False, True, False, True])
    padded = TF.pad(images, [3])
    for image, corner, mirrored, found in zip(
        padded, corners, flip, shifted(images, corners, flip), strict=True
    ):
        top, left = (corner + 3).tolist()
        expected = TF.crop(image, top, left, 9, 9)
        assert torch.equal(found, TF.horizontal_flip(expected) if mirrored else expected)


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


def are_distributed_as_torchvisions(
    boxes: Tensor, height: int, width: int, scale: tuple[float, float]
) -> bool:
    ours = boxes.double()
    theirs = torchvision_boxes(len(boxes), height, width, scale).double()
    # Area, aspect, and where the box lies in the room it has.
    measures = (
        lambda b: b[:, 2] * b[:, 3] / (height * width),
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0] / (height - b[:, 2] + 1),
        lambda b: b[:, 1] / (width - b[:, 3] + 1),
    )
    return all(stats.ks_2samp(m(ours), m(theirs)).pvalue > SIGNIFICANCE for m in measures)


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
    boxes = random_resized_boxes(3000, height, width, scale, draw())
    assert are_distributed_as_torchvisions(boxes, height, width, scale)


def test_in_a_batch_of_mixed_sizes_each_has_the_boxes_of_its_own():
    sizes = torch.tensor([[224, 224], [90, 160], [160, 90], [33, 32]])
    scale = (0.2, 1.0)
    uniforms = torch.rand(4, 8000, ATTEMPTS, generator=draw())
    boxes = boxes_from(uniforms, sizes.repeat(2000, 1), scale)
    for number, (height, width) in enumerate(sizes.tolist()):
        assert are_distributed_as_torchvisions(boxes[number::4], height, width, scale)


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
    height=side,
    width=side,
    scale=scales,
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


def box_by_hand(
    uniforms: Tensor,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> list[int]:
    """Try box after box of one image, [4, ATTEMPTS] draws, in Python's numbers."""
    low, high = map(math.log, ratio)
    for area, aspect, top, left in uniforms.T.tolist():
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(low + (high - low) * aspect)
        box_w, box_h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < box_w <= width and 0 < box_h <= height:
            rooms = height - box_h + 1, width - box_w + 1
            return [int(top * rooms[0]), int(left * rooms[1]), box_h, box_w]
    box_h, box_w = height, width
    if width < ratio[0] * height:
        box_h = round(width / ratio[0])
    elif width > ratio[1] * height:
        box_w = round(height * ratio[1])
    return [(height - box_h) // 2, (width - box_w) // 2, box_h, box_w]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.tuples(side, side), min_size=1, max_size=20),
    scale=scales,
    ratio=st.tuples(st.floats(0.2, 1), st.floats(1, 5)),
    seed=st.integers(0, 2**31),
)
def test_boxes_of_mixed_sizes_are_those_found_by_trying_one_after_the_other(
    sizes, scale, ratio, seed
):
    uniforms = torch.rand(4, len(sizes), ATTEMPTS, generator=draw(seed), dtype=torch.float64)
    boxes = boxes_from(uniforms, torch.tensor(sizes), scale, ratio)
    expected = [
        box_by_hand(uniforms[:, row], height, width, scale, ratio)
        for row, (height, width) in enumerate(sizes)
    ]
    assert boxes.tolist() == expected


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes=st.lists(st.tuples(side, side), min_size=1, max_size=20), scale=scales)
def test_a_box_does_not_depend_on_the_sizes_of_the_other_images(sizes, scale):
    uniforms = torch.rand(4, len(sizes), ATTEMPTS, generator=draw())
    together = boxes_from(uniforms, torch.tensor(sizes), scale)
    for row, size in enumerate(sizes):
        everywhere = boxes_from(uniforms, torch.tensor([size]), scale)
        assert torch.equal(together[row], everywhere[row])


# Draws


def test_draws_are_uniform_and_chances_keep_their_probability():
    values = uniform(5000, draw())
    assert values.shape == (5000,) and values.min() >= 0 and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > SIGNIFICANCE
    assert is_binomial(int(chance(5000, 0.37, draw()).sum()), 5000, 0.37)
    assert not chance(5000, 0.0, draw()).any() and chance(5000, 1.0, draw()).all()
