"""The stem of a ResNet: the geometry in front of its first stage, which weights do not carry."""

from typing import Annotated, Literal

from pydantic import Field

from scdd.config.section import Section


class Stem(Section):
    """First convolution, ReLU and max-pool (3x3, stride 2) of a ResNet; all has to be said."""

    kernel: Literal[3, 7]
    """Side of the first convolution."""
    stride: Literal[1, 2]
    """Stride of the first convolution."""
    padding: Annotated[int, Field(ge=0, le=3)]
    """Padding of the first convolution: 3 for 7x7; 1 for 3x3, but 2 in solo-learn."""
    max_pool: bool
    """Whether the max-pool is there."""
    relu: bool = True
    """False only for lightly's CIFAR nets, which lost this ReLU when they became a Sequential."""


STOCK = Stem(kernel=7, stride=2, padding=3, max_pool=True)
"""That of arXiv:1512.03385 for 224 px."""
