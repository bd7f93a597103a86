"""Squeeze: self-supervised pre-training of the backbone."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from scdd.config.section import Probability, Range, Section, Shares


class AugmentConfig(Section):
    """Random view of an image; every draw is per sample."""

    crop_scale: Shares = (0.2, 1.0)
    """Area of the random resized crop as a share of the image."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: Probability = 0.8
    """Probability of colour jitter."""
    brightness: NonNegativeFloat = 0.4
    contrast: NonNegativeFloat = 0.4
    saturation: NonNegativeFloat = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grey: Probability = 0.2
    """Probability of turning to grey."""
    blur: Probability = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: Range = (0.1, 2.0)
    """Standard deviation of the blur in pixels."""


class MocoV2Config(Section):
    """MoCo v2 (arXiv:2003.04297): InfoNCE against a queue of keys from an EMA encoder."""

    name: Literal["moco_v2"] = "moco_v2"
    dim: PositiveInt = 128
    """Size of the embedding."""
    mlp: bool = True
    """Two-layer head (v2); false: one linear layer (v1, and the authors' CIFAR notebook)."""
    queue: PositiveInt = 4096
    """Keys kept as negatives; a multiple of the batch."""
    momentum: Probability = 0.99
    """EMA factor of the key encoder, per step."""
    temperature: PositiveFloat = 0.2
    symmetric: bool = True
    """Let each view be query once; the loss is the mean of both directions."""
    key_splits: PositiveInt = 1
    """BatchNorm groups of the shuffled key batch, as on that many devices (ShuffleBN)."""


class SqueezeConfig(Section):
    """Pre-training of the backbone on the images, without labels."""

    arch: str = "resnet8x2"
    """Backbone; `scdd.models` lists the names."""
    objective: MocoV2Config = MocoV2Config()
    epochs: PositiveInt = 200
    batch: Annotated[int, Field(ge=2)] = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.03
    momentum: Probability = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegativeFloat = 1e-4
    warmup_epochs: NonNegativeInt = 0
    """Linear warm-up before the cosine."""
    augment: AugmentConfig = AugmentConfig()
    knn_every: NonNegativeInt = 10
    """Epochs between kNN checks on the validation images; 0: never."""
    knn_k: PositiveInt = 20
    knn_temperature: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _queue_holds_a_step(self) -> Self:
        keys = self.batch * (2 if self.objective.symmetric else 1)
        if self.objective.queue < keys:
            raise ValueError(
                f"objective.queue is {self.objective.queue}, but a step makes {keys} keys; choose "
                f"a queue of at least {keys}, or a smaller batch"
            )
        return self
