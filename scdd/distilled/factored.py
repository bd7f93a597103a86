"""Images and targets as coefficients of shared bases, with views that are turned and predicted.

The parameterisation, predefined augmentation and approximation of "Boost Self-Supervised Dataset
Distillation via Parameterization, Predefined Augmentation, and Approximation" (arXiv:2507.21455).
Decoding is differentiable in every part, in the dtype of the parts.

Axes: m images, U image and W target basis vectors, V views of which A = V - 1 are turned, h hidden
units, d the length of a target; s the side of a basis image, S that of an image, in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

QUARTER_TURNS = 4
LARGEST_GROWTH = 32
"""Times that a basis image may be enlarged; 2 and 4 are usual. A file that asks for more would take
far more memory than it is long."""


class Approximation(NamedTuple):
    """One small network for each turned view, Linear(W, h), ReLU, Linear(h, W).

    It predicts how far the target coefficients of a view are from those of the image as it is.
    """

    w0: Tensor
    """[A, h, W]"""
    b0: Tensor
    """[A, h]"""
    w1: Tensor
    """[A, W, h]"""
    b1: Tensor
    """[A, W]"""

    def shift(self, turned: int, coefficients: Tensor) -> Tensor:
        """Return what to add to target coefficients [B, W] in turned view 0 .. A - 1."""
        w0, b0, w1, b1 = (_wide(part[turned]) for part in self)
        return F.linear(F.relu(F.linear(coefficients, w0, b0)), w1, b1)


@dataclass(frozen=True, eq=False)
class FactoredSet:
    """The parts of a factored set: float tensors of one device.

    Targets of the turned views are predicted by `approximation`, or else stored as
    `view_coefficients`; one of the two is there if any view is turned. Where both are, the latter
    serve to measure what the approximation costs.

    Raises:
        ValueError: if a part is missing, its shape does not fit, or the turns make no views.
    """

    image_size: int
    """S, to which decoded images are enlarged, bilinearly and without aligned corners."""
    turns: tuple[int, ...]
    """Counter-clockwise quarter turns of the V views, all different; the first is 0."""
    image_mean: Tensor
    """[3 s s], normalised pixels in the order channel, row, column."""
    image_basis: Tensor
    """[U, 3 s s]"""
    image_coefficients: Tensor
    """[m, U]"""
    target_mean: Tensor
    """[d]"""
    target_basis: Tensor
    """[W, d]"""
    target_coefficients: Tensor
    """[m, W]"""
    approximation: Approximation | None = None
    view_coefficients: Tensor | None = None
    """[A, m, W], target coefficients of the turned views."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))
        fault = turns_fault(self.turns) or _shape_fault(self)
        if fault is not None:
            raise ValueError(fault)

    def __len__(self) -> int:
        """Number of images m."""
        return len(self.image_coefficients)

    @property
    def num_views(self) -> int:
        """Number of views V, the image as it is among them."""
        return len(self.turns)

    @property
    def target_dim(self) -> int:
        """Length of a target d."""
        return len(self.target_mean)

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.image_mean.device

    @property
    def basis_size(self) -> int:
        """Side s of a basis image in pixels."""
        return math.isqrt(len(self.image_mean) // 3)

    def images(self, view: int = 0, rows: Tensor | None = None) -> Tensor:
        """Decode images of a view, normalised [B, 3, S, S]; `rows` int64 [B], default all."""
        with torch.autocast(self.image_mean.device.type, enabled=False):
            coefficients = _wide(_chosen(self.image_coefficients, rows))
            flat = _wide(self.image_mean) + coefficients @ _wide(self.image_basis)
            small = flat.view(-1, 3, self.basis_size, self.basis_size)
            return turned(enlarged(small, self.image_size), self.turns[view])

    def targets(self, view: int = 0, rows: Tensor | None = None, stored: bool = False) -> Tensor:
        """Decode targets of a view [B, d]; `stored` takes the stored coefficients of turned views.

        Raises:
            ValueError: if they are wanted and not there.
        """
        with torch.autocast(self.target_mean.device.type, enabled=False):
            coefficients = self._coefficients(view, rows, stored)
            return _wide(self.target_mean) + coefficients @ _wide(self.target_basis)

    def to(self, device: torch.device | str) -> "FactoredSet":
        """Move all parts to `device`."""
        moved: dict[str, Tensor | Approximation] = {
            part.name: value.to(device)
            for part in fields(self)
            if isinstance(value := getattr(self, part.name), Tensor)
        }
        if self.approximation is not None:
            moved["approximation"] = Approximation(
                *(part.to(device) for part in self.approximation)
            )
        return replace(self, **moved)  # type: ignore[arg-type]

    def _coefficients(self, view: int, rows: Tensor | None, stored: bool) -> Tensor:
        own = _wide(_chosen(self.target_coefficients, rows))
        if view == 0:
            return own
        if self.approximation is not None and not stored:
            return own + self.approximation.shift(view - 1, own)
        if self.view_coefficients is None:
            raise ValueError("no coefficients of turned views are stored")
        return _wide(_chosen(self.view_coefficients[view - 1], rows))


def enlarged(images: Tensor, size: int) -> Tensor:
    """Enlarge [B, C, s, s] to [B, C, size, size] bilinearly; commutes with quarter turns."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def turned(images: Tensor, quarters: int) -> Tensor:
    """Turn [B, C, S, S] counter-clockwise by quarter turns: a permutation of the pixels."""
    return torch.rot90(images, quarters, dims=(2, 3)) if quarters else images


def turns_fault(turns: Sequence[int]) -> str | None:
    """Say what is wrong with the turns of views, or None."""
    if not turns or turns[0] != 0:
        return "the first view is not the image as it is"
    if len(set(turns)) < len(turns) or not all(turn in range(QUARTER_TURNS) for turn in turns):
        return f"views turn by {', '.join(map(str, turns))} quarters, not by different ones of 0..3"
    return None


def gram_error(basis: Tensor) -> float:
    """Largest entry of |B B^T - I| of a basis [K, D]: 0 for orthonormal vectors."""
    wide = basis.detach().double()
    return float((wide @ wide.T - torch.eye(len(wide)).to(wide)).abs().max())


def _shape_fault(parts: FactoredSet) -> str | None:
    vectors, width, length = len(parts.image_basis), len(parts.target_basis), len(parts.image_mean)
    count, dim, others = len(parts), parts.target_dim, parts.num_views - 1
    side = math.isqrt(length // 3)
    least = -(-parts.image_size // LARGEST_GROWTH)
    if 3 * side * side != length or not least <= side <= parts.image_size:
        return (
            f"image_mean has {length} values, not those of 3 channels of a square of "
            f"{least} .. {parts.image_size} px"
        )
    wanted = {
        "image_mean": (length,),
        "image_basis": (vectors, length),
        "image_coefficients": (count, vectors),
        "target_mean": (dim,),
        "target_basis": (width, dim),
        "target_coefficients": (count, width),
        "view_coefficients": (others, count, width),
    }
    found = {name: getattr(parts, name) for name in wanted}
    if parts.approximation is not None:
        units = parts.approximation.b0.shape[-1]
        shapes = (others, units, width), (others, units), (others, width, units), (others, width)
        for name, shape, part in zip(
            Approximation._fields, shapes, parts.approximation, strict=True
        ):
            wanted[f"approximation {name}"], found[f"approximation {name}"] = shape, part
    for name, part in found.items():
        if part is not None and tuple(part.shape) != wanted[name]:
            return f"{name} has shape {list(part.shape)}, not {list(wanted[name])}"
    predicted = parts.approximation is not None or parts.view_coefficients is not None
    if predicted != (others > 0):
        have = "neither an approximation nor stored coefficients" if others else "some all the same"
        return f"{others} turned views have {have}"
    return None


def _chosen(part: Tensor, rows: Tensor | None) -> Tensor:
    return part if rows is None else part[rows]


def _wide(part: Tensor) -> Tensor:
    """Half precision is for storage alone."""
    return part.float() if part.dtype == torch.float16 else part
