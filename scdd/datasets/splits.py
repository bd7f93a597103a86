"""Fixed choices of rows per class, which depend on nothing but the labels."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from scdd.errors import DataError


def hold_out(
    labels: Tensor, share: float, classes: Sequence[str], purpose: str
) -> tuple[Tensor, Tensor]:
    """Return (kept rows, held rows), both ascending int64, with `share` of every class held.

    At least one row of every class goes to each side. Rows are ranked by a hash of `purpose`,
    class and position within the class, so no seed and no library version moves a row.

    Raises:
        DataError: if a class has fewer than two rows.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(classes):
        rows = (labels == label).nonzero().flatten()
        if len(rows) < 2:
            raise DataError(
                f"dataset.holdout: class {name!r} has {len(rows)} training image(s), too few to "
                "hold any out; add images or set holdout to 0"
            )
        ranks = [_rank(purpose, label, position) for position in range(len(rows))]
        ranked = sorted(range(len(rows)), key=ranks.__getitem__)
        count = min(max(round(len(rows) * share), 1), len(rows) - 1)
        held[rows[ranked[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def first_per_class(labels: Tensor, count: int) -> Tensor:
    """Return the ascending rows of the first `count` images of each class."""
    chosen = [(labels == label).nonzero().flatten()[:count] for label in labels.unique()]
    return torch.cat(chosen).sort().values


def evenly_spaced(rows: Tensor, count: int) -> Tensor:
    """Return at most `count` of the `rows`, as far apart as can be, in their order."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count) * len(rows) // count]


def _rank(purpose: str, label: int, position: int) -> bytes:
    return hashlib.sha256(f"{purpose}/{label}/{position}".encode()).digest()
