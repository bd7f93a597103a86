"""RandAugment: every operation against Pillow, the whole against torchvision, its draws."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import ceil

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from scdd.augment import randaugment, random_steps
from scdd.augment.randaugment import OPERATIONS, steps_in_range
from tests.augment.conftest import SIGNIFICANCE, draw

NAMES = list(OPERATIONS)


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix)


def enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance], p: int):
    return lambda image: kind(image).enhance(1 + p / 100)


PILLOW: dict[str, Callable[[int], Callable[[Image.Image], Image.Image]]] = {
    "identity": lambda p: lambda image: image,
    "shear_x": lambda p: affine(1, p / 100, 0, 0, 1, 0),
    "shear_y": lambda p: affine(1, 0, 0, p / 100, 1, 0),
    "translate_x": lambda p: affine(1, 0, -p, 0, 1, 0),
    "translate_y": lambda p: affine(1, 0, 0, 0, 1, -p),
    "rotate": lambda p: lambda image: image.rotate(p),
    "brightness": lambda p: enhanced(ImageEnhance.Brightness, p),
    "colour": lambda p: enhanced(ImageEnhance.Color, p),
    "contrast": lambda p: enhanced(ImageEnhance.Contrast, p),
    "sharpness": lambda p: enhanced(ImageEnhance.Sharpness, p),
    "posterise": lambda p: lambda image: ImageOps.posterize(image, p),
    "solarise": lambda p: lambda image: ImageOps.solarize(image, p),
    "autocontrast": lambda p: ImageOps.autocontrast,
    "equalise": lambda p: ImageOps.equalize,
}
CASES = [
    (name, parameter)
    for name, parameters in {
        "identity": [0],
        "shear_x": [-100, -30, -9, 1, 4, 9, 30],
        "shear_y": [-100, -20, -9, 1, 4, 20, 30],
        "translate_x": [-32, -4, 1, 14, 32],
        "translate_y": [-32, -4, 1, 14, 32],
        "rotate": [-180, -90, -30, -9, 1, 9, 30, 77],
        "brightness": [-100, -90, -27, 3, 27, 90, 100],
        "colour": [-100, -90, -27, 3, 27, 90, 100],
        "contrast": [-100, -90, -27, 3, 27, 90, 100],
        "sharpness": [-100, -90, -27, 3, 27, 90, 100],
        "posterise": [1, 4, 7, 8],
        "solarise": [0, 1, 128, 179, 255],
        "autocontrast": [0],
        "equalise": [0],
    }.items()
    for parameter in parameters
]
ROUNDED = {"brightness", "colour", "contrast", "sharpness", "autocontrast"}
"""Pillow cuts numbers in floating point: where the exact one is whole, one level may be lost.

