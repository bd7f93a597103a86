"""Post-train: students on the distilled images and stored labels."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from scdd.config.section import Probability, Section, Switch


class PosttrainConfig(Section):
    """Training of one student per arm, kind of label and seed."""

    arch: str = "resnet8"
    """Student; `scdd.models` lists the names."""
    epochs: PositiveInt = 300
    batch: Annotated[int, Field(ge=2)] = 64
    """Images of a step."""
    micro_batches: PositiveInt = 1
    """Equal parts of a batch that are seen one after the other, each with BatchNorm statistics of
    its own; their gradients are averaged (CV-DD, FADRM: 16 = 8 + 8). Views that were labelled in
    groups stay together in one of them."""
    flip: Probability = 0.0
    """Chance that a view is mirrored once more, under the label that it has. It makes more of few
    stored views, where left and right mean the same to the teacher."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Probability = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegativeFloat = 0.01
    decay: Literal["all", "matrices"] = "matrices"
    """Parameters that decay: all, or those with two axes and more (no bias, no BatchNorm)."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the weights' exponential moving average, which is then what is scored; 0:
    no average. BatchNorm statistics stay those of the weights in training."""

    # The learning rate

    lr: PositiveFloat = 1e-3
    """Peak rate."""
    lr_schedule: Literal["cosine", "multistep", "ssrs"] = "cosine"
    """cosine: half a cosine; multistep: constant, times `gamma` at every milestone; ssrs: the
    cosine up to 5/6 of the training, then on a line to 0 (EDC, arXiv:2404.13733, for high ipc)."""
    stretch: Annotated[float, Field(ge=1)] = 1.0
    """Cosine over `stretch * epochs`: above 1 the rate does not reach 0 ("smoothed" schedule)."""
    milestones: tuple[Probability, ...] = (0.8, 0.9, 0.95)
    """Shares of the training after which multistep multiplies the rate (EDC on CIFAR-10)."""
    gamma: Probability = 0.5
    """By what."""
    schedule: Literal["step", "epoch"] = "step"
    """How often the rate is set."""
    warmup_epochs: NonNegativeInt = 0
    """Linear warm-up before all this; milestones count from the first epoch, the cosine after."""
    warmup_from: Probability = 0.0
    """Share of the peak rate that warm-up starts from; torchvision's scripts take 0.01."""

    # The loss

    loss: Literal["kl", "mse"] = "kl"
    """Of soft labels. kl: divergence of softened distributions; mse: mean squared difference of the
    logits as they are (EDC)."""
    temperature: PositiveFloat = 20.0
    """Softens both sides of the KL divergence; no effect on hard labels."""
    scale_loss: bool = False
    """Multiply the KL loss by temperature**2 (needed with SGD)."""
    hard_weight: NonNegativeFloat = 0.0
    """Weight of the cross-entropy with the class labels that is added to the loss of soft labels
    (EDC: 0.025)."""

    # How it is computed

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the student's arithmetic; auto: bf16 on CUDA, fp32 elsewhere. Losses are in fp32."""
    capture: Switch = "auto"
    """Record the step as a CUDA graph, which launches all of its kernels at once; auto: on a GPU,
    if the student can be (no dropout); on: or stop."""

    # What is trained and scored

    labels: Annotated[tuple[Literal["soft", "hard"], ...], Field(min_length=1)] = ("soft", "hard")
    seeds: PositiveInt = 1
    """Students per row of the table."""
    evaluate_every: NonNegativeInt = 0
    """Epochs between evaluations, which metrics.jsonl and results.json hold with the best of them;
    0: the last epoch only. Tables show the last epoch."""

    @property
    def micro_batch(self) -> int:
        """Images of a forward pass."""
        return self.batch // self.micro_batches

    @field_validator("labels")
    @classmethod
    def _each_kind_once(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) < len(labels):
            raise ValueError(f"names a kind twice: {', '.join(labels)}")
        return labels

    @model_validator(mode="after")
    def _micro_batches_are_equal_and_have_statistics(self) -> Self:
        if self.batch % self.micro_batches or self.micro_batch < 2:
            raise ValueError(
                f"micro_batches is {self.micro_batches}, which cannot share {self.batch} images "
                "(batch) into equal parts of two and more; change one of them"
            )
        return self

    def describe(self, steps_per_epoch: int) -> str:
        """Everything about one training that moves a score, in words."""
        warmup = f", {self.warmup_epochs} of them warm-up" if self.warmup_epochs else ""
        micro = f" in {self.micro_batches} micro-batches" if self.micro_batches > 1 else ""
        flips = f", mirrored by {self.flip:g}" if self.flip else ""
        average = f", EMA {self.ema:g}" if self.ema else ""
        loss = f"T = {self.temperature:g}" if self.loss == "kl" else "squared error of logits"
        hard = f" + {self.hard_weight:g} cross-entropy" if self.hard_weight else ""
        return (
            f"{self.epochs} epochs{warmup} = {self.epochs * steps_per_epoch} steps of batch "
            f"{self.batch}{micro}{flips}, {self.optimizer} lr {self.lr:g}{self._describe_rate()}, "
            f"weight decay {self.weight_decay:g}{average}, {loss}{hard}"
        )

    def _describe_rate(self) -> str:
        if self.lr_schedule == "multistep":
            places = ", ".join(f"{100 * milestone:g}" for milestone in self.milestones)
            return f" times {self.gamma:g} at {places} %"
        if self.lr_schedule == "ssrs":
            return f", SSRS stretched by {self.stretch:g}"
        return f", cosine stretched by {self.stretch:g}" if self.stretch != 1 else ""
