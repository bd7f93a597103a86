"""Pixel values: [0, 1] to normalised and back."""

import torch
from torch import Tensor


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn [0, 1] values into (value - mean) / std per channel."""
    shape = (1, -1, 1, 1)
    low = _constant(mean, images).view(shape)
    scale = _constant(std, images).view(shape)
    return (images - low).div_(scale)


def denormalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Undo `normalise`."""
    shape = (1, -1, 1, 1)
    scale = _constant(std, images).view(shape)
    return images * scale + _constant(mean, images).view(shape)


def _constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """On the device of `like`, without waiting for it."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
