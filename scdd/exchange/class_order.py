"""Which label the class folders of somebody else's images have, and in which order images go."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from scdd.errors import DataError


def class_order(
    folders: Sequence[str], known: Sequence[str] | None, folder: str, origin: str
) -> tuple[list[int], tuple[str, ...]]:
    """Return (label of each folder, class names in the order of their labels).

    Folders that are named as the `known` classes are in their order; folders that are numbered 0,
    1, .. C-1, after a prefix that all share (`7`, `00007`, `new007`), have the known names by
    number. Without known classes, numbers are sorted as numbers and other names as text.

    Args:
        folders: names of the class folders.
        known: class names by label, if they are known.
        folder: what holds the folders, for sentences.
        origin: what the known classes are of, for sentences.

    Raises:
        DataError: naming the first difference, if the classes are others than the known ones.
    """
    numbers = _numbers(folders)
    if known is None:
        # By number where there are numbers, so that 10 comes after 9.
        names = [name for _, name in sorted(zip(numbers or folders, folders, strict=True))]
        return [names.index(name) for name in folders], tuple(names)
    if sorted(folders) == sorted(known):
        return [list(known).index(name) for name in folders], tuple(known)
    if sorted(numbers) == list(range(len(known))):
        return numbers, tuple(known)
    raise DataError(f"{folder}: {_difference(folders, known, origin)}")


def check_classes(names: Sequence[str], known: Sequence[str], folder: str, origin: str) -> None:
    """Refuse class names that are not the known ones, in their order.

    Raises:
        DataError: naming the first difference.
    """
    if tuple(names) == tuple(known):
        return
    if sorted(names) != sorted(known):
        raise DataError(f"{folder}: {_difference(names, known, origin)}")
    label = next(at for at, pair in enumerate(zip(names, known, strict=True)) if len({*pair}) > 1)
    raise DataError(
        f"{folder}: class {label} is {names[label]!r}, but {known[label]!r} in {origin}; give what "
        "belongs together"
    )


def rank_major(labels: Tensor) -> Tensor:
    """Order int64 [N] of images: the first one of each class, then the second of each, ..

    Within a class images keep their order.
    """
    rank = torch.empty_like(labels)
    for label in labels.unique():
        mine = labels == label
        rank[mine] = torch.arange(int(mine.sum()))
    return (rank * (int(labels.max()) + 1) + labels).argsort(stable=True)


def _numbers(folders: Sequence[str]) -> list[int]:
    """The number in each name; empty unless all names are one prefix and different numbers."""
    found = [re.fullmatch(r"(\D*)([0-9]+)", name) for name in folders]
    parts = [match.groups() for match in found if match]
    numbers = [int(number) for _, number in parts]
    alike = len(parts) == len(folders) and len({prefix for prefix, _ in parts}) == 1
    return numbers if alike and len(set(numbers)) == len(numbers) else []


def _difference(names: Sequence[str], known: Sequence[str], origin: str) -> str:
    more, fewer = sorted(set(names) - set(known)), sorted(set(known) - set(names))
    found = " and ".join(
        [f"has class {name!r}, which {origin} has not" for name in more[:1]]
        + [f"lacks class {name!r} of {origin}" for name in fewer[:1]]
    )
    return (
        f"{found or f'names classes of {origin} twice'} ({len(set(names))} classes here, "
        f"{len(set(known))} there); name the class folders as there, or number them from 0 in the "
        "order there"
    )
