"""Which files a split consists of, in a few dozen bytes an image, however many there are.

No `pathlib` on the way of a single file: it enters every name it meets in the interpreter's table
of interned strings, which does not shrink.
"""

import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FileIndex:
    """The image files below folder/<class>/, class after class.

    All names are one string of bytes, as an object for each would cost more than its text.
    """

    folder: str
    classes: tuple[str, ...]
    """Names of the class folders; a label is an index into them."""
    labels: Tensor
    """Class of every file: int64 [N], ascending."""
    names: bytes
    """Paths below the class folders, one right after the other."""
    ends: np.ndarray
    """Where each of them ends: int64 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, row: int) -> str:
        """Return the path of file `row`."""
        name = self._name(row).decode(errors="surrogateescape")
        return os.path.join(self.folder, self.classes[int(self.labels[row])], name)

    def names_in_byte_order(self) -> Iterator[bytes]:
        """Yield every path below `folder`, encoded and sorted, holding those of one class."""
        stops = self.labels.bincount(minlength=len(self.classes)).cumsum(0).tolist()
        starts = [0, *stops]
        heads = sorted((_encoded(f"{name}/"), label) for label, name in enumerate(self.classes))
        for head, label in heads:
            for name in sorted(self._name(row) for row in range(starts[label], stops[label])):
                yield head + name

    def _name(self, row: int) -> bytes:
        return self.names[self.ends[row - 1] if row else 0 : self.ends[row]]


def index_files(folder: str, classes: Iterable[tuple[str, Iterable[str]]]) -> FileIndex:
    """Index `classes`, pairs of a class folder's name and the paths of the files below it.

    Paths have slashes and are text as `os.fsdecode` makes it. They are taken one by one.
    """
    names, ends = bytearray(), array("q")
    known: list[str] = []
    counts: list[int] = []
    for name, files in classes:
        before = len(ends)
        for file in files:
            names += _encoded(file)
            ends.append(len(names))
        known.append(name)
        counts.append(len(ends) - before)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return FileIndex(
        folder, tuple(known), labels, bytes(names), np.frombuffer(ends, dtype=np.int64)
    )


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
