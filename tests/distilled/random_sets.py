"""Random sets of images and representations, and headers for files of them."""

from typing import Any

import torch
from torch import Tensor

from scdd.distilled import Approximation, DenseSet, FactoredSet, Header, Pairs


def random_set(
    vectors: int = 3,
    width: int = 2,
    count: int = 4,
    turns: tuple[int, ...] = (0, 1, 2, 3),
    hidden: int = 2,
    side: int = 2,
    size: int = 4,
    dim: int = 3,
    approximation: bool = True,
    stored: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> FactoredSet:
    """A factored set of normal numbers."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    others = len(turns) - 1
    shapes = (others, hidden, width), (others, hidden), (others, width, hidden), (others, width)
    return FactoredSet(
        image_size=size,
        turns=turns,
        image_mean=normal(3 * side * side),
        image_basis=normal(vectors, 3 * side * side),
        image_coefficients=normal(count, vectors),
        target_mean=normal(dim),
        target_basis=normal(width, dim),
        target_coefficients=normal(count, width),
        approximation=Approximation(*map(lambda s: normal(*s), shapes))
        if approximation and others
        else None,
        view_coefficients=normal(others, count, width) if stored and others else None,
    )


def random_dense(
    count: int = 4,
    turns: tuple[int, ...] = (0, 1, 2, 3),
    size: int = 4,
    dim: int = 3,
    pixels: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> DenseSet:
    """A dense set of normal numbers, or of pixels uint8."""
    draw = torch.Generator().manual_seed(seed)
    shape = count, 3, size, size
    images = torch.randn(shape, generator=draw).to(pixels)
    if pixels == torch.uint8:
        images = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    return DenseSet(turns, images, torch.randn(len(turns), count, dim, generator=draw).to(dtype))


def least_budget(parts: Pairs) -> int:
    """The smallest budget N that the numbers of a set fit in."""
    return -(-numbers_of(parts) // (3 * parts.image_size**2 + parts.target_dim))


def numbers_of(parts: Pairs) -> int:
    """How many numbers the parts hold that count."""
    if isinstance(parts, DenseSet):
        return parts.pixels.numel() + parts.vectors.numel()
    counted = [
        parts.image_mean,
        parts.image_basis,
        parts.image_coefficients,
        parts.target_mean,
        parts.target_basis,
        parts.target_coefficients,
        *(parts.approximation or [t for t in [parts.view_coefficients] if t is not None]),
    ]
    return sum(part.numel() for part in counted)


def header_for(parts: Pairs, **about: Any) -> Header:
    """The header of a file of these parts, on the smallest budget."""
    dense = isinstance(parts, DenseSet)
    return Header(
        **{
            "target_kind": "representation",
            "kind": "dense" if dense else "factored",
            "method": "krr_st" if dense else "boost",
            "recipe": "custom",
            "dataset": "digits",
            "class_names": (),
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.2, 0.25),
            "image_size": parts.image_size,
            "image_count": len(parts),
            "target_dim": parts.target_dim,
            "pixel_space": "unit" if dense and parts.pixels.dtype == torch.uint8 else "normalized",
            "ipc": None,
            "budget_n": least_budget(parts),
            "seed": 0,
            "config": {"condense": {"bases": 3}},
            "versions": {"torch": "2.6"},
            "teacher": {"arch": "resnet18", "objective": "barlow_twins"},
            "created": "2026-01-01T00:00:00+00:00",
        }
        | about
    )
