"""Pre-training objectives: one section each, told apart by `name`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
)

from scdd.config.section import Probability, Section

# In each: `training_passes` counts how often one image goes forward and backward through the
# backbone in a step (a pass without gradient is a third of one), for estimates. Its argument are
# the areas of the views as shares of the image's, in order.


class MocoV2Config(Section):
    """MoCo v2 (arXiv:2003.04297): InfoNCE against a queue of keys from an EMA encoder."""

    name: Literal["moco_v2"] = "moco_v2"
    dim: PositiveInt = 128
    """Size of the embedding."""
    mlp: bool = True
    """Two-layer head (v2); false: one linear layer (v1, and the authors' CIFAR notebook)."""
    queue: PositiveInt = 4096
    """Keys kept as negatives."""
    momentum: Probability = 0.99
    """EMA factor of the key encoder, per step."""
    temperature: PositiveFloat = 0.2
    symmetric: bool = True
    """Let each view be query once; the loss is the mean of both directions."""
    key_splits: PositiveInt = 1
    """BatchNorm groups of the shuffled key batch, as on that many devices (ShuffleBN)."""

    def training_passes(self, areas: Sequence[float]) -> float:
        return (2 if self.symmetric else 1) * 4 / 3 * areas[0]


class MocoV3Config(Section):
    """MoCo v3 (arXiv:2104.02057) for ResNets: InfoNCE within the batch, with a predictor."""

    name: Literal["moco_v3"] = "moco_v3"
    dim: PositiveInt = 256
    """Size of the embedding."""
    hidden: PositiveInt = 4096
    """Width of projector and predictor."""
    temperature: PositiveFloat = 1.0
    momentum: Probability = 0.99
    """EMA factor of the key encoder at the start; grows to 1 along half a cosine."""

    def training_passes(self, areas: Sequence[float]) -> float:
        return 4 / 3 * sum(areas)


class SwavConfig(Section):
    """SwAV (arXiv:2006.09882): predict the cluster assignment of one view from the others."""

    name: Literal["swav"] = "swav"
    dim: PositiveInt = 128
    """Size of the embedding."""
    hidden: PositiveInt = 2048
    """Width of the projector."""
    prototypes: Annotated[int, Field(ge=2)] = 3000
    temperature: PositiveFloat = 0.1
    epsilon: PositiveFloat = 0.05
    """Entropy of the assignments: the temperature of Sinkhorn-Knopp."""
    sinkhorn_iterations: PositiveInt = 3
    queue: NonNegativeInt = 0
    """Embeddings of earlier batches that take part in the assignment, per global view; 0: none."""
    queue_from_epoch: NonNegativeInt = 15
    """Finished epochs before the queue is used; it is never used before it is full."""
    freeze_epochs: NonNegativeFloat = 1.0
    """Epochs at the start in which the prototypes do not learn."""

    def training_passes(self, areas: Sequence[float]) -> float:
        return sum(areas)


class DinoConfig(Section):
    """DINO (arXiv:2104.14294): a student matches the centred, sharpened output of its EMA."""

    name: Literal["dino"] = "dino"
    dim: Annotated[int, Field(ge=2)] = 65536
    """Outputs of the head."""
    hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    head_bn: bool = False
    """BatchNorm after the two hidden layers of the head."""
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    teacher_temperature_start: PositiveFloat = 0.04
    teacher_warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the teacher's temperature goes linearly from its start to its value."""
    momentum: Probability = 0.996
    """EMA factor of the teacher at the start; grows to 1 along half a cosine."""
    centre_momentum: Probability = 0.9
    freeze_epochs: NonNegativeFloat = 1.0
    """Epochs at the start in which the last layer of the head does not learn."""

    def training_passes(self, areas: Sequence[float]) -> float:
        return sum(areas) + sum(areas[:2]) / 3


class BarlowTwinsConfig(Section):
    """Barlow Twins (arXiv:2103.03230): the cross-correlation of two views is the identity."""

    name: Literal["barlow_twins"] = "barlow_twins"
    dim: PositiveInt = 8192
    """Size of the embedding."""
    hidden: PositiveInt = 8192
    """Width of the projector's two hidden layers."""
    off_diagonal: NonNegativeFloat = 0.0051
    """Weight of the off-diagonal terms (lambda)."""
    scale: PositiveFloat = 1.0
    """Factor of the whole loss."""

    def training_passes(self, areas: Sequence[float]) -> float:
        return sum(areas)


class SupervisedConfig(Section):
    """Cross-entropy on the labels: the squeeze stage of SRe2L (arXiv:2306.13092)."""

    name: Literal["supervised"] = "supervised"
    label_smoothing: Probability = 0.0

    def training_passes(self, areas: Sequence[float]) -> float:
        return sum(areas)


def _name(value: Any) -> str | None:
    """Which objective a section is about: MoCo v2 where it does not say."""
    return value.get("name", "moco_v2") if isinstance(value, dict) else getattr(value, "name", None)


ObjectiveConfig = Annotated[
    Annotated[MocoV2Config, Tag("moco_v2")]
    | Annotated[MocoV3Config, Tag("moco_v3")]
    | Annotated[SwavConfig, Tag("swav")]
    | Annotated[DinoConfig, Tag("dino")]
    | Annotated[BarlowTwinsConfig, Tag("barlow_twins")]
    | Annotated[SupervisedConfig, Tag("supervised")],
    Discriminator(_name),
]

VIEWS = {
    "moco_v2": (2, 2),
    "moco_v3": (2, 2),
    "swav": (2, None),
    "dino": (2, None),
    "barlow_twins": (2, 2),
    "supervised": (1, 1),
}
"""Least and most views that an objective takes; the first two of more are the global ones."""
