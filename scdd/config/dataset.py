"""Which images are distilled."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from scdd.config.section import Probability, Section

Spread = Annotated[float, Field(gt=0, le=1)]

LEAST_SIZE = 8
"""Pixels of the side of an image, with fewer of which no network works."""


class DatasetConfig(Section):
    """Where the real images come from and at which size they are used."""

    name: Literal["digits", "image_folder", "cifar10", "cifar100"] = "digits"
    """`digits` is embedded; `image_folder` wants `root` with train/ and val/ class folders."""
    root: str | None = None
    """Folder of the data; not used by `digits`."""
    image_size: Annotated[int, Field(ge=LEAST_SIZE, le=1024)] = 16
    """Side in pixels: short side resized to it with antialiasing, then centre-cropped."""
    download: bool = False
    """Let torchvision download cifar10 or cifar100 into `root`."""
    storage: Literal["resident", "streaming"] = "resident"
    """resident: all images are decoded once to `image_size` and kept in memory; streaming (of an
    image_folder): decoded whenever they are needed, crops cut from the original image."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Processes that decode images while streaming; 0: the training process does; not given: one
    for each CPU core, at most 16. Changes no result."""
    mean: tuple[Probability, Probability, Probability] | None = None
    """Channel means in [0, 1]; measured on train if not given, on 4,000 of it if streaming."""
    std: tuple[Spread, Spread, Spread] | None = None
    """Channel standard deviations in [0, 1]; measured as the means are if not given."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of train held out per class and evaluated on instead of val: for tuning settings."""
    train_per_class: PositiveInt | None = None
    """Use only this many training images of each class (the first ones); all if not given."""

    @property
    def title(self) -> str:
        """What reports call the images: of a folder the last part of its path, never more."""
        folder = Path(self.root or "").name if self.name == "image_folder" else ""
        return folder or self.name

    @model_validator(mode="after")
    def _only_files_are_streamed(self) -> Self:
        if self.storage == "streaming" and self.name != "image_folder":
            raise ValueError(
                f"storage is streaming, which only an image_folder can be, and name is {self.name};"
                " set storage=resident"
            )
        if self.storage != "streaming" and self.workers is not None:
            raise ValueError(
                f"workers is {self.workers}, but images are decoded by workers only while "
                "streaming; set storage=streaming, or leave workers out"
            )
        return self
