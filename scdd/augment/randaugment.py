"""RandAugment (arXiv:1909.13719) in whole numbers: drawn as pairs that say all, and replayed.

A step is a pair of int16: the number of an operation, its place in `OPERATIONS`, and its parameter
in the unit given there. Operations are Pillow's, and the list and its magnitudes are those of
torchvision's RandAugment: nearest pixel, black where there is none. As all sums are exact, a step
gives the same bits in any batch, on any device and beside any version of those libraries.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MAX_STEPS = 16
"""Largest number of operations that an image may go through."""
LEVELS = 255
ONE = 1 << 16
"""The number one in fixed point: coordinates are computed in 1/65536 of a pixel, as by Pillow."""
GREY = (19595, 38470, 7471)
"""Luma (ITU-R 601) in fixed point, as by Pillow."""


class Operation(NamedTuple):
    """What a step does, and between which parameters."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """From images uint8 [B, 3, H, W] and parameters int64 [B] on their device to new images."""
    magnitude: Callable[[int, int], int]
    """From a magnitude 0 .. 30 and the side of the images in pixels to the parameter."""
    signed: bool = False
    """Whether a random half of the parameters is negated."""
    low: int = 0
    high: int | None = 0
    """Smallest and largest parameter; no `high`: the side of the image, either way."""


def random_steps(
    images: int, count: int, magnitude: int, size: int, generator: torch.Generator
) -> Tensor:
    """Draw int16 [images, count, 2]: each step uniform over the operations, signs at random.

    Args:
        images: how many.
        count: operations an image goes through, one after the other.
        magnitude: 0 .. 30, the strength of all of them.
        size: side of the images in pixels, which the translations are a share of.
        generator: on the CPU.
    """
    operations = OPERATIONS.values()
    number = torch.randint(len(operations), (images, count), generator=generator)
    negative = torch.randint(2, (images, count), generator=generator).bool()
    parameters = torch.tensor([each.magnitude(magnitude, size) for each in operations])[number]
    signed = torch.tensor([each.signed for each in operations])[number]
    parameters = torch.where(signed & negative, -parameters, parameters)
    return torch.stack([number, parameters], dim=-1).to(torch.int16)


def steps_in_range(steps: Tensor, size: int) -> bool:
    """Whether int16 [..., count, 2] are 1 to 16 known operations within their parameters' ranges.

    `size` is the side of the images in pixels.
    """
    if not 1 <= steps.shape[-2] <= MAX_STEPS:
        return False
    number, parameter = steps.int().unbind(dim=-1)
    if not ((number >= 0) & (number < len(OPERATIONS))).all():
        return False
    ranges = [
        (-size, size) if each.high is None else (each.low, each.high)
        for each in OPERATIONS.values()
    ]
    low, high = torch.tensor(ranges, device=steps.device).unbind(dim=1)
    index = number.long()
    return bool(((parameter >= low[index]) & (parameter <= high[index])).all())


def randaugment(images: Tensor, steps: Tensor) -> Tensor:
    """Take each image through its own steps.

    Args:
        images: uint8 [B, 3, H, W].
        steps: int16 [B, count, 2], valid ones; where they are on a device, it is waited for.

    Returns:
        uint8 [B, 3, H, W].
    """
    for step in steps.cpu().long().unbind(dim=1):
        number, order = step[:, 0].sort(stable=True)
        counts = number.bincount(minlength=len(OPERATIONS)).tolist()
        parameters = step[order, 1].to(images.device, non_blocking=True)
        rows = order.to(images.device, non_blocking=True)
        parts = zip(
            OPERATIONS.values(), images[rows].split(counts), parameters.split(counts), strict=True
        )
        done = [each.apply(part, parameter) for each, part, parameter in parts if len(part) > 0]
        images = torch.empty_like(images).index_copy_(0, rows, torch.cat(done))
    return images


def _identity(images: Tensor, _: Tensor) -> Tensor:
    return images


def _shear_x(images: Tensor, parameter: Tensor) -> Tensor:
    return _moved(images, across=(ONE, *_slope(parameter)))


def _shear_y(images: Tensor, parameter: Tensor) -> Tensor:
    slope, start = _slope(parameter)
    return _moved(images, down=(slope, ONE, start))


def _translate_x(images: Tensor, parameter: Tensor) -> Tensor:
    return _moved(images, across=(ONE, 0, -ONE * parameter))


def _translate_y(images: Tensor, parameter: Tensor) -> Tensor:
    return _moved(images, down=(0, ONE, -ONE * parameter))


def _rotate(images: Tensor, parameter: Tensor) -> Tensor:
    height, width = images.shape[2:]
    turns = _turns().to(images.device, non_blocking=True)
    cosine, sine = turns[parameter + 180].unbind(dim=1)
    # Twice the place of the centre of the pixel at the top left.
    column = ONE * width - cosine * (width - 1) + sine * (height - 1)
    row = ONE * height - sine * (width - 1) - cosine * (height - 1)
    return _moved(images, across=(cosine, -sine, column >> 1), down=(sine, cosine, row >> 1))


def _brightness(images: Tensor, parameter: Tensor) -> Tensor:
    return _looked_up(images, _blend(_levels(images), 0, parameter.view(-1, 1, 1)))


def _colour(images: Tensor, parameter: Tensor) -> Tensor:
    return _blend(images.float(), _grey(images), parameter.view(-1, 1, 1, 1))


def _contrast(images: Tensor, parameter: Tensor) -> Tensor:
    pixels = images.shape[2] * images.shape[3]
    mean = (2 * _grey(images).sum(dim=(1, 2, 3), dtype=torch.int64) + pixels) // (2 * pixels)
    base = mean.float().view(-1, 1, 1)
    return _looked_up(images, _blend(_levels(images), base, parameter.view(-1, 1, 1)))


def _sharpness(images: Tensor, parameter: Tensor) -> Tensor:
    """Blend with the mean of 3 x 3 pixels, the own one five times; the border stays as it is."""
    x = images.float()
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[..., 1:-1, 1:-1]
    smooth = x.clone()
    smooth[..., 1:-1, 1:-1] = (total / 13).round()
    return _blend(x, smooth, parameter.view(-1, 1, 1, 1))


def _posterise(images: Tensor, parameter: Tensor) -> Tensor:
    dropped = (8 - parameter).view(-1, 1, 1, 1).to(torch.uint8)
    return images >> dropped << dropped


def _solarise(images: Tensor, parameter: Tensor) -> Tensor:
    levels = _levels(images)
    table = torch.where(levels >= parameter.view(-1, 1, 1), LEVELS - levels, levels)
    return _looked_up(images, table.to(torch.uint8))


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel from its darkest and brightest value to 0 and 255."""
    low, high = (extreme.long()[..., None] for extreme in images.flatten(2).aminmax(dim=2))
    levels = _levels(images).long()
    table = (levels - low) * LEVELS // (high - low).clamp(min=1)
    table = torch.where(high > low, table.clamp(0, LEVELS), levels)
    return _looked_up(images, table.to(torch.uint8))


