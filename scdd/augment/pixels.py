"""Pixel values: [0, 1] to normalised and back."""

import torch
from torch import Tensor


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn [0, 1] values into (value - mean) / std per channel."""
    shape = (1, -1, 1, 1)
    low = torch.tensor(mean, device=images.device, dtype=images.dtype).view(shape)
    scale = torch.tensor(std, device=images.device, dtype=images.dtype).view(shape)
    return (images - low).div_(scale)


def denormalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Undo `normalise`."""
    shape = (1, -1, 1, 1)
    scale = torch.tensor(std, device=images.device, dtype=images.dtype).view(shape)
    return images * scale + torch.tensor(mean, device=images.device, dtype=images.dtype).view(shape)
