"""Condense pairs: images with representation targets, learnt by kernel ridge regression."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from scdd.config.dataset import DatasetConfig
from scdd.config.finetune import FinetuneConfig
from scdd.config.section import Probability, Section, Switch


class PoolConfig(Section):
    """The online models, on whose features the regression is solved."""

    models: PositiveInt = 10
    arch: str = "convnet_krr"
    """Network of all of them; `scdd.models` lists the names."""
    age: PositiveInt = 1000
    """Steps after which a model is initialised anew; at the start ages are drawn from 1 .. age - 1.
    """
    reset_counter: bool = True
    """Count the steps of a new model from 0. false: go on counting, as released with KRR-ST, so
    that sooner or later all models are new ones at every step."""
    lr: PositiveFloat = 0.1
    """Constant rate of SGD."""
    momentum: Probability = 0.9
    weight_decay: NonNegativeFloat = 1e-3
    batch: PositiveInt = 2000
    """Most pairs of a step; where there are more, steps take turns with fixed parts of them."""


class BasesConfig(Section):
    """Sizes, start and orthogonality of the bases (Boost)."""

    images: PositiveInt | None = None
    """Basis images U; not given: 2 N, at most 400, and no more than there are pixels or images. If
    bases and networks took more than 3/4 of the budget, fewer of both kinds."""
    targets: PositiveInt | None = None
    """Basis targets V; not given: 2 N, at most 256, and no more than a target is long; or fewer."""
    size: PositiveInt | None = None
    """Side of a basis image in pixels; not given: half of the image, at most 16."""
    start: Literal["pca", "random_orthonormal", "random_gaussian", "real_samples"] = "pca"
    """What the bases are at first. pca: leading principal components; real_samples: real images and
    targets, centred and of length 1."""
    coefficients: Literal["project", "random"] = "project"
    """What the coefficients are at first. project: those that come nearest to real images and their
    targets; random: Gaussian of the same size."""
    samples: PositiveInt = 20_000
    """Most real images that means and principal components are computed from."""
    pca_views: bool = True
    """Let the components of the targets see the turned images too."""
    lr_share: NonNegativeFloat = 0.1
    """Rate of the bases as a share of that of the coefficients, which are 100 times larger."""
    orthogonality: Literal["export", "every_k", "penalty"] = "export"
    """export: bases are made orthonormal once, at the end, which changes no image and no target;
    every_k: also every `every` steps, where their optimiser's moments start anew; penalty: and
    `penalty` times the squared error of their inner products is part of the loss."""
    every: PositiveInt = 1000
    penalty: NonNegativeFloat = 1e-2


class ApproximationConfig(Section):
    """The networks that predict the targets of turned views (Boost)."""

    hidden: PositiveInt = 4
    steps: PositiveInt = 1000
    """Of Adam, on all pairs at once."""
    lr: PositiveFloat = 1e-2
    """Peak rate; half a cosine to 0."""


class CondensePairsConfig(Section):
    """KRR-ST (arXiv:2310.06511), and with bases and rotations Boost (arXiv:2507.21455)."""

    budget_n: PositiveInt = 100
    """N: the set takes no more numbers than N raw images with their targets."""
    pairs: PositiveInt | None = None
    """Images m; not given: N without bases, else what the budget has room for, at most 2 N (or 256,
    if that is more)."""
    parameterisation: Literal["raw", "bases"] = "bases"
    """raw: pixels and targets are learnt as they are (KRR-ST); bases: as coefficients of bases that
    are learnt with them."""
    rotations: bool = True
    """Learn every image in its four quarter turns, each with targets of its own."""
    approximation: bool = True
    """Predict the targets of turned images by small networks; false: they are stored."""
    start_space: Literal["normalised", "unit"] = "normalised"
    """Where raw images start: as networks see them, or (unit) as pixels in [0, 1], as released."""

    # The outer loop

    steps: PositiveInt = 30_000
    batch: PositiveInt = 1024
    """Real images of a step."""
    lr: PositiveFloat = 1e-3
    """Rate of AdamW, without weight decay; falls on a line to `final_lr`."""
    final_lr: NonNegativeFloat = 0.0
    ridge: PositiveFloat = 1e-6
    """Regularisation as a share of the trace of the kernel matrix."""
    outer_support: Literal["all", "base", "cycle"] = "all"
    """What the regression is fitted on: all views, the images as they are, or these and one turned
    view, another at every step."""
    outer_aug: Literal["crop_flip", "flip", "none"] = "crop_flip"
    """Random views of the real images, which the teacher sees as well."""
    crop_padding: PositiveInt = 4
    """Pixels by which a crop may leave the image."""
    cache_gib: NonNegativeFloat = 4.0
    """Largest table of the teacher's outputs for all views of all real images; it is made if it
    takes less than the steps would, and is as large. 0: never."""

    compile: Switch = "auto"
    """Run the online models through torch.compile; auto: where there is work enough to make up for
    it, and if it can be done."""

    pool: PoolConfig = PoolConfig()
    bases: BasesConfig = BasesConfig()
    approximate: ApproximationConfig = ApproximationConfig()

    @property
    def turns(self) -> tuple[int, ...]:
        """Counter-clockwise quarter turns of the views."""
        return (0, 1, 2, 3) if self.rotations else (0,)

    @model_validator(mode="after")
    def _parts_that_need_another_have_it(self) -> Self:
        if self.parameterisation == "raw" and self.rotations:
            raise ValueError(
                "rotations is true, but parameterisation is raw, which stores one target an image; "
                "set rotations to false, or parameterisation to bases"
            )
        if self.approximation and not self.rotations:
            raise ValueError(
                "approximation is true, but rotations is false, so that there is no target to "
                "predict; set approximation to false"
            )
        if self.parameterisation == "bases" and self.start_space == "unit":
            raise ValueError(
                "start_space is unit, but bases start from normalised images; set start_space to "
                "normalised, or parameterisation to raw"
            )
        return self

    @model_validator(mode="after")
    def _rates_fall(self) -> Self:
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr is {self.final_lr:g}, above lr ({self.lr:g}); lower it")
        return self


class LinearProbeConfig(Section):
    """A linear classifier on the features of a network that stays as it is."""

    solver: Literal["sgd", "lbfgs"] = "sgd"
    """sgd: as released with KRR-ST, on features as they are; lbfgs: to the optimum, on standardised
    features."""
    iterations: PositiveInt = 5000
    """Steps of sgd, or of L-BFGS at most."""
    batch: PositiveInt = 512
    lr: PositiveFloat = 0.2
    """Peak rate of sgd; half a cosine to 0."""
    momentum: Probability = 0.9
    l2: NonNegativeFloat = 1e-3
    """Weight penalty of lbfgs."""


class PretrainConfig(Section):
    """Regression of any network to the targets of pairs, and what its features are worth."""

    arch: str = "convnet_krr"
    seeds: PositiveInt = 1
    """Networks that are trained on each set; scores are their mean."""
    epochs: PositiveInt = 1000
    batch: Annotated[int, Field(ge=2)] = 256
    lr: PositiveFloat = 0.1
    """Constant rate of SGD."""
    momentum: Probability = 0.9
    weight_decay: NonNegativeFloat = 1e-3
    probe: LinearProbeConfig = LinearProbeConfig()
    finetune: FinetuneConfig | None = None
    """A second score of every network: its accuracy after all of it has learnt from the real
    images; not given: no such score."""
    transfer: tuple[DatasetConfig, ...] = ()
    """More images on which the same networks are probed, and fine-tuned where that is on."""

    def describe(self) -> str:
        """Everything but the network that moves a score, in words."""
        tuned = f"; fine-tuning: {self.finetune.describe()}" if self.finetune is not None else ""
        return (
            f"{self.epochs} epochs of batch {self.batch}, sgd lr {self.lr:g}, weight decay "
            f"{self.weight_decay:g}; linear probe by {self.probe.solver}{tuned}"
        )
