"""Squeeze: pre-training of the backbone."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from scdd.config.checkpoint import CheckpointConfig
from scdd.config.objectives import VIEWS, MocoV2Config, ObjectiveConfig, SwavConfig
from scdd.config.section import Probability, Section
from scdd.config.stem import Stem
from scdd.config.views import ViewConfig


class SqueezeConfig(Section):
    """Pre-training of the backbone on the images, without labels unless it is supervised."""

    arch: str = "resnet8x2"
    """Backbone; `scdd.models` lists the names."""
    zero_init_residual: bool = False
    """Start residual branches at zero, as MoCo v3 and Barlow Twins do on ImageNet."""
    objective: ObjectiveConfig = MocoV2Config()
    stem: Stem | None = None
    """First layers of a ResNet; not given: what suits the image size. A checkpoint whose first
    convolution is 3x3 needs it, since weights do not tell stride, padding and pool."""
    checkpoint: CheckpointConfig | None = None
    """Take the weights of a file and train nothing; what follows here is then without effect."""
    epochs: PositiveInt = 200
    batch: Annotated[int, Field(ge=2)] = 256
    """Images of a step, on all processes together."""
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: PositiveFloat = 0.03
    vector_lr: PositiveFloat | None = None
    """Peak rate of biases and BatchNorm where it is another (Barlow Twins with LARS)."""
    final_lr: NonNegativeFloat = 0.0
    """Where the cosine ends, and from where warm-up starts."""
    momentum: Probability = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: NonNegativeFloat = 1e-4
    decay: Literal["all", "matrices"] = "all"
    """Parameters that decay: all, or those with two axes and more; with LARS always the latter."""
    clip: NonNegativeFloat = 0.0
    """Largest norm of the gradient of each parameter tensor; 0: not clipped."""
    warmup_epochs: NonNegativeInt = 0
    """Linear warm-up before the cosine."""
    views: Annotated[tuple[ViewConfig, ...], Field(min_length=1)] = (ViewConfig(count=2),)
    """What the objective compares; with more than two views, the first two are the global ones."""
    keep_epochs: tuple[PositiveInt, ...] = ()
    """Epochs after which the backbone is kept beside the last one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the backbone's arithmetic; auto: bf16 on CUDA, fp32 elsewhere. Losses are in fp32."""
    compile: bool = False
    """Compile the backbone with torch.compile."""
    knn_every: NonNegativeInt = 10
    """Epochs between kNN checks on the validation images; 0: never."""
    knn_k: PositiveInt = 20
    knn_temperature: PositiveFloat = 0.1
    collapse_below: NonNegativeFloat = 0.02
    """Stop when the spread of the embeddings (1: uniform on the sphere) is smaller; 0: never."""

    @property
    def view_sizes(self) -> tuple[int | None, ...]:
        """Side of every view in pixels; None: that of the images."""
        return tuple(view.size for view in self.views for _ in range(view.count))

    @model_validator(mode="after")
    def _views_fit_the_objective(self) -> Self:
        name, sizes = self.objective.name, self.view_sizes
        least, most = VIEWS[name]
        if len(sizes) < least or (most is not None and len(sizes) > most):
            wanted = f"{least}" if least == most else f"at least {least}"
            raise ValueError(
                f"views: {name} wants {wanted} of an image, but views make {len(sizes)}; change "
                f"their count, as in views: [{{count: {least}}}]"
            )
        if len(set(sizes[:2])) > 1:
            raise ValueError("views: the first two are the global ones and need the same size")
        return self

    @model_validator(mode="after")
    def _queue_holds_a_step(self) -> Self:
        if not isinstance(self.objective, MocoV2Config):
            return self
        keys = self.batch * (2 if self.objective.symmetric else 1)
        if self.objective.queue < keys:
            raise ValueError(
                f"objective.queue is {self.objective.queue}, but a step makes {keys} keys; choose "
                f"a queue of at least {keys}, or a smaller batch"
            )
        return self

    @model_validator(mode="after")
    def _no_part_of_the_objective_is_idle(self) -> Self:
        objective = self.objective
        if isinstance(objective, MocoV2Config) and 2 * objective.key_splits > self.batch:
            raise ValueError(
                f"objective.key_splits is {objective.key_splits}, which leaves less than two of "
                f"{self.batch} images to each; lower it or raise the batch"
            )
        late = isinstance(objective, SwavConfig) and objective.queue_from_epoch >= self.epochs
        if isinstance(objective, SwavConfig) and objective.queue and late:
            raise ValueError(
                f"objective.queue_from_epoch is {objective.queue_from_epoch}, but there are only "
                f"{self.epochs} epochs, so the queue would never be used; lower it"
            )
        return self

    @model_validator(mode="after")
    def _kept_epochs_exist(self) -> Self:
        if self.checkpoint is not None and self.keep_epochs:
            raise ValueError(
                "keep_epochs: a checkpoint is not trained, so it has none; leave it out"
            )
        late = [epoch for epoch in self.keep_epochs if epoch > self.epochs]
        if late:
            raise ValueError(f"keep_epochs names epoch {late[0]}, but there are {self.epochs}")
        return self
