"""Random views: what a self-supervised objective compares."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from scdd.config.section import Probability, Range, Section, Shares


class ViewConfig(Section):
    """One kind of random view of an image; every draw is per sample."""

    count: Annotated[int, Field(ge=1, le=100)] = 1
    """Views of this kind; 2 where both are drawn alike, 6 for the local crops of multi-crop."""
    size: Annotated[int, Field(ge=8)] | None = None
    """Side in pixels; that of the images if not given."""
    crop_scale: Shares = (0.2, 1.0)
    """Area of the random resized crop as a share of the image."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: Probability = 0.8
    """Probability of colour jitter."""
    brightness: NonNegativeFloat = 0.4
    contrast: NonNegativeFloat = 0.4
    saturation: NonNegativeFloat = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grey: Probability = 0.2
    """Probability of turning to grey."""
    blur: Probability = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: Range = (0.1, 2.0)
    """Standard deviation of the blur in pixels."""
    solarise: Probability = 0.0
    """Probability of inverting values of one half and more."""
