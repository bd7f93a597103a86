"""Which images are distilled."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from scdd.config.section import Probability, Section

Spread = Annotated[float, Field(gt=0, le=1)]


class DatasetConfig(Section):
    """Where the real images come from and at which size they are used."""

    name: Literal["digits", "image_folder", "cifar10", "cifar100"] = "digits"
    """`digits` is embedded; `image_folder` wants `root` with train/ and val/ class folders."""
    root: str | None = None
    """Folder of the data; not used by `digits`."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 16
    """Side in pixels: short side resized to it with antialiasing, then centre-cropped."""
    download: bool = False
    """Let torchvision download cifar10 or cifar100 into `root`."""
    mean: tuple[Probability, Probability, Probability] | None = None
    """Channel means in [0, 1]; measured on train if not given."""
    std: tuple[Spread, Spread, Spread] | None = None
    """Channel standard deviations in [0, 1]; measured on train if not given."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of train held out per class and evaluated on instead of val: for tuning settings."""
    train_per_class: PositiveInt | None = None
    """Use only this many training images of each class (the first ones); all if not given."""
