"""Random resized crops of a batch of images, one box a sample, as two matrix products."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 10


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
) -> Tensor:
    """Draw crop boxes as RandomResizedCrop does: int64 [count, 4] of top, left, height, width."""
    uniforms = torch.rand(4, count, ATTEMPTS, generator=generator, device=generator.device)
    sizes = torch.tensor([[height, width]], device=generator.device)
    return boxes_from(uniforms, sizes, scale)


def boxes_from(
    uniforms: Tensor,
    sizes: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Turn uniform draws into crop boxes: int64 [B, 4] of top, left, height, width.

    Area uniform in `scale`, aspect log-uniform in `ratio`; of ten tries the first that fits is
    taken, else the largest centred box within the ratio.

    Args:
        uniforms: [4, B, ATTEMPTS] in [0, 1): area, aspect, top, left.
        sizes: int [B, 2] or [1, 2], height and width of the images in pixels.
        scale: low, high share of the image's area.
        ratio: low, high width over height.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * uniforms[1])
    box_w, box_h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_w >= 1) & (box_h >= 1) & (box_w <= width) & (box_h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    box_w, box_h = box_w.gather(1, first), box_h.gather(1, first)
    top = (uniforms[2].gather(1, first) * (height - box_h + 1)).floor()
    left = (uniforms[3].gather(1, first) * (width - box_w + 1)).floor()
    boxes = torch.cat([top, left, box_h, box_w], dim=1)
    centred = _centred_boxes(height.to(boxes.dtype), width.to(boxes.dtype), ratio)
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
    boxes = boxes.to(images.device, non_blocking=True)
    height, width = images.shape[2:]
    rows, columns = interpolations(boxes, height, width, size, flip)
    return resample(images, rows.to(images.dtype), columns.to(images.dtype))


def shifted(images: Tensor, corners: Tensor, flip: Tensor | None = None) -> Tensor:
    """Cut a box as large as the image out of each of [B, C, S, S]; beyond its edges it is black.

    Args:
        images: [B, C, S, S], floating point.
        corners: int64 [B, 2], top and left of the boxes in pixels, outside of it if below 0.
        flip: bool [B]; these results are mirrored left to right.
    """
    size = images.shape[-1]
    boxes = torch.cat([corners, torch.full_like(corners, size)], dim=1)
    return resized_crop(images, boxes, size, flip)


def interpolations(
    boxes: Tensor, height: int, width: int, size: int, flip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `resample` needs to do as `resized_crop`: rows [n, size, H] and columns [n, size, W]."""
    rows = _interpolation(boxes[:, 0], boxes[:, 2], height, size, None)
    columns = _interpolation(boxes[:, 1], boxes[:, 3], width, size, flip)
    return rows, columns


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Linear maps of rows [B, h, H] and columns [B, w, W] of images [B, C, H, W]: [B, C, h, w]."""
    across = images.flatten(1, 2) @ columns.transpose(1, 2)
    return rows[:, None] @ across.unflatten(1, images.shape[1:3])


def _centred_boxes(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Tensor:
    narrow, wide = width / height < ratio[0], width / height > ratio[1]
    box_h = torch.where(narrow, (width / ratio[0]).round(), height)
    box_w = torch.where(wide, (height * ratio[1]).round(), width)
    top, left = ((height - box_h) / 2).floor(), ((width - box_w) / 2).floor()
    return torch.cat([top, left, box_h, box_w], dim=1)


def _interpolation(
    start: Tensor, length: Tensor, extent: int, size: int, flip: Tensor | None
) -> Tensor:
    """Weights [B, size, extent] that resample pixels start .. start+length to `size` pixels."""
    device = start.device
    scale = (length.float() / size)[:, None]
    out = torch.arange(size, device=device, dtype=torch.float32)[None]
    if flip is not None:
        out = torch.where(flip.to(device, non_blocking=True)[:, None], size - 1 - out, out)
    centre = ((out + 0.5) * scale)[..., None]
    support = scale.clamp(min=1)[..., None]

    def triangle(offset: Tensor) -> Tensor:
        inside = (offset >= 0) & (offset < length[:, None, None])
        return F.relu(1 - (offset + 0.5 - centre).abs() / support) * inside

    pixels = torch.arange(extent, device=device)[None, None]
    total = triangle(pixels).sum(dim=2, keepdim=True)
    return triangle(pixels - start[:, None, None]) / total
