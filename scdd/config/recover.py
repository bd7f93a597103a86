"""Recover: synthesise images from the teacher's weights and BatchNorm statistics."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from scdd.config.section import Probability, Section, Shares, Switch, Teachers

Start = Literal["noise", "real", "rded", "median"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class RecoverConfig(Section):
    """Cross-entropy plus BatchNorm-statistics matching (SC-DD, Eq. 8 and 9)."""

    start: Start = "noise"
    """noise: Gaussian, no real image is read. Real images of the class: real: random ones; rded:
    the crops that the teacher finds easiest, one an image (arXiv:2312.03526); median: those nearest
    to the median of the teacher's confidence (DELT, arXiv:2411.19946)."""
    candidates: PositiveInt = 300
    """rded: images of a class that are looked at."""
    candidate_crops: PositiveInt = 5
    """rded: random crops of each that are scored."""
    iterations: PositiveInt = 1000
    merges: NonNegativeInt = 0
    """Times that the images are mixed with those they started from, at equal distances between the
    first and the last iteration (FADRM, arXiv:2506.24125); the optimiser starts anew each time."""
    merge_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What stays of the images in such a mix."""

    # How images come together

    batch: PositiveInt = 100
    """Images whose statistics are matched together."""
    order: Literal["consecutive", "shuffled"] = "consecutive"
    """Which: consecutive rows of the rank-major order (as published, so a batch smaller than the
    number of classes always holds the same ones), or rows shuffled within each rank."""
    group: PositiveInt | None = None
    """Independent batches in one forward pass; changes results by rounding alone. Not given: 1 on a
    CPU, on a GPU what a short trial finds fastest."""

    # Adam, in normalised pixel space

    lr: PositiveFloat = 0.1
    """Peak rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: half a cosine, to 0."""
    warmup: NonNegativeInt = 0
    """Iterations of linear warm-up."""
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    weight_decay: NonNegativeFloat = 0.0
    """L2 pull of normalised pixels to 0 (1e-4 in the paper's tables, 0 in its code)."""

    # The loss

    teachers: Teachers = "teacher"
    """From which networks: the probed backbone, those of `squeeze_labellers`, or all of them. They
    take turns, one an iteration (EDC, arXiv:2404.13733); `relabel.teachers` says who labels."""
    temperature: PositiveFloat = 1.0
    """Of the softmax in the cross-entropy."""
    label_smoothing: Decay = 0.0
    alpha: NonNegativeFloat = 0.01
    """Weight of the matching loss; with raw distances not transferable between teachers
    (0.0005 .. 0.25, Table 13)."""
    alpha_end: NonNegativeFloat | None = None
    """Where alpha goes, along half a cosine; not given: it stays."""
    matching: Literal["raw", "relative"] = "raw"
    """raw: distances as published, summed over the layers. relative: each as a share of the norm of
    the running deviations (means) or variances, averaged over the layers, which is the same for a
    net whose convolutions are scaled, and so carries over between teachers."""
    first_bn_multiplier: NonNegativeFloat = 10.0
    """Weight of the first BatchNorm layer against 1 for the others (Table 5)."""
    layer_weights: dict[NonNegativeInt, tuple[NonNegativeFloat, NonNegativeFloat]] = Field(
        default_factory=dict
    )
    """beta_k and gamma_k of Eq. 8 by number of the layer, where they are others; counted from 0, in
    every teacher."""
    learn_weights: bool = False
    """Learn a factor of each layer's beta_k and gamma_k with the images: exp(-s) and, lest all
    become 0, + s in the loss (homoscedastic uncertainty, arXiv:1705.07115)."""
    tv: NonNegativeFloat = 0.0
    """Weight of the norms of differences between neighbouring pixels."""
    l2: NonNegativeFloat = 0.0
    """Weight of the norm of the images."""

    # The views

    crop: Literal["none", "batch", "sample"] = "batch"
    """Random resized crop and flip: one draw for the batch (as published) or one per image."""
    crop_scale: Shares = (0.08, 1.0)
    crop_curriculum: Probability = 0.0
    """Share of the iterations over which the smallest crop shrinks from the whole image to its size
    (CDA, arXiv:2311.18838)."""
    flip: bool = True
    """Flip at random with the crop; false where left and right differ in meaning."""
    roll: NonNegativeInt = 0
    """Cyclic shift of the batch, in pixels, uniform in [0, roll] on both axes."""

    # How it is computed

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the teacher's arithmetic; auto: bf16 on CUDA, fp32 elsewhere. Statistics and losses are
    in fp32."""
    compile: Switch = "auto"
    """Compile the teacher with torch.compile; auto: where there is work enough to make up for it,
    and if it can be done."""
    save: Literal["lossless", "jpeg75"] = "lossless"
    """jpeg75: cut to 8 bits and once through JPEG of quality 75, as the paper's images were."""

    @model_validator(mode="after")
    def _merges_have_something_to_mix_in(self) -> Self:
        if self.merges and self.start == "noise":
            raise ValueError(
                f"merges is {self.merges}, but images that start from noise have no real one to be "
                "mixed with; set start to real, rded or median"
            )
        if self.merges >= self.iterations:
            raise ValueError(
                f"merges is {self.merges}, which {self.iterations} iterations have no room for; "
                "lower it"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warmup >= self.iterations:
            raise ValueError(
                f"warmup is {self.warmup}, but there are only {self.iterations} iterations"
            )
        return self


class RecoverRealConfig(RecoverConfig):
    """The arm that begins with real images."""

    start: Annotated[Start, Field()] = "real"

    @model_validator(mode="after")
    def _starts_from_real_images(self) -> Self:
        if self.start == "noise":
            raise ValueError("start is noise, but this arm is the one that starts from real images")
        return self
