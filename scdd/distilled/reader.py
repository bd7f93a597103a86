"""Reading and verifying a distilled file; what cannot be trusted is refused in one sentence."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import torch
from torch import Tensor

from scdd.distilled.bill import Sizes
from scdd.distilled.format import (
    FORMAT,
    FORMAT_VERSION,
    IMAGES,
    KINDS,
    LABELS,
    SOFT_LABELS,
    TARGET_KINDS,
    VIEWS,
    Header,
    attribute_names,
    content_hash,
    header_digest,
    label_fault,
)
from scdd.distilled.hdf5 import (
    AGAIN,
    NEWER,
    attribute,
    check_names,
    damage_refused,
    dataset_at,
    group_at,
    json_attribute,
    open_hdf5,
    refuse,
    text_attribute,
)
from scdd.distilled.pairs import (
    APPROXIMATION,
    DENSE,
    FACTORED,
    OF_TURNED_VIEWS,
    Axis,
    Pairs,
    budget_fault,
    pairs_of,
    sizes_of,
    turns_of,
)
from scdd.distilled.records import (
    ViewRecords,
    operations_fault,
    parameter_names,
    record_fault,
    stored_layout,
    unpack,
)
from scdd.distilled.soft_labels import CODECS, Arrays, Codec, make_codec
from scdd.errors import FormatError

SMALL_BYTES = 64 * 2**20
"""Datasets up to this size are hashed whenever a file is opened."""
READ_BYTES = 4 * 2**20
ROW_BYTES = 8 * 2**10
"""What can be read in the time that asking for one more row takes."""


class DistilledFile:
    """A distilled file, open for reading; use it in a `with` block.

    Structure, header and the content of small datasets are checked on opening, large datasets by
    `verify`. With `contents` false only structure and header are checked: for opening again a file
    whose digest is known.

    Attributes:
        path: the file.
        header: what the file says of itself.
        codec: how soft labels are stored; None where there are none.

    Raises:
        FormatError: if the file cannot be used; from every method.
    """

    def __init__(self, path: str | Path, contents: bool = True) -> None:
        self.path = Path(path)
        self._file = open_hdf5(self.path)
        self._datasets: dict[str, h5py.Dataset] = {}
        self.codec: Codec | None = None
        try:
            with damage_refused(self.path):
                self.header = self._check_structure()
            if contents:
                self._check_contents()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def num_views(self) -> int:
        """Number of stored views V; 0 where there are images alone."""
        shapes = [d.shape for name, d in self._datasets.items() if name.startswith(VIEWS)]
        return shapes[0][0] if shapes else 0

    @property
    def label_bytes(self) -> int:
        """Bytes of all soft labels and view records together."""
        groups = (VIEWS, SOFT_LABELS)
        return sum(_bytes(d) for name, d in self._datasets.items() if name.startswith(groups))

    def pairs(self) -> Pairs:
        """Return all images and their representations, in the precision that they are stored in."""
        if not self.header.represented:
            refuse(
                self.path,
                "holds class labels, no representations",
                "give a file of krr_st, boost or scdd_pairs",
            )
        records = self.views
        assert records is not None
        names = [n for n in self._datasets if n != LABELS and not n.startswith(VIEWS)]
        stored = {name: self._read(name) for name in names}
        for name, values in stored.items():
            if not np.isfinite(values).all():
                refuse(self.path, f"'{name}' is not finite")
        try:
            tensors = {name: torch.from_numpy(values) for name, values in stored.items()}
            return pairs_of(self.header.image_size, turns_of(records), tensors)
        except ValueError as error:
            refuse(self.path, f"{error}")

    @property
    def bill(self) -> Sizes:
        """What images and representations are billed for."""
        return sizes_of({n: d.shape for n, d in self._datasets.items()}, self.header.image_size)

    def images(self, rows: slice = slice(None)) -> Tensor:
        """Return images, uint8 [N or rows, 3, S, S]; of a file of class labels, or of none."""
        require_classes(self.path, self.header)
        with damage_refused(self.path):
            return torch.from_numpy(self._datasets[IMAGES][rows])

    def labels(self) -> Tensor:
        """Return all class labels, int64 [N]; -1 is none."""
        labels = self._read(LABELS)
        fault = label_fault(labels, self.header)
        if fault is not None:
            refuse(self.path, fault)
        return torch.from_numpy(labels.astype(np.int64))

    @cached_property
    def views(self) -> ViewRecords | None:
        """All view records; None where there are images alone."""
        if self.num_views == 0:
            return None
        parameters = {
            name.removeprefix(f"{VIEWS}/"): self._unpacked(name)
            for name in self._datasets
            if name.startswith(VIEWS)
        }
        records = ViewRecords(
            tuple(self._groups[VIEWS]["ops"]), parameters, self._groups[VIEWS]["padding"]
        )
        fault = record_fault(records, self.header.count, self.header.image_size)
        if fault is not None:
            refuse(self.path, f"view records: {fault}")
        return records

    def encoded(self, view: int, rows: np.ndarray | slice = slice(None)) -> Arrays:
        """Read the soft labels of one view as they are stored.

        Args:
            view: which view.
            rows: images, in ascending order and each once; every image if left out.

        Raises:
            ValueError: if there is no such view.
        """
        if not 0 <= view < self.num_views:
            raise ValueError(f"view {view} is not one of the {self.num_views} stored")
        assert self.codec is not None
        with damage_refused(self.path):
            return {
                name: torch.from_numpy(_rows(self._datasets[f"{SOFT_LABELS}/{name}"], view, rows))
                for name in self.codec.layout
            }

    def logits(self, view: int, rows: np.ndarray | slice = slice(None)) -> Tensor:
        """Read soft labels as `encoded` does and return logits float32 [N or rows, C]."""
        return self.decoded(view, self.encoded(view, rows))

    def decoded(self, view: int, encoded: Arrays) -> Tensor:
        """Return the logits float32 [N or rows, C] of what `encoded` has read."""
        assert self.codec is not None
        try:
            logits = self.codec.decode(encoded)
        except ValueError as error:
            refuse(self.path, f"soft labels of view {view}: {error}")
        if not torch.isfinite(logits).all():
            refuse(self.path, f"soft labels of view {view} are not finite")
        return logits

    def faults(self) -> Iterator[str]:
        """Read everything and yield one sentence per fault."""
        for name in self._datasets:
            yield from _sentence(lambda name=name: self._check_hash(name))
        yield from _sentence(self.labels)
        found = list(_sentence(lambda: self.views))
        yield from found
        if self.header.represented and not found:
            yield from _sentence(self.pairs)
        for view in range(self.num_views if self.codec is not None and self.codec.layout else 0):
            found = list(_sentence(lambda view=view: self.logits(view)))
            yield from found
            if found:
                return

    def _check_structure(self) -> Header:
        root, path = self._file, self.path
        if "format" not in root.attrs or attribute(root, "format", path) != FORMAT:
            refuse(path, "this HDF5 file is not of scdd", "give the path of a distilled.h5")
        version = attribute(root, "format_version", path)
        if version != FORMAT_VERSION:
            refuse(path, f"the format version is {version}, not {FORMAT_VERSION}", NEWER)
        if attribute(root, "complete", path) is not True:
            refuse(path, "the file was never finished")
        for name, known in (("kind", KINDS), ("target_kind", TARGET_KINDS)):
            value = text_attribute(root, name, path)
            if value not in known:
                refuse(path, f"{name} '{value}' is unknown here", NEWER)
        header = self._read_header()
        self._groups: dict[str, dict[str, Any]] = {}
        if header.represented:
            self._check_pairs(header)
        else:
            self._check_classified(header)
        hashes = {name: text_attribute(d, "sha256", path) for name, d in self._datasets.items()}
        if header.digest != header_digest(header, self._groups, hashes):
            refuse(path, "the header does not match the digest")
        return header

    def _check_classified(self, header: Header) -> None:
        root, path, count, size = self._file, self.path, header.count, header.image_size
        labelled = header.target_kind != "none"
        with_views = labelled or VIEWS in root
        groups = [*([VIEWS] if with_views else []), *([SOFT_LABELS] if labelled else [])]
        check_names(root, [IMAGES, LABELS, *groups], path)
        self._add(root, IMAGES, "|u1", (count, 3, size, size))
        self._add(root, LABELS, "<i4", (count,))
        if with_views:
            self._check_views(count)
        if labelled:
            self._check_soft_labels(count, header.target_dim)

    def _check_pairs(self, header: Header) -> None:
        """Datasets of images and representations; axes of one name have one size."""
        root, path = self._file, self.path
        layout = DENSE if header.kind == "dense" else FACTORED
        turned = {n: axes for n, axes in OF_TURNED_VIEWS.items() if n.partition("/")[0] in root}
        if header.kind == "factored":
            layout = layout | turned
        names = dict.fromkeys(name.partition("/")[0] for name in layout)
        check_names(root, [LABELS, VIEWS, *names], path)
        self._add(root, LABELS, "<i4", (header.count,))
        self._check_views(header.count)
        if self._groups[VIEWS] != {"ops": ["rot90"], "padding": 0}:
            refuse(path, "views of representations are other than turns", NEWER)
        if header.kind == "factored" and self.num_views > 1 and not turned:
            refuse(path, f"'{APPROXIMATION}' is missing, which predicts targets of turned views")
        if any(name.startswith(f"{APPROXIMATION}/") for name in layout):
            inner = [name.partition("/")[2] for name in layout if "/" in name]
            check_names(group_at(root, APPROXIMATION, path), inner, path)
        sizes = {"m": header.count, "S": header.image_size, "d": header.target_dim}
        sizes |= {"V": self.num_views, "A": self.num_views - 1}
        for name, axes in layout.items():
            self._add_sized(name, axes, sizes, header.pixel_space == "unit")
        shapes = {name: dataset.shape for name, dataset in self._datasets.items()}
        assert header.budget_n is not None
        fault = budget_fault(sizes_of(shapes, header.image_size), header.budget_n)
        if fault is not None:
            refuse(path, fault)

    def _add_sized(
        self, name: str, axes: Sequence[Axis], sizes: dict[str, int], unit: bool
    ) -> None:
        """Add a dataset of floats, and the sizes of those axes that were not known before."""
        found = self._file[name]
        half = isinstance(found, h5py.Dataset) and found.dtype == np.float16
        dtype = "|u1" if name == IMAGES and unit else "<f2" if half else "<f4"
        wanted = tuple(axis if isinstance(axis, int) else sizes.get(axis) for axis in axes)
        shape = self._add(self._file, name, dtype, wanted).shape
        for axis, size in zip(axes, shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                refuse(self.path, f"'{name}' has shape {list(shape)}, whose images are not square")

    def _read_header(self) -> Header:
        root, path = self._file, self.path
        texts, numbers, structures = attribute_names(text_attribute(root, "target_kind", path))
        values: dict[str, Any] = {n: text_attribute(root, n, path) for n in (*texts, "digest")}
        values |= {name: attribute(root, name, path) for name in numbers}
        values |= {name: json_attribute(root, name, path) for name in structures}
        for name in ("class_names", "mean", "std"):
            if not isinstance(values[name], list):
                refuse(path, f"attribute '{name}' is not a list")
        try:
            return Header(**values)
        except (ValueError, TypeError) as error:
            refuse(path, f"the header says that {error}")

    def _check_views(self, count: int) -> None:
        group, path = group_at(self._file, VIEWS, self.path), self.path
        ops, padding = json_attribute(group, "ops", path), attribute(group, "padding", path)
        if not isinstance(ops, list) or not all(isinstance(op, str) for op in ops):
            refuse(path, "attribute 'ops' of 'views' is not a list of texts")
        if type(padding) is not int or padding < 0:
            refuse(path, "attribute 'padding' of 'views' is not a number of pixels")
        fault = operations_fault(ops)
        if fault is not None:
            refuse(path, f"view records: {fault} here", NEWER)
        names = parameter_names(ops, "group" in group)
        if not names:
            refuse(path, "view records have no operation")
        check_names(group, names, path)
        views = None
        for name in sorted(names):
            dtype, tail = stored_layout(name, count)
            views = self._add(group, name, dtype, (views, *tail)).shape[0]
        self._groups[VIEWS] = {"ops": ops, "padding": padding}

    def _check_soft_labels(self, count: int, classes: int) -> None:
        group, path = group_at(self._file, SOFT_LABELS, self.path), self.path
        codec = text_attribute(group, "codec", path)
        if codec not in CODECS:
            refuse(path, f"codec '{codec}' is unknown here", NEWER)
        found = {name: attribute(group, name, path) for name in group.attrs if name != "codec"}
        try:
            self.codec = make_codec(codec, classes, found)
        except ValueError as error:
            refuse(path, f"soft labels: {error}")
        check_names(group, self.codec.layout, path)
        for name, (kind, tail) in self.codec.layout.items():
            self._add(group, name, kind, (self.num_views, count, *tail))
        self._groups[SOFT_LABELS] = {"codec": codec, **found}

    def _add(
        self, group: h5py.Group, name: str, dtype: str, shape: tuple[int | None, ...]
    ) -> h5py.Dataset:
        found = dataset_at(group, name, dtype, shape, self.path)
        self._datasets[found.name.strip("/")] = found
        return found

    def _check_contents(self) -> None:
        for name, dataset in self._datasets.items():
            if _bytes(dataset) <= SMALL_BYTES:
                self._check_hash(name)
        self.labels()
        if all(_bytes(d) <= SMALL_BYTES for n, d in self._datasets.items() if n.startswith(VIEWS)):
            _ = self.views

    def _check_hash(self, name: str) -> None:
        dataset = self._datasets[name]
        total = content_hash(dataset.dtype, dataset.shape)
        rows = max(1, READ_BYTES * len(dataset) // _bytes(dataset))
        with damage_refused(self.path):
            for start in range(0, len(dataset), rows):
                total.update(np.ascontiguousarray(dataset[start : start + rows]).data)
            wanted = text_attribute(dataset, "sha256", self.path)
        if total.hexdigest() != wanted:
            refuse(self.path, f"'{name}' does not match its sha256")

    def _unpacked(self, name: str) -> Tensor:
        return unpack(name.removeprefix(f"{VIEWS}/"), self._read(name), self.header.count)

    def _read(self, name: str) -> np.ndarray:
        with damage_refused(self.path):
            return self._datasets[name][()]


def require_classes(path: Path, header: Header) -> None:
    """Refuse a file whose targets are representations.

    Raises:
        FormatError: if it is one.
    """
    if header.represented:
        refuse(
            path,
            "holds representations as targets, no class labels",
            "give a file with class labels, or let networks learn from this one with scdd-apps "
            "crossarch FILE --arch NAME",
        )


def read_header(path: str | Path) -> Header:
    """Open a file, with all checks, and return its header.

    Raises:
        FormatError: if the file cannot be used.
    """
    with DistilledFile(path) as file:
        return file.header


def verify(path: str | Path) -> list[str]:
    """Read a whole file and return what is wrong, fault by fault; an empty list: all is well."""
    try:
        with DistilledFile(path, contents=False) as file:
            found = list(file.faults())
    except FormatError as error:
        found = [str(error)]
    # Who shows the list says once which file it is and what to do.
    return [text.removeprefix(f"{Path(path)}: ").removesuffix(f"; {AGAIN}") for text in found]


def _rows(dataset: h5py.Dataset, view: int, rows: np.ndarray | slice) -> np.ndarray:
    """Some rows of a view: with all that lie between them, or one by one.

    h5py's own list of rows takes several times as long as either.
    """
    if isinstance(rows, slice) or len(rows) == 0:
        return dataset[view, rows]
    first, last = int(rows[0]), int(rows[-1]) + 1
    if (last - first) * _bytes(dataset) // math.prod(dataset.shape[:2]) <= len(rows) * ROW_BYTES:
        return dataset[view, first:last][rows - first]
    found = np.empty((len(rows), *dataset.shape[2:]), dataset.dtype)
    for place, row in enumerate(rows):
        found[place] = dataset[view, int(row)]
    return found


def _bytes(dataset: h5py.Dataset) -> int:
    return math.prod(dataset.shape) * dataset.dtype.itemsize


def _sentence(check: Any) -> Iterator[str]:
    try:
        check()
    except FormatError as error:
        yield str(error)
