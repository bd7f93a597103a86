"""Random views of a batch of images: every draw is per sample, every operation runs on the device.

Images are float [B, 3, H, W] with values in [0, 1] unless said otherwise; generators are on their
device. Each operation follows
torchvision's transform of the same name, which the tests compare it with.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scdd.config.squeeze import AugmentConfig

GREY = (0.299, 0.587, 0.114)
BLUR_RADIUS = 6
ATTEMPTS = 10


def augment(images: Tensor, cfg: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return one random view of each square image: crop, flip, jitter, grey, blur. [B, 3, S, S]."""
    count, _, height, width = images.shape
    boxes = random_resized_boxes(count, height, width, cfg.crop_scale, generator)
    images = resized_crop(images, boxes, height, chance(count, cfg.flip, generator))
    images = colour_jitter(images, cfg, generator)
    if cfg.grey > 0:
        pick = chance(count, cfg.grey, generator)[:, None, None, None]
        images = torch.where(pick, to_grey(images), images)
    if cfg.blur > 0:
        low, high = cfg.blur_sigma
        sigma = low + (high - low) * uniform(count, generator)
        images = gaussian_blur(images, sigma, chance(count, cfg.blur, generator))
    return images


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn [0, 1] values into (value - mean) / std per channel."""
    shape = (1, -1, 1, 1)
    low = torch.tensor(mean, device=images.device, dtype=images.dtype).view(shape)
    return (images - low) / torch.tensor(std, device=images.device, dtype=images.dtype).view(shape)


def denormalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Undo `normalise`."""
    shape = (1, -1, 1, 1)
    scale = torch.tensor(std, device=images.device, dtype=images.dtype).view(shape)
    return images * scale + torch.tensor(mean, device=images.device, dtype=images.dtype).view(shape)


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """Draw [count] values in [0, 1) on the generator's device."""
    return torch.rand(count, generator=generator, device=generator.device)


