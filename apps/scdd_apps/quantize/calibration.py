"""The images that activation ranges are measured on: whole images of files, and noise."""

import torch
from torch import Tensor

from scdd.config.section import Triple
from scdd.distilled import DistilledFile
from scdd.seeding import generator
from scdd_apps.files import Inputs

NOISE = "noise"
MOST = 512
"""Images an arm, unless the user wants another number: entropy takes long with more."""


def calibration_images(inputs: Inputs, most: int) -> dict[str, Tensor]:
    """The first images of FILE and of the baseline, and noise: uint8 [N, 3, S, S] by name.

    N is the same for all: at most `most`, and no more than the smallest file has. Files are in
    rank-major order, so classes are balanced. Views, crops and mixtures are left out.

    Raises:
        FormatError: if a file is damaged.
    """
    arms = {}
    for name, path in inputs.arms.items():
        with DistilledFile(path) as file:
            arms[name] = file.images(slice(most))
    count = min(map(len, arms.values()))
    arms = {name: images[:count] for name, images in arms.items()}
    header = inputs.header
    shape = (count, 3, header.image_size, header.image_size)
    return {**arms, NOISE: noise(shape, header.mean, header.std)}


def noise(shape: tuple[int, ...], mean: Triple, std: Triple) -> Tensor:
    """Independent Gaussian pixels with the mean and deviation of the real ones, as uint8."""
    low, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    drawn = torch.randn(shape, generator=generator(0, "apps.quantize.noise"))
    return (255 * (low + scale * drawn)).round().clamp(0, 255).byte()
