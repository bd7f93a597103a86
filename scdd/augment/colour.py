"""Colour operations on a batch: each follows torchvision's of the same name, per sample.

Images are float [B, 3, H, W] with values in [0, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scdd.augment.crops import chance, uniform
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

    Images are grouped by the place of the hue. The other three operations are one form,
    `f * x + (1 - f) * base`, and are ordered per sample; so hue is computed once per image.
    """
    groups = [(draw.hue_place == place).nonzero().flatten() for place in range(SPARED + 1)]
    parts = []
    for hue_place, rows in enumerate(groups):
        x = images[rows.to(images.device)]
        if hue_place != SPARED and len(rows) > 0:
            x = _jittered(x, draw, rows, hue_place)
        parts.append(x)
    return torch.cat(parts)[torch.cat(groups).argsort().to(images.device)]


def to_grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601) in all three channels."""
    weights = torch.tensor(GREY, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


def solarise(images: Tensor) -> Tensor:
    """Invert the values of at least one half (128 of 255)."""
    return torch.where(images >= 128 / 255, 1 - images, images)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` [B] turns (through HSV), as torchvision's adjust_hue does."""
    value, _ = images.max(dim=1)
    low, _ = images.min(dim=1)
    chroma = value - low
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    red, green, blue = images.unbind(dim=1)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = (sector + 6 * shift[:, None, None]) % 6
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device, dtype=images.dtype)
    k = (sector.unsqueeze(1) + offsets.view(1, 3, 1, 1)) % 6
    weight = torch.minimum(k, 4 - k).clamp(0, 1)
    return (value - chroma * weight.transpose(0, 1)).transpose(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur image b of [B, 3, H, W] with a Gaussian of `sigma[b]` pixels, 13 taps, mirrored."""
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.dtype)
    rows = torch.einsum("bk,koi->boi", weights, _reflected_taps(images.shape[2], taps, weights))
    columns = torch.einsum("bk,koi->boi", weights, _reflected_taps(images.shape[3], taps, weights))
    return rows[:, None] @ images @ columns[:, None].transpose(2, 3)


def _where(images: Tensor, chosen: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `operation` to the images that are `chosen`, a bool [B] on the CPU."""
    rows = chosen.nonzero().flatten().to(images.device)
    if len(rows) == 0:
        return images
    return images.index_copy(0, rows, operation(images[rows]))


def _jittered(images: Tensor, draw: ColourDraw, rows: Tensor, hue_place: int) -> Tensor:
    """Jitter images whose draws are `rows` of `draw` and whose hue turns at `hue_place`."""
    others = iter(range(3))
    for place in range(SPARED):
        if place == hue_place:
            images = adjust_hue(images, draw.shift[rows].to(images.device))
        else:
            operation = draw.order[rows, next(others)]
            factor = draw.factors[rows].gather(1, operation[:, None]).squeeze(1)
            images = _blend(images, operation.to(images.device), factor.to(images.device))
    return images


def _blend(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Brightness, contrast or saturation of each image, as a blend with the base of that."""
    grey = to_grey(images)[:, :1]
    mean = grey.mean(dim=(2, 3), keepdim=True)
    kind = operation.view(-1, 1, 1, 1)
    base = torch.where(kind == CONTRAST, mean, torch.zeros_like(mean))
    base = torch.where(kind == SATURATION, grey, base)
    factor = factor.view(-1, 1, 1, 1).to(images.dtype)
    return (factor * images + (1 - factor) * base).clamp(0, 1)


def _reflected_taps(extent: int, taps: Tensor, like: Tensor) -> Tensor:
    """One-hot [taps, extent, extent]: which pixel tap k of output pixel o reads."""
    position = torch.arange(extent, device=taps.device)[None] + taps[:, None]
    period = max(2 * (extent - 1), 1)
    position = position.remainder(period)
    position = torch.where(position >= extent, period - position, position)
    return F.one_hot(position, extent).to(like.dtype)
