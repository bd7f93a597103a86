"""Random views for self-supervised learning: drawn for a whole batch first, made afterwards.

What is drawn depends on the generator alone, so several processes can draw the same for a batch and
each make its own rows of it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scdd.augment.colour import ColourDraw, draw_colours
from scdd.augment.crops import ATTEMPTS, boxes_from, chance
from scdd.config.views import ViewConfig


class CropDraw(NamedTuple):
    """A random resized crop and flip of each image of a batch; tensors on the CPU."""

    size: int
    """Side of the crops in pixels."""
    scale: tuple[float, float]
    """Low, high share of the image's area."""
    uniforms: Tensor
    """[4, B, ATTEMPTS] in [0, 1)."""
    flip: Tensor
    """bool [B]: mirrored left to right."""

    def boxes(self, sizes: Tensor) -> Tensor:
        """Boxes int64 [B, 4] (top, left, height, width) in images of `sizes` int [B or 1, 2]."""
        return boxes_from(self.uniforms, sizes, self.scale)


class ViewDraw(NamedTuple):
    """Everything random about one view of each image of a batch."""

    crop: CropDraw
    colour: ColourDraw

    def rows(self, rows: slice) -> "ViewDraw":
        """The draws of some of the images."""
        size, scale, uniforms, flip = self.crop
        crop = CropDraw(size, scale, uniforms[:, rows], flip[rows])
        return ViewDraw(crop, ColourDraw(*(drawn[rows] for drawn in self.colour)))


def draw_views(
    views: Sequence[ViewConfig], count: int, image_size: int, generator: torch.Generator
) -> tuple[ViewDraw, ...]:
    """Draw every view of `count` images, in the order of `views`; the generator is on the CPU."""
    return tuple(_drawn(views, count, image_size, generator))


def _drawn(
    views: Sequence[ViewConfig], count: int, image_size: int, generator: torch.Generator
) -> Iterator[ViewDraw]:
    for cfg in views:
        for _ in range(cfg.count):
            uniforms = torch.rand(4, count, ATTEMPTS, generator=generator)
            flip = chance(count, cfg.flip, generator)
            crop = CropDraw(cfg.size or image_size, cfg.crop_scale, uniforms, flip)
            yield ViewDraw(crop, draw_colours(cfg, count, generator))
