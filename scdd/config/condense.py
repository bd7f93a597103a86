"""Condense: learn images whose embeddings have the class means of the real ones."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from scdd.config.section import Section

DsaOperation = Literal["colour", "crop", "cutout", "flip", "scale", "rotate"]


class CondenseConfig(Section):
    """Distribution matching (DM, arXiv:2110.04181); the defaults are the paper's."""

    start: Literal["real", "noise"] = "real"
    """real: random images of the class; noise: Gaussian. Real images are matched in both."""
    iterations: PositiveInt = 20_000
    """Steps on the images; each has a network of its own."""
    batch: PositiveInt = 256
    """Real images of each class in an iteration; all of them, where a class has fewer."""
    arch: str = "convnet"
    """Of the networks, new and random each time, that embed the images; none with BatchNorm."""
    dsa: tuple[DsaOperation, ...] = ("colour", "crop", "cutout", "flip", "scale", "rotate")
    """Differentiable Siamese augmentation (arXiv:2102.08259): each class of an iteration has its
    real and its synthetic images changed by the same one of these. Leave out flip where left and
    right differ in meaning; []: none."""

    # SGD, in normalised pixel space

    lr: PositiveFloat = 1.0
    """The paper's up to 50 images per class; 10 above, on CIFAR-10."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5

    # How it is computed

    group: PositiveInt | None = None
    """Classes in one forward pass; changes results by rounding alone. Not given: as many as make a
    pass of moderate size, on a CPU a smaller one."""

    @model_validator(mode="after")
    def _operations_differ(self) -> Self:
        twice = [name for name in self.dsa if self.dsa.count(name) > 1]
        if twice:
            raise ValueError(f"dsa: {twice[0]} stands there twice; name it once")
        return self
