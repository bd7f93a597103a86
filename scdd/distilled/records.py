"""View records: the parameters of every stored view, and what makes them fit to be replayed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scdd.augment.randaugment import steps_in_range

PARAMETERS: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {
    "crop": (torch.int16, (4,)),
    "flip": (torch.uint8, ()),
    "rot90": (torch.uint8, ()),
    "randaugment": (torch.int16, (None, 2)),
    "partner": (torch.int32, ()),
    "lambda": (torch.float32, ()),
    "box": (torch.int16, (4,)),
    "group": (torch.int32, ()),
}
"""Parameter: (dtype, shape after the axes [V, N]; None: any size)."""

OPERATIONS: dict[str, tuple[str, ...]] = {
    "crop": ("crop",),
    "flip": ("flip",),
    "rot90": ("rot90",),
    "randaugment": ("randaugment",),
    "mixup": ("partner", "lambda"),
    "cutmix": ("partner", "box"),
}
"""Operation: its parameters. The keys stand in the order in which operations are applied."""

MIXES = ("mixup", "cutmix")

LAMBDA_STEPS = 2**16 - 1
"""Weights of mixup are multiples of 1 / this, so that they fit in 16 bits."""


@dataclass(frozen=True, eq=False)
class ViewRecords:
    """V views of N images, each record complete but for the one of its partner.

    Attributes:
        ops: the operations in order, out of crop, flip, rot90, randaugment, mixup or cutmix.
        parameters: crop int16 [V, N, 4] (top, left, height, width in pixels; what lies outside the
            image is black), flip uint8 [V, N], rot90 uint8 [V, N] (quarter turns
            counter-clockwise), randaugment int16 [V, N, steps, 2] (number and
            parameter of each operation, as in scdd.augment.randaugment), partner int32 [V, N],
            lambda float32 [V, N] (weight of the own image in mixup), box int16 [V, N, 4] (top,
            left, height, width of what cutmix takes from the partner), group int32 [V, N] (images
            labelled together; only where the label depends on batch statistics).
        padding: pixels by which a crop may leave the image on any side.
    """

    ops: tuple[str, ...]
    parameters: dict[str, Tensor]
    padding: int = 0

    @property
    def mix(self) -> str | None:
        """The mixing operation, if there is one."""
        return next((op for op in self.ops if op in MIXES), None)

    def count(self) -> int:
        """Number of views V."""
        return len(next(iter(self.parameters.values())))

    def slice(self, first: int, last: int) -> "ViewRecords":
        """Views first .. last - 1."""
        return self._with({name: p[first:last] for name, p in self.parameters.items()})

    def to(self, device: torch.device | str) -> "ViewRecords":
        """Move the parameters to `device`."""
        return self._with({name: p.to(device) for name, p in self.parameters.items()})

    @staticmethod
    def cat(parts: Sequence["ViewRecords"]) -> "ViewRecords":
        """Join views of the same images.

        Raises:
            ValueError: if there is no part, or parts differ in operations or padding.
        """
        if not parts:
            raise ValueError("no view records to join")
        first = parts[0]
        for part in parts[1:]:
            if (part.ops, part.padding) != (first.ops, first.padding):
                raise ValueError(f"view records of {part.ops} cannot be joined to {first.ops}")
        return first._with(
            {name: torch.cat([p.parameters[name] for p in parts]) for name in first.parameters}
        )

    def _with(self, parameters: dict[str, Tensor]) -> "ViewRecords":
        return ViewRecords(self.ops, parameters, self.padding)


def record_fault(records: ViewRecords, count: int, image_size: int) -> str | None:
    """Say what is wrong with records of `count` images, or None: names, dtypes, shapes, ranges."""
    fault = operations_fault(records.ops)
    if fault is not None:
        return fault
    wanted = parameter_names(records.ops, "group" in records.parameters)
    if set(records.parameters) != set(wanted):
        return f"parameters {sorted(records.parameters)} do not fit operations {list(records.ops)}"
    for name, values in records.parameters.items():
        dtype, tail = PARAMETERS[name]
        shape = (records.count(), count, *tail)
        if values.dtype != dtype or not _has_shape(values, shape):
            return f"{name} is {values.dtype} {list(values.shape)}, not {dtype} {list(shape)}"
    for name, values in records.parameters.items():
        if not _in_range(name, values, records.padding, count, image_size):
            return f"{name} holds a value outside its range"
    if "group" in records.parameters and group_sizes(records.parameters["group"]) is None:
        return "group has groups of other sizes in other views"
    return None


def operations_fault(ops: Sequence[str]) -> str | None:
    """Say what is wrong with a list of operations, or None."""
    for op in ops:
        if op not in OPERATIONS:
            return f"operation '{op}' is unknown"
    order = [op for op in OPERATIONS if op in ops]
    if list(ops) != order or set(MIXES) <= set(ops):
        return f"operations {list(ops)} in this order are unknown"
    return None


def parameter_names(ops: Sequence[str], grouped: bool) -> list[str]:
    """Names of the parameters that operations have, and `group` where views are grouped."""
    names = [name for op in ops for name in OPERATIONS[op]]
    return [*names, "group"] if grouped else names


def stored_layout(name: str, count: int) -> tuple[str, tuple[int | None, ...]]:
    """Numpy dtype and shape after the axis [V] in which a parameter of `count` images is stored.

    None: any size.
    """
    dtype, tail = PARAMETERS[name]
    if name == "flip":
        return "|u1", (-(-count // 8),)
    if name == "lambda":
        return "<u2", (count,)
    if name in ("partner", "group") and count <= 2**16:
        return "<u2", (count,)
    return np.dtype(str(dtype).removeprefix("torch.")).newbyteorder("<").str, (count, *tail)


def pack(name: str, values: Tensor) -> np.ndarray:
    """A parameter [V, N, ...] as it is stored: flips as bits, images in 16 bits where they fit."""
    array = values.cpu().numpy()
    if name == "flip":
        return np.packbits(array, axis=1, bitorder="little")
    if name == "lambda":
        array = np.rint(array * LAMBDA_STEPS)
    return array.astype(stored_layout(name, values.shape[1])[0])


def unpack(name: str, stored: np.ndarray, count: int) -> Tensor:
    """The parameter [V, N, ...] that `pack` was given."""
    if name == "flip":
        return torch.from_numpy(np.unpackbits(stored, axis=1, count=count, bitorder="little"))
    values = torch.from_numpy(stored.astype(np.float32 if name == "lambda" else np.int32))
    return values / LAMBDA_STEPS if name == "lambda" else values.to(PARAMETERS[name][0])


def round_lambda(values: Tensor) -> Tensor:
    """The nearest weights float32 that can be stored."""
    return (values * LAMBDA_STEPS).round() / LAMBDA_STEPS


def record_bytes(names: Iterable[str], count: int, steps: int = 0) -> int:
    """Stored bytes of one view of `count` images; `steps` operations are those of randaugment."""
    layouts = [stored_layout(name, count) for name in names]
    return sum(
        np.dtype(kind).itemsize * math.prod(steps if size is None else size for size in shape)
        for kind, shape in layouts
    )


def group_sizes(group: Tensor) -> list[int] | None:
    """Sizes of the groups [V, N], largest first; None if they are not the same in every view."""
    first: list[int] | None = None
    for view in group:
        sizes = sorted(view.unique(return_counts=True)[1].tolist(), reverse=True)
        if first is None:
            first = sizes
        elif sizes != first:
            return None
    return first


def _has_shape(values: Tensor, shape: Sequence[int | None]) -> bool:
    return len(values.shape) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, values.shape, strict=True)
    )


def group_members(group: Tensor) -> list[Tensor]:
    """Indices of the images of each group, of the groups [N] of one view."""
    sizes = group.unique(return_counts=True)[1].tolist()
    return list(group.argsort(stable=True).split(sizes))


def _in_range(name: str, values: Tensor, padding: int, count: int, size: int) -> bool:
    if name == "lambda":
        # False for NaN.
        return bool(((values >= 0) & (values <= 1) & (values == round_lambda(values))).all())
    if name == "flip":
        return bool((values <= 1).all())
    if name == "rot90":
        return bool((values < 4).all())
    if name in ("partner", "group"):
        return bool(((values >= 0) & (values < count)).all())
    if name == "randaugment":
        return steps_in_range(values, size)
    start, side = values[..., :2].int(), values[..., 2:].int()
    outside, smallest = (padding, 1) if name == "crop" else (0, 0)
    fits = (start >= -outside) & (start + side <= size + outside)
    return bool((fits & (side >= smallest) & (side <= size)).all())
