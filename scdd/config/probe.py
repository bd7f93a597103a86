"""Probe: a linear classifier on the frozen backbone turns it into the teacher."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from scdd.config.section import Probability, Section, Shares


class ProbeConfig(Section):
    """Multinomial logistic regression on eval-mode features of a backbone that stays as it is."""

    solver: Literal["lbfgs", "sgd", "given"] = "lbfgs"
    """lbfgs: to the optimum, on features computed once; sgd: the classical way, epochs over fresh
    crops; given: the classifier that squeeze trained or brought along, as it is."""
    floor: Annotated[float, Field(ge=0, le=100)] | None = None
    """Per cent of the validation images that every teacher must classify right, else the run stops;
    not given: twice guessing, or half of the way from guessing to 100 where that is less."""

    # lbfgs and sgd

    crop_scale: Shares = (0.3, 1.0)
    """Share of the image's area that a random resized crop takes."""
    flip: bool = True
    """Flip the crops at random; false where left and right differ in meaning."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of train on which `l2` or `lr` is chosen, when several are given."""

    # lbfgs

    l2: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2)
    """Weight penalties to try; the best on a held-out part of train is used."""
    iterations: PositiveInt = 200
    """L-BFGS iterations."""
    crops: NonNegativeInt = 1
    """Random resized crops of each image beside the whole one, so that crops are classified too."""

    # sgd

    lr: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.003, 0.01, 0.03, 0.1, 0.3, 1)
    """Peak rates to try, all in one pass; the best on a held-out part of train is used."""
    epochs: PositiveInt = 100
    batch: PositiveInt = 256
    """Images of a step."""
    momentum: Probability = 0.9
    weight_decay: NonNegativeFloat = 0.0
    """Of the weights; the bias is free."""
    standardise: bool = True
    """Train on features of zero mean and unit variance, so that one rate suits every backbone; the
    statistics are measured once, on whole images, and end up inside the classifier."""

    @property
    def epochs_over_train(self) -> float:
        """How often sgd goes over the training images: to choose a rate, then with it."""
        if self.solver != "sgd":
            return 0
        return self.epochs * (1 if len(self.lr) == 1 else 2 - self.holdout)
