"""Random views of the images that are recovered: crop, flip, cyclic shift."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scdd.augment import chance, random_resized_boxes
from scdd.augment.crops import interpolations, resample
from scdd.config.recover import RecoverConfig


class View(NamedTuple):
    """What is random about one iteration of G batches of B images; n is G, or G * B with own crops.

    Drawn on the CPU, so no iteration waits for a device.
    """

    boxes: Tensor
    """int64 [n, 4]: top, left, height, width in pixels."""
    flip: Tensor
    """bool [n]."""
    shift: Tensor
    """int64 [n, 2]: pixels that the view is shifted down and right, cyclically."""

    def to(self, device: torch.device) -> "View":
        """The same on a device; nothing waits for the copy."""
        if device.type != "cuda":
            return View(*(tensor.to(device) for tensor in self))
        return View(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self))


def draw_views(
    cfg: RecoverConfig, size: int, count: int, done: float, draws: Sequence[torch.Generator]
) -> View | None:
    """Draw a view for G batches of `count` images each, every batch from its own generator.

    Args:
        cfg: its `crop`, `crop_scale`, `crop_curriculum`, `flip` and `roll`.
        size: side of the images in pixels.
        count: B.
        done: share of the iterations that are over.
        draws: one generator a batch, on the CPU.

    Returns:
        None where images are seen as they are.
    """
    if cfg.crop == "none" and not cfg.roll:
        return None
    views = [_draw(cfg, size, count, done, draw) for draw in draws]
    return View(*(torch.cat(parts) for parts in zip(*views, strict=True)))


def crop_scale(cfg: RecoverConfig, done: float) -> tuple[float, float]:
    """Shares of the area between which a crop lies; CDA (arXiv:2311.18838) starts from the whole.

    The lower one falls along half a cosine from 1 to its value over the first `crop_curriculum` of
    the iterations.
    """
    low, high = cfg.crop_scale
    if done >= cfg.crop_curriculum:
        return low, high
    left = 0.5 * (1 + math.cos(math.pi * done / cfg.crop_curriculum))
    low += (1 - low) * left
    return low, max(low, high)


def render(images: Tensor, view: View | None) -> Tensor:
    """Make the view of images [N, C, S, S]: two matrix products, whatever is in the view."""
    if view is None:
        return images
    size = images.shape[-1]
    rows, columns = interpolations(view.boxes, size, size, size, view.flip)
    rows, columns = _rolled(rows, view.shift[:, 0]), _rolled(columns, view.shift[:, 1])
    groups = images.reshape(len(rows), -1, size, size)  # Batches of one box are as one image.
    return resample(groups, rows, columns).view(images.shape)


def _draw(
    cfg: RecoverConfig, size: int, count: int, done: float, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    number = count if cfg.crop == "sample" else 1
    boxes, flip = torch.tensor([[0, 0, size, size]]), torch.tensor([False])
    if cfg.crop != "none":
        boxes = random_resized_boxes(number, size, size, crop_scale(cfg, done), draw)
        flip = chance(number, 0.5 if cfg.flip else 0.0, draw)
    shift = torch.zeros(1, 2, dtype=torch.int64)
    if cfg.roll:
        shift = torch.randint(cfg.roll + 1, (1, 2), generator=draw)
    return boxes, flip, shift.expand(number, 2)


def _rolled(weights: Tensor, shift: Tensor) -> Tensor:
    """Shift the outputs of interpolations [n, S, S] by [n] pixels, cyclically."""
    size = weights.shape[1]
    places = (torch.arange(size, device=weights.device) - shift[:, None]) % size
    return weights.gather(1, places[:, :, None].expand(-1, -1, size))