def _equalise(images: Tensor, _: Tensor) -> Tensor:
    """Spread each channel's values so that each step up holds about as many pixels."""
    pixels = images.flatten(2).long()
    levels = _levels(images).long()
    histogram = pixels.new_zeros(*images.shape[:2], LEVELS + 1)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels))
    brightest = histogram.gather(2, pixels.amax(dim=2, keepdim=True))
    step = (pixels.shape[2] - brightest) // LEVELS
    below = histogram.cumsum(dim=2) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=LEVELS)
    return _looked_up(images, torch.where(step > 0, table, levels).to(torch.uint8))


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(_identity, lambda m, size: 0),
    "shear_x": Operation(_shear_x, lambda m, size: m, True, -100, 100),
    "shear_y": Operation(_shear_y, lambda m, size: m, True, -100, 100),
    "translate_x": Operation(_translate_x, lambda m, size: 5 * m * size // 331, True, 0, None),
    "translate_y": Operation(_translate_y, lambda m, size: 5 * m * size // 331, True, 0, None),
    "rotate": Operation(_rotate, lambda m, size: m, True, -180, 180),
    "brightness": Operation(_brightness, lambda m, size: 3 * m, True, -100, 100),
    "colour": Operation(_colour, lambda m, size: 3 * m, True, -100, 100),
    "contrast": Operation(_contrast, lambda m, size: 3 * m, True, -100, 100),
    "sharpness": Operation(_sharpness, lambda m, size: 3 * m, True, -100, 100),
    "posterise": Operation(_posterise, lambda m, size: 8 - (4 * m + 15) // 30, False, 1, 8),
    "solarise": Operation(_solarise, lambda m, size: 255 - 17 * m // 2, False, 0, 255),
    "autocontrast": Operation(_autocontrast, lambda m, size: 0),
    "equalise": Operation(_equalise, lambda m, size: 0),
}
"""Operations by name, numbered from 0 in this order, which is that of the format: never change it.

Units of the parameters: shears hundredths of a pixel a pixel from the top left corner (the content
of row y goes p * y / 100 to the left), translations pixels to the right and down, rotation degrees
counter-clockwise about the centre, brightness, colour, contrast and sharpness hundredths above the
image itself (-100: black, grey, one grey, smooth), posterise bits that stay, solarise the least
value that is inverted.
"""


@functools.cache
def _turns() -> Tensor:
    """Cosine and sine of -180, -179 .. 180 degrees in fixed point, int64 [361, 2]."""
    angles = [math.radians(degrees) for degrees in range(-180, 181)]
    return torch.tensor([[round(ONE * math.cos(a)), round(ONE * math.sin(a))] for a in angles])


def _slope(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """Hundredths, and the place of a pixel's centre half a pixel along them, in fixed point."""
    return (2 * ONE * parameter + 100) // 200, (ONE * (100 + parameter) + 100) // 200


def _moved(
    images: Tensor,
    across: tuple[Tensor | int, Tensor | int, Tensor | int] = (ONE, 0, 0),
    down: tuple[Tensor | int, Tensor | int, Tensor | int] = (0, ONE, 0),
) -> Tensor:
    """Fetch each pixel from the place that an affine map of it lies in; black from outside.

    The column is a * x + b * y + c, in fixed point and cut, of the numbers `across`, the row that
    of `down`; each number is int64 [B], or one for all.
    """
    height, width = images.shape[2:]
    x, y = (torch.arange(extent, device=images.device) for extent in (width, height))

    def place(numbers: tuple[Tensor | int, Tensor | int, Tensor | int]) -> Tensor:
        a, b, c = (n.view(-1, 1, 1) if isinstance(n, Tensor) else n for n in numbers)
        return (a * x + (b * y[:, None] + c)) >> 16

    column, row = place(across), place(down)
    inside = ((column >= 0) & (column < width)) & ((row >= 0) & (row < height))
    source = torch.where(inside, row * width + column, 0).flatten(1)[:, None]
    fetched = images.flatten(2).gather(2, source.expand(-1, 3, -1)).view_as(images)
    return fetched * inside[:, None]


def _grey(images: Tensor) -> Tensor:
    """Luma [B, 1, H, W], rounded to whole numbers in float32, where 24 bits hold every sum."""
    red, green, blue = images.split(1, dim=1)
    total = (GREY[0] * red.float()).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    return total.add_(ONE // 2).div_(ONE).floor_()


def _levels(images: Tensor) -> Tensor:
    """The values 0 .. 255 of a pixel, float32 on the device of `images`."""
    return torch.arange(LEVELS + 1, device=images.device, dtype=torch.float32)


def _blend(values: Tensor, base: Tensor | int, parameter: Tensor) -> Tensor:
    """From `base` through `values` and `parameter` hundredths further; down to uint8.

    All are whole numbers far below 2^24, thus exact in float32; the 0.5 keeps quotients off the
    whole numbers, so that they are cut alike however a device divides.
    """
    total = (parameter * (values - base)).add_(values, alpha=100).add_(0.5)
    return total.div_(100).clamp_(0, LEVELS).to(torch.uint8)


def _looked_up(images: Tensor, table: Tensor) -> Tensor:
    """Exchange values by a table uint8 [B, 3, 256] of each channel, or [B, 1, 256] for all."""
    table = table.expand(len(images), 3, LEVELS + 1)
    return table.gather(2, images.flatten(2).long()).view_as(images)
