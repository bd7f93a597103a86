"""Recover: synthesise images from the teacher's weights and BatchNorm statistics."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from scdd.config.section import Probability, Section, Shares


class RecoverConfig(Section):
    """Cross-entropy plus BatchNorm-statistics matching (SC-DD, Eq. 8 and 9)."""

    start: Literal["noise", "real"] = "noise"
    """Gaussian noise (no real image is read), or random real images of the class."""
    iterations: PositiveInt = 1000
    batch: PositiveInt = 100
    """Images whose statistics are matched together: consecutive rows of the rank-major order."""
    lr: PositiveFloat = 0.1
    """Adam's peak rate in normalised pixel space; cosine to 0."""
    betas: tuple[Probability, Probability] = (0.5, 0.9)
    weight_decay: NonNegativeFloat = 0.0
    """L2 pull of normalised pixels to 0 (1e-4 in the paper's tables, 0 in its code)."""
    alpha: NonNegativeFloat = 0.01
    """Weight of the matching loss; not transferable between teachers (0.0005 .. 0.25, Table 13)."""
    first_bn_multiplier: NonNegativeFloat = 10.0
    """Weight of the first BatchNorm layer against 1 for the others (Table 5)."""
    crop: Literal["none", "batch", "sample"] = "batch"
    """Random resized crop and flip: one draw for the batch (as published) or one per image."""
    crop_scale: Shares = (0.08, 1.0)
    flip: bool = True
    """Flip at random with the crop; false where left and right differ in meaning."""
    roll: NonNegativeInt = 0
    """Cyclic shift of the batch, in pixels, uniform in [0, roll] on both axes."""


class RecoverRealConfig(RecoverConfig):
    """The arm that begins with real images."""

    start: Literal["real"] = "real"