def chance(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Draw [count] booleans, true with `probability`."""
    return uniform(count, generator) < probability


def random_resized_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    generator: torch.Generator,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw crop boxes as RandomResizedCrop does: int64 [count, 4] of top, left, height, width.

    Area uniform in `scale`, aspect log-uniform in `ratio`; of ten tries the first that fits is
    taken, else the largest centred box within the ratio.
    """
    device = generator.device
    draws = torch.rand(4, count, ATTEMPTS, generator=generator, device=device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[1])
    box_w, box_h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_w >= 1) & (box_h >= 1) & (box_w <= width) & (box_h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    box_w, box_h = box_w.gather(1, first).squeeze(1), box_h.gather(1, first).squeeze(1)
    top = (draws[2].gather(1, first).squeeze(1) * (height - box_h + 1)).floor()
    left = (draws[3].gather(1, first).squeeze(1) * (width - box_w + 1)).floor()
    boxes = torch.stack([top, left, box_h, box_w], dim=1)
    centred = torch.tensor(_centred_box(height, width, ratio), device=device, dtype=boxes.dtype)
    return torch.where(fits.any(dim=1, keepdim=True), boxes, centred).long()


def resized_crop(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resize it to [B, C, size, size]: bilinear, antialiased.

    Written as two matrix products, so it is exact, batched and differentiable. Where a box leaves
    the image the missing pixels are 0.

    Args:
        images: [B, C, H, W], floating point.
        boxes: int [B, 4], or [1, 4] for one box for all: top, left, height, width in pixels; at
            most as large as the image.
        size: side of the result in pixels.
        flip: bool [B] or [1]; these results are mirrored left to right.
    """
    count, channels, height, width = images.shape
    boxes = boxes.to(images.device)
    rows = _interpolation(boxes[:, 0], boxes[:, 2], height, size, None).to(images.dtype)
    columns = _interpolation(boxes[:, 1], boxes[:, 3], width, size, flip).to(images.dtype)
    across = images.reshape(count, channels * height, width) @ columns.transpose(1, 2)
    across = across.view(count, channels, height, size).transpose(2, 3)
    down = across.reshape(count, channels * size, height) @ rows.transpose(1, 2)
    return down.view(count, channels, size, size).transpose(2, 3)


def to_grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601) in all three channels."""
    weights = torch.tensor(GREY, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


def colour_jitter(images: Tensor, cfg: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, in a random order per sample.

    The batch is shuffled and cut in four parts, of which part k changes hue as its k-th operation;
    the other three are one form, `f * x + (1 - f) * base`, and are ordered per sample. So the
    order is uniform and hue is computed once per image.
    """
    strengths = (cfg.brightness, cfg.contrast, cfg.saturation)
    if cfg.jitter == 0 or (max(strengths) == 0 and cfg.hue == 0):
        return images
    count, device = len(images), generator.device
    picked = chance(count, cfg.jitter, generator)
    factors = torch.stack([_factor(count, s, generator) for s in strengths], dim=1)
    factors = torch.where(picked[:, None], factors, 1.0)
    shift = torch.where(picked, (2 * uniform(count, generator) - 1) * cfg.hue, 0.0)
    order = torch.rand(count, 3, generator=generator, device=device).argsort(dim=1)
    shuffle = torch.randperm(count, generator=generator, device=device)
    parts = []
    for hue_slot, part in enumerate(shuffle.tensor_split(4)):
        x, slots = images[part], iter(range(3))
        for slot in range(4):
            if slot == hue_slot:
                x = adjust_hue(x, shift[part]) if cfg.hue > 0 else x
            else:
                operation = order[part, next(slots)]
                factor = factors[part].gather(1, operation[:, None]).squeeze(1)
                x = _blend(x, operation, factor)
        parts.append(x)
    return torch.cat(parts)[shuffle.argsort()]


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


def gaussian_blur(images: Tensor, sigma: Tensor, pick: Tensor | None = None) -> Tensor:
    """Blur image b with a Gaussian of `sigma[b]` pixels (13 taps, reflected borders).

    Args:
        images: [B, 3, H, W].
        sigma: [B], positive.
        pick: bool [B]; the others pass unchanged.
    """
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    if pick is not None:
        weights = torch.where(pick[:, None], weights, (taps == 0).to(weights.dtype))
    weights = weights.to(images.dtype)
    rows = torch.einsum("bk,koi->boi", weights, _reflected_taps(images.shape[2], taps, weights))
    columns = torch.einsum("bk,koi->boi", weights, _reflected_taps(images.shape[3], taps, weights))
    return rows[:, None] @ images @ columns[:, None].transpose(2, 3)


def _centred_box(height: int, width: int, ratio: tuple[float, float]) -> list[int]:
    box_h, box_w = height, width
    if width / height < ratio[0]:
        box_h = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_w = round(height * ratio[1])
    return [(height - box_h) // 2, (width - box_w) // 2, box_h, box_w]


def _interpolation(
    start: Tensor, length: Tensor, extent: int, size: int, flip: Tensor | None
) -> Tensor:
    """Weights [B, size, extent] that resample pixels start .. start+length to `size` pixels."""
    device = start.device
    scale = (length.float() / size)[:, None]
    out = torch.arange(size, device=device, dtype=torch.float32)[None]
    if flip is not None:
        out = torch.where(flip.to(device)[:, None], size - 1 - out, out)
    centre = ((out + 0.5) * scale)[..., None]
    support = scale.clamp(min=1)[..., None]

    def triangle(offset: Tensor) -> Tensor:
        inside = (offset >= 0) & (offset < length[:, None, None])
        return F.relu(1 - (offset + 0.5 - centre).abs() / support) * inside

    pixels = torch.arange(extent, device=device)[None, None]
    total = triangle(pixels).sum(dim=2, keepdim=True)
    return triangle(pixels - start[:, None, None]) / total


def _factor(count: int, strength: float, generator: torch.Generator) -> Tensor:
    low, high = max(0.0, 1 - strength), 1 + strength
    return low + (high - low) * uniform(count, generator)


def _blend(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Operation 0 brightness, 1 contrast, 2 saturation, each as a blend with its base image."""
    grey = to_grey(images)[:, :1]
    mean = grey.mean(dim=(2, 3), keepdim=True)
    kind = operation.view(-1, 1, 1, 1)
    base = torch.where(kind == 2, grey, torch.where(kind == 1, mean, torch.zeros_like(mean)))
    factor = factor.view(-1, 1, 1, 1).to(images.dtype)
    return (factor * images + (1 - factor) * base).clamp(0, 1)


def _reflected_taps(extent: int, taps: Tensor, like: Tensor) -> Tensor:
    """One-hot [taps, extent, extent]: which pixel tap k of output pixel o reads."""
    position = torch.arange(extent, device=taps.device)[None] + taps[:, None]
    period = max(2 * (extent - 1), 1)
    position = position.remainder(period)
    position = torch.where(position >= extent, period - position, position)
    return F.one_hot(position, extent).to(like.dtype)
