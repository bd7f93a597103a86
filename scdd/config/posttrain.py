"""Post-train: students on the distilled images and stored labels."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from scdd.config.section import Probability, Section


class PosttrainConfig(Section):
    """Training of one student per arm, kind of label and seed."""

    arch: str = "resnet8"
    """Student; `scdd.models` lists the names."""
    epochs: PositiveInt = 300
    batch: Annotated[int, Field(ge=2)] = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    momentum: Probability = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegativeFloat = 0.01
    decay: Literal["all", "matrices"] = "matrices"
    """Parameters that decay: all, or those with two axes and more (no bias, no BatchNorm)."""
    stretch: Annotated[float, Field(ge=1)] = 1.0
    """Cosine over `stretch * epochs`: above 1 the rate does not reach 0 ("smoothed" schedule)."""
    schedule: Literal["step", "epoch"] = "step"
    """How often the rate is set."""
    warmup_epochs: NonNegativeInt = 0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the weights' exponential moving average, which is then what is scored; 0:
    no average. BatchNorm statistics stay those of the weights in training."""
    temperature: PositiveFloat = 20.0
    """Softens both sides of the KL divergence; no effect on hard labels."""
    scale_loss: bool = False
    """Multiply the KL loss by temperature**2 (needed with SGD)."""
    labels: Annotated[tuple[Literal["soft", "hard"], ...], Field(min_length=1)] = ("soft", "hard")
    seeds: PositiveInt = 1
    """Students per row of the table."""
    evaluate_every: NonNegativeInt = 0
    """Epochs between evaluations in metrics.jsonl; 0: the last epoch only. Scores use the last."""

    @field_validator("labels")
    @classmethod
    def _each_kind_once(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) < len(labels):
            raise ValueError(f"names a kind twice: {', '.join(labels)}")
        return labels

    def describe(self, steps_per_epoch: int) -> str:
        """Everything about one training that moves a score, in words."""
        warmup = f", {self.warmup_epochs} of them warm-up" if self.warmup_epochs else ""
        cosine = f", cosine stretched by {self.stretch:g}" if self.stretch != 1 else ""
        average = f", EMA {self.ema:g}" if self.ema else ""
        return (
            f"{self.epochs} epochs{warmup} = {self.epochs * steps_per_epoch} steps of batch "
            f"{self.batch}, {self.optimizer} lr {self.lr:g}{cosine}, "
            f"weight decay {self.weight_decay:g}{average}, T = {self.temperature:g}"
        )
