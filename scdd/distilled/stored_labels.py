"""Soft labels as they are asked for: read from the file, never all, and kept where few."""

import os
from pathlib import Path

import torch
from torch import Tensor

from scdd.distilled.hdf5 import refuse
from scdd.distilled.reader import DistilledFile
from scdd.distilled.soft_labels import Arrays

KEPT_BYTES = 32 * 2**20
"""Largest view that is kept, as it is stored; of a larger one the rows asked for are read."""
DECODED_BYTES = 16 * 2**20
"""Decoded labels that are checked at a time; views that fit in here together are kept together."""


class StoredLabels:
    """The soft labels of a file's first `count` images.

    Opens the file when labels are first asked for, and again in each process that it was forked or
    pickled to: a handle is never shared.
    """

    def __init__(
        self, path: Path, digest: str, count: int, device: torch.device | str = "cpu"
    ) -> None:
        self.path, self._digest, self.count, self.device = path, digest, count, device
        self._file: DistilledFile | None = None
        self._process = 0
        self._kept: tuple[range, Arrays] = range(0), {}

    def first(self, count: int) -> "StoredLabels":
        """The same labels for fewer images."""
        return StoredLabels(self.path, self._digest, count, self.device)

    def check(self) -> None:
        """Refuse a file that is no longer what it was.

        Raises:
            FormatError: if it has changed, or cannot be opened.
        """
        self._opened()

    def view(self, view: int) -> Tensor:
        """Return the labels of one view, float32 [N, C].

        Raises:
            FormatError: if they cannot be read, or as `check` does.
            ValueError: if there is no such view.
        """
        return self._opened().logits(view, slice(self.count)).to(self.device)

    def rows(self, view: int, index: Tensor) -> Tensor:
        """Return labels of one view, float32 [B, C].

        Args:
            view: which view.
            index: int64 [B] on the CPU, which images.

        Raises:
            FormatError, ValueError: as `view` does.
        """
        file = self._opened()
        assert file.codec is not None
        if file.codec.bytes_a_label * self.count > KEPT_BYTES:
            rows, places = index.unique(return_inverse=True)
            return file.logits(view, rows.numpy())[places].to(self.device)
        views, encoded = self._kept  # Once, since another thread may ask for another view.
        if view not in views:
            self._kept = views, encoded = self._read(file, view)
        place = index.to(self.device, non_blocking=True)
        return file.codec.decode(
            {name: values[view - views[0]][place] for name, values in encoded.items()}
        )

    def _opened(self) -> DistilledFile:
        if self._file is None or self._process != os.getpid():
            file = DistilledFile(self.path, contents=False)
            if file.header.digest != self._digest:
                file.close()
                refuse(self.path, "the file has changed since it was opened", "open it again")
            self._file, self._process = file, os.getpid()
        return self._file

    def _read(self, file: DistilledFile, view: int) -> tuple[range, Arrays]:
        """One view and those after it that are as cheap, checked, on the device."""
        label = 4 * file.header.target_dim
        together = max(1, DECODED_BYTES // (label * self.count))
        views = range(view, max(view + 1, min(view + together, file.num_views)))
        rows = max(1, DECODED_BYTES // label)
        parts: list[Arrays] = []
        for number in views:
            for start in range(0, self.count, rows):
                part = file.encoded(number, slice(start, min(start + rows, self.count)))
                file.decoded(number, part)  # Here, since later a GPU would have to be waited for.
                parts.append(part)
        encoded = {name: torch.cat([_indexable(part[name]) for part in parts]) for name in parts[0]}
        shape = len(views), self.count
        return views, {n: e.unflatten(0, shape).to(self.device) for n, e in encoded.items()}

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_file": None, "_kept": (range(0), {})}


def _indexable(values: Tensor) -> Tensor:
    # torch can store and convert integers of 16 bits without a sign, and little more.
    return values.int() if values.dtype == torch.uint16 else values
