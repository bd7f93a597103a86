"""Fine-tune: all weights of a pre-trained network and a new classifier learn from real images."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from scdd.config.section import Probability, Section


class FinetuneConfig(Section):
    """What KRR-ST (arXiv:2310.06511) does with pre-trained networks, beside a linear probe."""

    iterations: PositiveInt = 10_000
    """Steps of SGD."""
    batch: Annotated[int, Field(ge=2)] = 256
    """Images of a step; all there are, if these are fewer."""
    lr: PositiveFloat = 0.01
    """Peak rate; half a cosine to 0."""
    momentum: Probability = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    crop_padding: NonNegativeInt = 4
    """Pixels by which a random crop may leave the image, where it is black; 0: the whole image."""
    flip: Probability = 0.5
    """Chance that an image is mirrored; 0 where left and right differ in meaning."""

    def describe(self) -> str:
        """Everything that moves a score, in words."""
        crops = f"crops by up to {self.crop_padding} px" if self.crop_padding else "whole images"
        return (
            f"{self.iterations} steps of batch {self.batch}, sgd lr {self.lr:g}, cosine, weight "
            f"decay {self.weight_decay:g}, {crops}, mirrored by {self.flip:g}"
        )
