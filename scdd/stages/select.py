"""Select: real images in place of synthetic ones, for baselines and for a real start."""

import torch
from torch import Tensor

from scdd.datasets.sources import ImageSource
from scdd.errors import DataError
from scdd.seeding import generator


def random_real(source: ImageSource, ipc: int, seed: int) -> Tensor:
    """Choose `ipc` random images of each class; return their indices [C * ipc], rank-major.

    Row r * C + c is the r-th image of class c, so the first C * k rows are the choice for ipc k.

    Raises:
        DataError: if a class has fewer than `ipc` images.
    """
    chosen = []
    for label, name in enumerate(source.classes):
        members = (source.labels == label).nonzero().squeeze(1)
        if len(members) < ipc:
            raise DataError(
                f"class '{name}' has {len(members)} training images, but ipc is {ipc}; "
                "lower ipc or add images"
            )
        order = torch.randperm(len(members), generator=generator(seed, "select.random", label))
        chosen.append(members[order[:ipc]])
    return torch.stack(chosen, dim=1).flatten()
