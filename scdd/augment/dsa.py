"""Differentiable Siamese augmentation (DSA, arXiv:2102.08259): one operation an image, drawn first.

Real and synthetic images go through the same operation by being given the same rows of a draw.
Every operation is differentiable with respect to the images, which are float [B, 3, S, S] in
normalised pixel space: what comes from outside is 0, the mean of the dataset. The paper names the
operations; their ranges are those of its released code.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scdd.augment.crops import chance, resized_crop, uniform
from scdd.config.condense import DsaOperation

IDENTITY = -1
BRIGHTNESS = 0.5
"""Largest number that is added to all pixels, or taken away."""
SATURATION = 2.0
"""Largest factor of what makes a pixel differ from its grey; the least is 0."""
CONTRAST = (0.5, 1.5)
"""Factors of what makes a pixel differ from the mean of its image."""
SHIFT, CUT = 1 / 8, 1 / 2
"""Share of the side: the largest shift of a crop, and the side of the square that is cut out."""
SCALE = 1.2
"""Largest factor, and the inverse of the least, of either side."""
ANGLE = 15.0
"""Largest rotation in degrees, either way."""


class DsaDraw(NamedTuple):
    """What happens to each image of a batch; tensors on the CPU, first axis [B]."""

    operation: Tensor
    """Place in `OPERATIONS`; IDENTITY, the place before the first: none."""
    brightness: Tensor
    """What is added."""
    saturation: Tensor
    """Factor."""
    contrast: Tensor
    """Factor."""
    shift: Tensor
    """int64 [B, 2]: where the crop begins, in rows and columns of the image; may be negative."""
    cut: Tensor
    """int64 [B, 2]: first row and column that are cut out; may lie outside."""
    flip: Tensor
    """bool."""
    scale: Tensor
    """[B, 2]: height and width of the field of view as shares of the image's."""
    angle: Tensor
    """Degrees, counter-clockwise."""

    def rows(self, rows: Tensor) -> "DsaDraw":
        """The draws of some images; a row may be taken several times."""
        return DsaDraw(*(drawn[rows] for drawn in self))


def draw_dsa(
    operations: Sequence[DsaOperation], count: int, size: int, generator: torch.Generator
) -> DsaDraw:
    """Draw for `count` images of `size` pixels; everything is drawn, whatever the operation.

    Args:
        operations: one of them, each as likely, happens to an image; none: nothing does.
        count: B.
        size: side of the images in pixels.
        generator: on the CPU.
    """
    known = list(OPERATIONS)
    chosen = torch.tensor([known.index(name) for name in operations] or [IDENTITY])
    reach, side = math.floor(size * SHIFT + 0.5), cut_side(size)
    low, high = CONTRAST
    return DsaDraw(
        operation=chosen[torch.randint(len(chosen), (count,), generator=generator)],
        brightness=BRIGHTNESS * (2 * uniform(count, generator) - 1),
        saturation=SATURATION * uniform(count, generator),
        contrast=low + (high - low) * uniform(count, generator),
        shift=torch.randint(-reach, reach + 1, (count, 2), generator=generator),
        # A square of odd side has its middle on a pixel, one of even side between two.
        cut=torch.randint(size + 1 - side % 2, (count, 2), generator=generator) - side // 2,
        flip=chance(count, 0.5, generator),
        scale=1 / SCALE + (SCALE - 1 / SCALE) * torch.rand(count, 2, generator=generator),
        angle=ANGLE * (2 * uniform(count, generator) - 1),
    )


def dsa(images: Tensor, draw: DsaDraw) -> Tensor:
    """Change each image as it was drawn; [B, 3, S, S], on the device of `images`.

    The draws are known on the host, so rows are picked without waiting for the device.
    """
    place, order = draw.operation.sort(stable=True)
    counts = (place - IDENTITY).bincount(minlength=1 + len(OPERATIONS)).tolist()
    rows = order.to(images.device, non_blocking=True)
    operations = (_identity, *OPERATIONS.values())
    parts = zip(operations, images[rows].split(counts), order.split(counts), strict=True)
    done = [apply(part, draw.rows(which)) for apply, part, which in parts if len(part) > 0]
    back = order.argsort().to(images.device, non_blocking=True)
    return torch.cat(done)[back]


def cut_side(size: int) -> int:
    """Side in pixels of the square that is cut out of images of `size` pixels."""
    return math.floor(size * CUT + 0.5)


def _identity(images: Tensor, _: DsaDraw) -> Tensor:
    return images


def _colour(images: Tensor, draw: DsaDraw) -> Tensor:
    """Brightness, saturation and contrast, one after the other."""
    add, factor, contrast = (
        _beside(each, images) for each in (draw.brightness, draw.saturation, draw.contrast)
    )
    bright = images + add
    grey = bright.mean(dim=1, keepdim=True)
    tinted = grey + factor * (bright - grey)
    mean = tinted.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast * (tinted - mean)


def _crop(images: Tensor, draw: DsaDraw) -> Tensor:
    """Shift, and fill up with 0."""
    size = images.shape[-1]
    boxes = torch.cat([draw.shift, torch.full_like(draw.shift, size)], dim=1)
    return resized_crop(images, boxes, size)


def _cutout(images: Tensor, draw: DsaDraw) -> Tensor:
    size = images.shape[-1]
    place = torch.arange(size) - draw.cut[..., None]
    rows, columns = ((place >= 0) & (place < cut_side(size))).unbind(dim=1)
    kept = ~(rows[:, :, None] & columns[:, None, :])
    return images * kept[:, None].to(images.device, images.dtype, non_blocking=True)


def _flip(images: Tensor, draw: DsaDraw) -> Tensor:
    return torch.where(_beside(draw.flip, images), images.flip(3), images)


def _scale(images: Tensor, draw: DsaDraw) -> Tensor:
    return _seen_through(images, torch.diag_embed(draw.scale.flip(1)))


def _rotate(images: Tensor, draw: DsaDraw) -> Tensor:
    angle = draw.angle.deg2rad()
    cosine, sine = angle.cos(), angle.sin()
    return _seen_through(images, torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2))


OPERATIONS: dict[DsaOperation, Callable[[Tensor, DsaDraw], Tensor]] = {
    "colour": _colour,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
"""Operations by name, in the order of their places."""


def _seen_through(images: Tensor, matrix: Tensor) -> Tensor:
    """Fetch every pixel, bilinearly, from where [B, 2, 2] maps it (x, y from the centre) to."""
    still = torch.zeros(len(matrix), 2, 1, dtype=matrix.dtype)
    theta = torch.cat([matrix, still], dim=2).to(images.device, images.dtype, non_blocking=True)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _beside(drawn: Tensor, images: Tensor) -> Tensor:
    """[B, 1, 1, 1] on the device of images; numbers in their precision."""
    dtype = images.dtype if drawn.is_floating_point() else drawn.dtype
    return drawn.view(-1, 1, 1, 1).to(images.device, dtype, non_blocking=True)
