"""Colour operations on a batch: each follows torchvision's of the same name, per sample.

Images are float [B, 3, H, W] with values in [0, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scdd.augment.crops import chance, resample, uniform
from scdd.config.views import ViewConfig

GREY = (0.299, 0.587, 0.114)
BLUR_RADIUS = 6
BRIGHTNESS, CONTRAST, SATURATION = range(3)
SPARED = 4


class ColourDraw(NamedTuple):
    """What happens to the colours of each image of a batch; tensors on the CPU, first axis [B]."""

    hue_place: Tensor
    """Which of the four jitter operations turns the hue, 0..3; SPARED: no jitter at all."""
    shift: Tensor
    """Turns of the hue."""
    order: Tensor
    """[B, 3]: brightness, contrast and saturation in the order in which they come."""
    factors: Tensor
    """[B, 3]: of brightness, contrast and saturation."""
    grey: Tensor
    """bool."""
    sigma: Tensor
    """Of the blur in pixels; 0: none."""
    solarise: Tensor
    """bool."""


def draw_colours(cfg: ViewConfig, count: int, generator: torch.Generator) -> ColourDraw:
    """Draw the colours of `count` views; everything is drawn, whatever the probabilities."""
    strengths = torch.tensor([cfg.brightness, cfg.contrast, cfg.saturation])
    low = (1 - strengths).clamp(min=0)
    factors = low + (1 + strengths - low) * torch.rand(count, 3, generator=generator)
    place = torch.randint(4, (count,), generator=generator)
    picked = chance(count, cfg.jitter, generator)
    if strengths.max() == 0 and cfg.hue == 0:
        picked = torch.zeros_like(picked)
    least, most = cfg.blur_sigma
    sigma = least + (most - least) * uniform(count, generator)
    return ColourDraw(
        hue_place=torch.where(picked, place, SPARED),
        shift=(2 * uniform(count, generator) - 1) * cfg.hue,
        order=torch.rand(count, 3, generator=generator).argsort(dim=1),
        factors=factors,
        grey=chance(count, cfg.grey, generator),
        sigma=torch.where(chance(count, cfg.blur, generator), sigma, 0.0),
        solarise=chance(count, cfg.solarise, generator),
    )


def colour(images: Tensor, draw: ColourDraw) -> Tensor:
    """Jitter, grey, blur, solarise, in this order, each on the images that were drawn for it.

    The draws are known on the host, so rows are picked without waiting for the device.
    """
    images = colour_jitter(images, draw)
    images = _where(images, draw.grey, to_grey)
    blurred = draw.sigma > 0
    sigma = draw.sigma[blurred].to(images.device, non_blocking=True)
    images = _where(images, blurred, lambda chosen: gaussian_blur(chosen, sigma))
    return _where(images, draw.solarise, solarise)


def colour_jitter(images: Tensor, draw: ColourDraw) -> Tensor:
    """Change brightness, contrast, saturation and hue, in a random order per sample.

    Images are sorted by the place of the hue, so that those whose hue turns now lie together. The
    other three operations are one form, `f * x + (1 - f) * base`: in each of three rounds every
    image gets the next of its own.
    """
    place, rows = draw.hue_place.sort(stable=True)
    ends = [int((place < turn).sum()) for turn in range(SPARED + 1)]
    rows = rows[: ends[-1]]
    if len(rows) == 0:
        return images
    operation = draw.order[rows]
    factor = draw.factors[rows].gather(1, operation)
    to_mean, to_luma = ((1 - factor) * (operation == kind) for kind in (CONTRAST, SATURATION))
    numbers = torch.cat([draw.shift[rows, None], factor, to_mean, to_luma], dim=1)
    shift, *blends = numbers.to(images.device, images.dtype, non_blocking=True).unbind(dim=1)
    index = rows.to(images.device, non_blocking=True)
    x = images[index]
    for turn in range(SPARED):
        if turn > 0:
            _blend_(x, *(each.view(-1, 1, 1, 1) for each in blends[turn - 1 :: 3]))
        now = slice(ends[turn], ends[turn + 1])
        x[now] = adjust_hue(x[now], shift[now])
    return images.index_copy(0, index, x)


def to_grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601) in all three channels."""
    return _luma(images).expand_as(images)


def solarise(images: Tensor) -> Tensor:
    """Invert the values of at least one half (128 of 255)."""
    return torch.where(images >= 128 / 255, 1 - images, images)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` [B] turns (through HSV), as torchvision's adjust_hue does."""
    red, green, blue = images.unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    # From -1 to 5 sixths of a turn, times chroma.
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue = hue / (6 * chroma).clamp(min=torch.finfo(images.dtype).tiny)
    hue = hue + shift.remainder(1)[:, None, None]
    # Every channel is a wave over the hue, clipped to what the pixel spans.
    offsets = torch.tensor([1, 2 / 3, 1 / 3], dtype=images.dtype)
    offsets = offsets.to(images.device, non_blocking=True)
    wave = (hue.unsqueeze(1) + offsets.view(1, 3, 1, 1)).frac_().sub_(0.5).abs_()
    low, value, chroma = low.unsqueeze(1), value.unsqueeze(1), chroma.unsqueeze(1)
    return torch.addcmul(low - chroma, chroma, wave, value=6).clamp_(low, value)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur image b of [B, 3, H, W] with a Gaussian of `sigma[b]` pixels, 13 taps, mirrored."""
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.dtype)
    rows = torch.einsum("bk,koi->boi", weights, _reflected_taps(images.shape[2], taps, weights))
    columns = torch.einsum("bk,koi->boi", weights, _reflected_taps(images.shape[3], taps, weights))
    return resample(images, rows, columns)


def _where(images: Tensor, chosen: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `operation` to the images that are `chosen`, a bool [B] on the CPU."""
    rows = chosen.nonzero().flatten().to(images.device, non_blocking=True)
    if len(rows) == 0:
        return images
    return images.index_copy(0, rows, operation(images[rows]))


def _luma(images: Tensor) -> Tensor:
    """[B, 1, H, W] of [B, 3, H, W]."""
    red, green, blue = images.split(1, dim=1)
    return (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _blend_(images: Tensor, factor: Tensor, to_mean: Tensor, to_luma: Tensor) -> None:
    """Brightness, contrast or saturation of each image, as a blend with the base of that.

    The base is 0, the mean luma or the luma of the pixel; all weights are [B, 1, 1, 1].
    """
    luma = _luma(images)
    # In two steps, as the sum of a lone large image would be split among threads: other rounding.
    mean = luma.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    base = to_luma * luma + to_mean * mean
    torch.addcmul(base, images, factor, out=images).clamp_(0, 1)


def _reflected_taps(extent: int, taps: Tensor, like: Tensor) -> Tensor:
    """One-hot [taps, extent, extent]: which pixel tap k of output pixel o reads."""
    position = torch.arange(extent, device=taps.device)[None] + taps[:, None]
    period = max(2 * (extent - 1), 1)
    position = position.remainder(period)
    position = torch.where(position >= extent, period - position, position)
    return F.one_hot(position, extent).to(like.dtype)
