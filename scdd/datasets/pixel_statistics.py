"""Channel means and standard deviations of a set of images."""

import torch
from torch import Tensor

from scdd.config.section import Triple

SMALLEST_STD = 1 / 255


def measure_mean_std(images: Tensor) -> tuple[Triple, Triple]:
    """Return the channel (means, standard deviations) of uint8 `[N, 3, H, W]` as [0, 1] values.

    Both are over all pixels of all images (population statistics). They come from exact counts
    of the 256 levels, so neither chunk nor thread changes a digit. A constant channel, which
    cannot be scaled to unit variance, gets one grey level as its standard deviation.
    """
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for chunk in images.split(4096):
        for channel in range(3):
            counts[channel] += torch.bincount(chunk[:, channel].reshape(-1), minlength=256).cpu()
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * levels).sum(1)
    variance = (share * (levels - mean[:, None]).square()).sum(1)
    return _triple(mean), _triple(variance.sqrt().clamp_min(SMALLEST_STD))


def _triple(values: Tensor) -> Triple:
    red, green, blue = values.tolist()
    return red, green, blue
