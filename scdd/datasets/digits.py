"""The handwritten digits that scikit-learn embeds: 1797 images of 8x8 pixels, no files needed."""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from scdd.config.dataset import DatasetConfig
from scdd.datasets.catalog import Catalog, Split
from scdd.datasets.splits import hold_out

VALIDATION_SHARE = 0.2


def read_digits(cfg: DatasetConfig) -> Catalog:
    """Return the digits with a fixed stratified validation split of a fifth of every class."""
    data = load_digits()
    levels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pixels, labels = torch.from_numpy(levels), torch.from_numpy(data.target.astype(np.int64))
    classes = tuple(str(digit) for digit in range(10))
    train, val = hold_out(labels, VALIDATION_SHARE, classes, "digits")

    def split(rows: Tensor) -> Split:
        own = pixels[rows]
        data = own.numpy().tobytes() + labels[rows].numpy().tobytes()
        digest = hashlib.sha256(data).hexdigest()
        return Split(labels[rows], digest, lambda wanted: _resize(own[wanted], cfg.image_size))

    return Catalog(classes, split(train), None if cfg.holdout else split(val))


def _resize(grey: Tensor, size: int) -> Tensor:
    """Bring uint8 `[N, 8, 8]` to uint8 `[N, 3, size, size]` with three equal channels."""
    x = grey[:, None].double()
    if size != grey.shape[-1]:
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
