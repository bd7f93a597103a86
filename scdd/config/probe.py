"""Probe: a linear classifier on the frozen backbone turns it into the teacher."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from scdd.config.section import Section, Shares


class ProbeConfig(Section):
    """Multinomial logistic regression on standardised, cached, eval-mode features."""

    l2: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2)
    """Weight penalties to try; the best on a held-out part of train is used."""
    iterations: PositiveInt = 200
    """L-BFGS iterations."""
    crops: NonNegativeInt = 1
    """Random resized crops of each image beside the whole one, so that crops are classified too."""
    crop_scale: Shares = (0.3, 1.0)
    flip: bool = True
    """Flip the crops at random; false where left and right differ in meaning."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of train on which `l2` is chosen, when several are given."""
