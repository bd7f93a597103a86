"""Relabel: stored views of the images and the teacher's logits on them."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from scdd.config.section import Section, Shares, Teachers


class RandAugmentConfig(Section):
    """Random operations on every view (arXiv:1909.13719), the same number and strength for all."""

    count: Annotated[int, Field(ge=1, le=16)] = 2
    """Operations, one after the other, each out of 14."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength: of 30 a rotation by 30 degrees, colours changed by 0.9."""


class RelabelConfig(Section):
    """Views [V] of every image, and one soft label per view."""

    views: PositiveInt = 100
    """Views stored; an epoch of post-training uses one of them, in turn."""
    crop: Literal["none", "resized", "padded"] = "resized"
    """Random resized crop, or a shifted window of the zero-padded image."""
    crop_scale: Shares = (0.08, 1.0)
    """Area of the resized crop as a share of the image."""
    padding: NonNegativeInt = 4
    """Pixels of zero padding for `crop: padded`."""
    flip: bool = True
    """Flip with probability 1/2; false where left and right differ in meaning."""
    randaugment: RandAugmentConfig | None = None
    """RandAugment after crop and flip; not given: none."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    mix_alpha: PositiveFloat = 1.0
    """lambda ~ Beta(mix_alpha, mix_alpha), drawn per image."""
    teacher_bn: Literal["running", "batch"] = "running"
    """BatchNorm of the teacher while labelling: stored statistics, or those of the group."""
    group: Annotated[int, Field(ge=2)] = 25
    """Images labelled, and later trained on, together when `teacher_bn` is batch."""
    teachers: Teachers = "teacher"
    """Which networks label: the probed backbone, those of `squeeze_labellers`, or all of them; a
    label is the mean of their logits (arXiv:2501.07575)."""
    epochs: dict[str, PositiveInt] = Field(default_factory=dict)
    """Labellers, by arch, that label as they were after an earlier epoch, one of the `keep_epochs`
    of their section; not given: the last. With few images a class the best labeller is a weak one
    (arXiv:2406.10485)."""
    codec: Literal["full", "int8", "int4", "topk", "hard", "teacher"] = "full"
    """How soft labels are stored. full: float16 logits; int8, int4: 256 or 16 steps between the
    smallest and the largest of a label; topk: the largest and one logit for all others; hard: none,
    views serve training on class labels; teacher: none, the teacher's weights lie beside."""
    top: PositiveInt = 10
    """Logits of a label that topk keeps."""
    rest_temperature: PositiveFloat = 20.0
    """Temperature at which topk keeps the probability of all other classes together; that of
    post-training, if one is to be chosen."""