Not by blends of -100, which are all base.
"""


@pytest.fixture(scope="module")
def images(photo: Tensor) -> Tensor:
    """A photograph in three exposures, noise, few values, one value: uint8 [6, 3, 32, 48]."""
    part = photo[..., 10:42, 8:56]
    some = torch.rand(1, 3, 32, 48, generator=draw())
    pale, few, one = 0.3 + 0.3 * part, (4 * some).floor() / 4, torch.full_like(part, 0.4)
    dark = part**3
    return (torch.cat([part, pale, dark, some, few, one]) * 255).round().to(torch.uint8)


def applied(images: Tensor, name: str, parameter: int) -> Tensor:
    step = torch.tensor([[NAMES.index(name), parameter]], dtype=torch.int16)
    return randaugment(images, step.expand(len(images), 1, 2))


def every_step(size: int, magnitude: int) -> Tensor:
    """Each operation with each sign: int16 [23, 1, 2]."""
    drawn = random_steps(4000, 1, magnitude, size, draw())
    return drawn.unique(dim=0)


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_an_operation_is_pillows(images: Tensor, name: str, parameter: int):
    shown = applied(images, name, parameter).permute(0, 2, 3, 1).int()
    change = PILLOW[name](parameter)
    photos = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    wanted = torch.from_numpy(np.stack([np.asarray(change(photo)) for photo in photos])).int()
    difference = (shown - wanted).abs()
    if name == "rotate":  # Pillow's sums of rounded steps lie up to 1/1000 pixel beside ours
        assert (difference > 0).float().mean() < 2e-3
    else:
        assert difference.max() <= (1 if name in ROUNDED and parameter != -100 else 0)
        assert (difference > 0).float().mean() < 0.05


def test_a_blend_is_cut_where_exact_arithmetic_cuts_it():
    x = torch.arange(256)
    grey = x.to(torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    for parameter in range(-100, 101):
        # The mean of 0 .. 255 is 127.5, and a half is rounded up.
        for name, base in (("brightness", 0), ("contrast", 128)):
            wanted = ((100 * x + parameter * (x - base)) // 100).clamp(0, 255)
            found = applied(grey, name, parameter)
            assert all(torch.equal(channel.flatten().long(), wanted) for channel in found[0])
        assert torch.equal(applied(grey, "colour", parameter), grey)


# Strengths that fetch no pixel from the very border of two, where the libraries choose differently.
@pytest.mark.parametrize("magnitude", [3, 9, 25])
@pytest.mark.parametrize("size", [32, 61])
def test_steps_make_the_images_that_torchvision_makes(photo: Tensor, magnitude: int, size: int):
    image = (photo[0, :, :size, :size] * 255).round().to(torch.uint8)
    steps = every_step(size, magnitude)
    assert len(steps) == 23
    ours = randaugment(image.expand(23, -1, -1, -1), steps).int()
    theirs = v2.RandAugment(num_ops=1, magnitude=magnitude)
    met = set()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(300):
            difference = (ours - theirs(image).int()).abs().flatten(1)
            # The grey of torchvision is rounded down, and its rotations are float32.
            like = (difference > 1).float().mean(dim=1) < 2e-3
            assert like.any()
            met |= set(like.nonzero().flatten().tolist())
    assert met == set(range(23))


def test_operations_and_signs_are_uniform_and_independent():
    steps = random_steps(20_000, 2, 9, 32, draw())
    assert steps.dtype == torch.int16 and steps.shape == (20_000, 2, 2)
    pairs = Counter(map(tuple, steps[..., 0].tolist()))
    counts = [pairs[pair] for pair in product(range(14), repeat=2)]
    assert sum(counts) == 20_000 and stats.chisquare(counts).pvalue > SIGNIFICANCE
    number, parameter = steps.flatten(0, 1).unbind(dim=1)
    for name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "contrast"):
        found = parameter[number == NAMES.index(name)]
        assert len(found.abs().unique()) == 1
        share = stats.binomtest(int((found > 0).sum()), len(found), 0.5)
        assert share.pvalue > SIGNIFICANCE


def test_the_numbers_of_operations_are_those_of_the_format():
    steps = every_step(size=32, magnitude=9)[:, 0]
    found: dict[int, set[int]] = {}
    for number, parameter in steps.tolist():
        found.setdefault(number, set()).add(parameter)
    assert NAMES[10:] == ["posterise", "solarise", "autocontrast", "equalise"]
    # 0.09, 150/331 * 9/30 of 32 pixels, 9 degrees, 1 +- 0.27, 7 bits, 0.7 * 255 rounded up.
    assert found == {
        0: {0},
        **{number: {-9, 9} for number in [1, 2]},
        **{number: {-4, 4} for number in [3, 4]},
        5: {-9, 9},
        **{number: {-27, 27} for number in [6, 7, 8, 9]},
        10: {7},
        11: {179},
        12: {0},
        13: {0},
    }


def test_parameters_are_the_magnitudes_of_the_paper_on_images_of_any_size():
    for magnitude, size in product(range(31), (1, 8, 32, 64, 66, 224, 331, 662, 1000)):
        strength = Fraction(magnitude, 30)
        wanted = {
            "shear_x": strength * Fraction(3, 10) * 100,
            "translate_x": int(strength * size * Fraction(150, 331)),
            "rotate": strength * 30,
            "contrast": strength * Fraction(9, 10) * 100,
            "posterise": round(8 - 4 * strength),
            "solarise": ceil(255 * (1 - strength)),
        }
        for name, parameter in wanted.items():
            assert OPERATIONS[name].magnitude(magnitude, size) == parameter


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 7, 33, 120])
def test_an_image_alone_gets_the_bits_it_gets_in_a_batch(size: int, threads: int):
    torch.set_num_threads(threads)
    count = 40
    images = torch.randint(256, (count, 3, size, size), generator=draw(), dtype=torch.uint8)
    steps = random_steps(count, 3, 9, size, draw(1))
    together = randaugment(images, steps)
    assert together.dtype == torch.uint8 and together.shape == images.shape
    alone = [randaugment(images[k : k + 1], steps[k : k + 1]) for k in range(count)]
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(randaugment(images, steps), together)


def test_steps_come_one_after_the_other(images: Tensor):
    steps = random_steps(len(images), 2, 9, 32, draw(3))
    halves = randaugment(randaugment(images, steps[:, :1]), steps[:, 1:])
    assert torch.equal(randaugment(images, steps), halves)


def test_images_are_only_read(images: Tensor):
    before = images.clone()
    for name, parameter in CASES:
        applied(images, name, parameter)
    assert torch.equal(images, before)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("size", [1, 32, 331, 30_000])
def test_all_that_is_drawn_is_in_range(magnitude: int, size: int):
    assert steps_in_range(random_steps(500, 2, magnitude, size, draw()), size)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("identity", 0, 0),
        ("shear_x", -100, 100),
        ("translate_y", -32, 32),
        ("rotate", -180, 180),
        ("sharpness", -100, 100),
        ("posterise", 1, 8),
        ("solarise", 0, 255),
        ("equalise", 0, 0),
    ],
)
def test_a_parameter_has_a_range(name: str, low: int, high: int):
    for parameter in (low - 1, low, high, high + 1):
        step = torch.tensor([[[[NAMES.index(name), parameter]]]], dtype=torch.int16)
        assert steps_in_range(step, 32) == (low <= parameter <= high)


def test_operations_that_are_not_and_too_few_or_many_of_them_are_out_of_range():
    for number in (-32768, -1, 14, 32767):
        assert not steps_in_range(torch.tensor([[[number, 0]]], dtype=torch.int16), 32)
    for count in (0, 1, 16, 17):
        steps = torch.zeros(2, 3, count, 2, dtype=torch.int16)
        assert steps_in_range(steps, 32) == (1 <= count <= 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [7, 32, 64])
def test_a_gpu_gives_the_same_bits(size: int):
    images = torch.randint(256, (3000, 3, size, size), generator=draw(), dtype=torch.uint8)
    for magnitude in (1, 9, 30):
        steps = random_steps(3000, 2, magnitude, size, draw(magnitude))
        near = randaugment(images, steps)
        assert torch.equal(randaugment(images.cuda(), steps.cuda()).cpu(), near)
        assert torch.equal(randaugment(images.cuda(), steps).cpu(), near)
