"""Images paired with representations: the parts of such a set, and what they are called in a file.

KRR-ST (arXiv:2310.06511) stores images and their targets, Boost (arXiv:2507.21455) what both are
decoded from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from scdd.distilled.bill import Sizes, budget_floats, storage_floats
from scdd.distilled.factored import Approximation, FactoredSet, turned, turns_fault
from scdd.distilled.records import ViewRecords

Axis = str | int

DENSE: dict[str, tuple[Axis, ...]] = {
    "images": ("m", 3, "S", "S"),
    "targets": ("V", "m", "d"),
}
FACTORED: dict[str, tuple[Axis, ...]] = {
    "image_mean": (3, "s", "s"),
    "image_basis": ("U", 3, "s", "s"),
    "image_coefficients": ("m", "U"),
    "target_mean": ("d",),
    "target_basis": ("W", "d"),
    "target_coefficients": ("m", "W"),
}
APPROXIMATION, VIEW_COEFFICIENTS = "approximation", "view_coefficients"
OF_TURNED_VIEWS: dict[str, tuple[Axis, ...]] = {
    f"{APPROXIMATION}/w0": ("A", "h", "W"),
    f"{APPROXIMATION}/b0": ("A", "h"),
    f"{APPROXIMATION}/w1": ("A", "W", "h"),
    f"{APPROXIMATION}/b1": ("A", "W"),
    VIEW_COEFFICIENTS: ("A", "m", "W"),
}
"""Datasets and their axes, as scdd.distilled.factored names them. Of the last, the approximation,
the coefficients or both are there where a view is turned."""


@dataclass(frozen=True, eq=False)
class DenseSet:
    """Images and the targets of all their views, on one device.

    Raises:
        ValueError: if shapes do not fit, or the turns make no views.
    """

    turns: tuple[int, ...]
    """Counter-clockwise quarter turns of the V views, all different; the first is 0."""
    pixels: Tensor
    """[m, 3, S, S], uint8 or normalised floats."""
    vectors: Tensor
    """Targets, floats [V, m, d], or [m, d] of a single view."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))
        if self.vectors.ndim == 2:
            object.__setattr__(self, "vectors", self.vectors[None])
        fault = turns_fault(self.turns)
        shape, wanted = self.pixels.shape, (len(self.turns), len(self.pixels))
        if fault is None and (len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]):
            fault = f"images have shape {list(shape)}, not [m, 3, S, S]"
        if fault is None and (self.vectors.ndim != 3 or self.vectors.shape[:2] != wanted):
            fault = f"targets have shape {list(self.vectors.shape)}, not {[*wanted, 'd']}"
        if fault is not None:
            raise ValueError(fault)

    def __len__(self) -> int:
        """Number of images m."""
        return len(self.pixels)

    @property
    def num_views(self) -> int:
        """Number of views V, the image as it is among them."""
        return len(self.turns)

    @property
    def target_dim(self) -> int:
        """Length of a target d."""
        return self.vectors.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.pixels.device

    @property
    def image_size(self) -> int:
        """Side of the images S in pixels."""
        return self.pixels.shape[3]

    def images(self, view: int = 0, rows: Tensor | None = None) -> Tensor:
        """Return images of a view [B, 3, S, S], uint8 as stored or normalised float32."""
        images = turned(self.pixels if rows is None else self.pixels[rows], self.turns[view])
        return images if images.dtype == torch.uint8 else images.float()

    def targets(self, view: int = 0, rows: Tensor | None = None, stored: bool = False) -> Tensor:
        """Return targets of a view, float32 [B, d]; they are stored whatever `stored` says."""
        vectors = self.vectors[view]
        return (vectors if rows is None else vectors[rows]).float()

    def to(self, device: torch.device | str) -> "DenseSet":
        """Move all parts to `device`."""
        return DenseSet(self.turns, self.pixels.to(device), self.vectors.to(device))


Pairs = DenseSet | FactoredSet


def materialised(parts: FactoredSet) -> DenseSet:
    """Decode all of a factored set."""
    views = range(parts.num_views)
    with torch.no_grad():
        targets = torch.stack([parts.targets(view) for view in views])
        return DenseSet(parts.turns, parts.images(), targets)


def stored_parts(parts: Pairs) -> dict[str, Tensor]:
    """The tensors of a set under the names and in the shapes that they have in a file."""
    if isinstance(parts, DenseSet):
        return {"images": parts.pixels, "targets": parts.vectors}
    square = 3, parts.basis_size, parts.basis_size
    found = {name: getattr(parts, name) for name in FACTORED}
    found["image_mean"] = parts.image_mean.reshape(square)
    found["image_basis"] = parts.image_basis.reshape(-1, *square)
    if parts.approximation is not None:
        found |= {f"{APPROXIMATION}/{k}": v for k, v in parts.approximation._asdict().items()}
    if parts.view_coefficients is not None:
        found[VIEW_COEFFICIENTS] = parts.view_coefficients
    return found


def pairs_of(image_size: int, turns: Sequence[int], stored: Mapping[str, Tensor]) -> Pairs:
    """The set of which `stored_parts` are these.

    Raises:
        ValueError: if they make none.
    """
    if "images" in stored:
        return DenseSet(tuple(turns), stored["images"], stored["targets"])
    approximation = None
    if f"{APPROXIMATION}/w0" in stored:
        names = Approximation._fields
        approximation = Approximation(*(stored[f"{APPROXIMATION}/{name}"] for name in names))
    known = {part.name for part in fields(FactoredSet)}
    plain = {name: values for name, values in stored.items() if name in known}
    plain["image_mean"] = plain["image_mean"].flatten()
    plain["image_basis"] = plain["image_basis"].flatten(1)
    return FactoredSet(image_size, tuple(turns), **plain, approximation=approximation)


def sizes_of(shapes: Mapping[str, Sequence[int]], image_size: int) -> Sizes:
    """What a set is billed for, from the shapes of its datasets."""
    if "images" in shapes:
        views, count, dim = shapes["targets"]
        return Sizes(image_size, dim, count, stored_views=views - 1)
    count, vectors = shapes["image_coefficients"]
    width, dim = shapes["target_basis"]
    sizes = Sizes(image_size, dim, count, vectors, width, shapes["image_mean"][1])
    if f"{APPROXIMATION}/b0" in shapes:
        others, hidden = shapes[f"{APPROXIMATION}/b0"]
        return sizes._replace(approximations=others, hidden=hidden)
    return sizes._replace(stored_views=shapes.get(VIEW_COEFFICIENTS, (0,))[0])


def budget_fault(sizes: Sizes, budget_n: int) -> str | None:
    """Say by how much a set is over its budget, or None."""
    taken = storage_floats(sizes)
    most = budget_floats(budget_n, sizes.image_size, sizes.target_dim)
    if taken <= most:
        return None
    return f"the set takes {taken} numbers, more than the {most} that budget_n {budget_n} allows"


def turn_records(turns: Sequence[int], count: int) -> ViewRecords:
    """View records of `count` images that are all turned alike in each view."""
    column = torch.tensor(turns, dtype=torch.uint8)[:, None]
    return ViewRecords(("rot90",), {"rot90": column.expand(-1, count)})


def turns_of(records: ViewRecords) -> list[int]:
    """Quarter turns of each view.

    Raises:
        ValueError: if images of a view are not all turned alike.
    """
    turns = records.parameters["rot90"]
    if (turns != turns[:, :1]).any():
        raise ValueError("images of a view are turned by different quarters")
    return turns[:, 0].tolist()
