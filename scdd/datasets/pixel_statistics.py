"""Channel means and standard deviations of a set of images."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from scdd.config.section import Triple
from scdd.datasets.sources import ImageSource

SMALLEST_STD = 1 / 255


def measure_mean_std(chunks: Iterable[Tensor]) -> tuple[Triple, Triple]:
    """Return the channel (means, standard deviations) of uint8 `[N, 3, H, W]` as [0, 1] values.

    Both are over all pixels of all images of all chunks (population statistics). They come from
    exact counts of the 256 levels, so neither chunk nor thread changes a digit. A constant channel,
    which cannot be scaled to unit variance, gets one grey level as its standard deviation.
    """
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for chunk in chunks:
        for channel in range(3):
            counts[channel] += torch.bincount(chunk[:, channel].reshape(-1), minlength=256).cpu()
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * levels).sum(1)
    variance = (share * (levels - mean[:, None]).square()).sum(1)
    std = variance.sqrt().clamp_min(SMALLEST_STD)
    return _triple(mean.tolist()), _triple(std.tolist())


def with_statistics(
    source: ImageSource, mean: Sequence[float], std: Sequence[float]
) -> ImageSource:
    """The same images, to be normalised with other statistics: those a network was trained with.

    A network stays tied to them, whatever images it sees later: its first weights and the running
    statistics of its BatchNorm layers belong to inputs of that scale.
    """
    other = copy.copy(source)
    other.mean, other.std = _triple(mean), _triple(std)
    return other


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue
