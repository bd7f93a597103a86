"""Writing a distilled file: streamed, hashed on the way, under its name only when whole."""

import contextlib
import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from scdd.distilled.format import (
    FORMAT,
    FORMAT_VERSION,
    IMAGES,
    LABELS,
    NUMBERS,
    SOFT_LABELS,
    STRUCTURES,
    TEXTS,
    VIEWS,
    Header,
    content_hash,
    header_digest,
    label_fault,
)
from scdd.distilled.records import ViewRecords, pack, record_fault
from scdd.distilled.soft_labels import Arrays, Codec
from scdd.files import replacing

# "latest" follows the HDF5 that happens to be installed, and what 2.0 writes 1.14 cannot read;
# 1.10 has all we want of it, checksums on the metadata.
LIBRARY_VERSIONS = ("v110", "v110")
CHUNK_BYTES = 2**20
LABEL_CHUNK = 2**15
"""Soft labels are read whole views at a time, and some rows of one in any order."""

Block = tuple[ViewRecords, Arrays]
"""Records of v views and their soft labels as the codec has encoded them, [v, N, ...]."""


def write_distilled(
    path: str | Path,
    header: Header,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    blocks: Iterable[Block] | None = None,
    views: int = 0,
    codec: Codec | None = None,
) -> str:
    """Write a distilled file and return its digest; a file of that name is replaced at the end.

    Args:
        path: the file, whole or untouched whatever happens.
        header: what it says of itself; `digest` is ignored.
        images: uint8 [N, 3, S, S].
        labels: integers [N]; -1 is none.
        blocks: the views in order; drawn one at a time. None: images and labels alone.
        views: number of views V in all blocks together.
        codec: how soft labels are stored; None: not at all (`target_kind` none), which leaves
            views for class labels where there are blocks.

    Raises:
        ValueError: if the parts do not fit each other.
        RunError: if the disk is full.
    """
    if (codec is None) != (header.target_kind == "none") or (codec is not None and blocks is None):
        raise ValueError(f"target_kind '{header.target_kind}' does not fit the blocks or the codec")
    pixels, classes = _checked_images(images, header), _checked_labels(labels, header)
    if not header.created:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        header = dataclasses.replace(header, created=now)
    with replacing(Path(path)) as temporary, _new_hdf5(temporary) as (file, sink):
        _write_attributes(file, header)
        streams = [
            _Stream(file, IMAGES, pixels.shape, "|u1"),
            _Stream(file, LABELS, (len(classes),), "<i4"),
        ]
        for start in range(0, len(pixels), streams[0].rows):
            streams[0].append(pixels[start : start + streams[0].rows])
            sink.check()
        streams[1].append(classes)
        groups: dict[str, dict[str, object]] = {}
        if blocks is not None:
            groups = _write_blocks(file, sink, header, blocks, views, codec, streams)
        hashes = {stream.name: stream.finish() for stream in streams}
        digest = header_digest(header, groups, hashes)
        _set_text(file, "digest", digest)
        file.flush()
        sink.check()
        file.attrs.modify("complete", True)
    return digest


class _Sink:
    """A file as HDF5 sees it, on which no write ever fails; `check` tells of the error after all.

    HDF5 cannot close a file that it failed to write, and then crashes the process at its end. So
    the first error (disk full, Ctrl-C) is kept, and what would be written after it is dropped.
    """

    def __init__(self, raw: FileIO) -> None:
        self._raw = raw
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, data: memoryview) -> int:
        """Write all of `data`, or keep the error."""
        rest = memoryview(data)
        try:
            while self._error is None and len(rest):
                rest = rest[self._raw.write(rest) :]
        except BaseException as error:
            self._error = error
        return len(data)

    def truncate(self, size: int) -> int:
        """Set the file's length, or keep the error."""
        try:
            if self._error is None:
                self._raw.truncate(size)
        except BaseException as error:
            self._error = error
        return size

    def read(self, size: int = -1) -> bytes:
        """Read at the current position; h5py takes for a file what has this."""
        return self._raw.read(size)

    def readinto(self, buffer: memoryview) -> int:
        """Read at the current position."""
        return self._raw.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Return the current position."""
        return self._raw.tell()

    def flush(self) -> None:
        """Nothing is buffered here."""


class _Stream:
    """A dataset that is written along its first axis and hashed on the way."""

    def __init__(
        self,
        group: h5py.Group,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        item = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        self.rows = max(1, min(shape[0], chunk_bytes // item))
        chunks = (self.rows, *shape[1:])
        if item > chunk_bytes:
            second = max(1, shape[1] * chunk_bytes // item)
            chunks = (1, second, *shape[2:])
        self._dataset = group.create_dataset(
            name, shape=shape, dtype=dtype, chunks=chunks, fletcher32=True
        )
        self.name = self._dataset.name.strip("/")
        self._hash = content_hash(self._dataset.dtype, shape)
        self._at = 0

    def append(self, values: np.ndarray) -> None:
        """Write the next entries of the first axis."""
        values = np.ascontiguousarray(values, dtype=self._dataset.dtype)
        self._dataset[self._at : self._at + len(values)] = values
        self._hash.update(values.data)
        self._at += len(values)

    def finish(self) -> str:
        """Store the hash with the dataset and return it."""
        assert self._at == len(self._dataset)
        _set_text(self._dataset, "sha256", self._hash.hexdigest())
        return self._hash.hexdigest()


@contextlib.contextmanager
def _new_hdf5(path: Path) -> Iterator[tuple[h5py.File, _Sink]]:
    with FileIO(path, "w+") as raw:
        sink = _Sink(raw)
        try:
            with h5py.File(sink, "w", libver=LIBRARY_VERSIONS) as file:
                yield file, sink
        finally:
            sink.check()  # the cause; what HDF5 raised, if anything, is its context


def _write_blocks(
    file: h5py.File,
    sink: _Sink,
    header: Header,
    blocks: Iterable[Block],
    views: int,
    codec: Codec | None,
    streams: list[_Stream],
) -> dict[str, dict[str, object]]:
    """Write views and soft labels; add their streams and return the attributes of the groups."""
    count = header.count
    view_group = file.create_group(VIEWS)
    parameters: dict[str, _Stream] = {}
    labels: dict[str, _Stream] = {}
    if codec is not None:
        label_group = file.create_group(SOFT_LABELS)
        for name, (kind, tail) in codec.layout.items():
            labels[name] = _Stream(label_group, name, (views, count, *tail), kind, LABEL_CHUNK)
    first: ViewRecords | None = None
    done = 0
    for records, encoded in blocks:
        _check_block(records, encoded, first or records, header, codec)
        if first is None:
            first = records
            for name, values in sorted(records.parameters.items()):
                example = pack(name, values[:1])
                shape = (views, *example.shape[1:])
                parameters[name] = _Stream(view_group, name, shape, example.dtype.str)
        done += records.count()
        if done > views:
            raise ValueError(f"there are more than the {views} views announced")
        for name, values in records.parameters.items():
            parameters[name].append(pack(name, values))
        for name, values in encoded.items():
            labels[name].append(values.cpu().numpy())
        sink.check()
    if first is None or done < views:
        raise ValueError(f"there are {done} of the {views} views announced")
    groups: dict[str, dict[str, object]] = {
        VIEWS: {"ops": list(first.ops), "padding": first.padding}
    }
    _set_text(view_group, "ops", json.dumps(list(first.ops)))
    view_group.attrs["padding"] = first.padding
    if codec is not None:
        groups[SOFT_LABELS] = {"codec": codec.name, **codec.attributes}
        _set_text(label_group, "codec", codec.name)
        for name, value in codec.attributes.items():
            label_group.attrs[name] = value
    streams += [*parameters.values(), *labels.values()]
    return groups


def _check_block(
    records: ViewRecords,
    encoded: Arrays,
    first: ViewRecords,
    header: Header,
    codec: Codec | None,
) -> None:
    fault = record_fault(records, header.count, header.image_size)
    if fault is not None:
        raise ValueError(f"view records: {fault}")
    layouts = [
        (r.ops, r.padding, {name: values.shape[2:] for name, values in r.parameters.items()})
        for r in (records, first)
    ]
    if layouts[0] != layouts[1]:
        raise ValueError("blocks differ in operations, padding or parameters")
    layout = codec.layout if codec is not None else {}
    if set(encoded) != set(layout):
        raise ValueError(f"soft labels hold {sorted(encoded)}, not {sorted(layout)}")
    for name, (kind, tail) in layout.items():
        wanted = (records.count(), header.count, *tail)
        values = encoded[name]
        if tuple(values.shape) != wanted or values.numpy(force=True).dtype != np.dtype(kind):
            raise ValueError(
                f"{name} of the soft labels is {values.dtype} {list(values.shape)}, not "
                f"{np.dtype(kind)} {list(wanted)}"
            )


def _checked_images(images: Tensor | np.ndarray, header: Header) -> np.ndarray:
    pixels = _array(images)
    wanted = (header.count, 3, header.image_size, header.image_size)
    if pixels.dtype != np.uint8 or pixels.shape != wanted:
        raise ValueError(
            f"images are {pixels.dtype} {list(pixels.shape)}, not uint8 {list(wanted)}"
        )
    return pixels


def _checked_labels(labels: Tensor | np.ndarray, header: Header) -> np.ndarray:
    classes = _array(labels)
    if classes.dtype.kind not in "iu" or classes.shape != (header.count,):
        raise ValueError(
            f"labels are {classes.dtype} {list(classes.shape)}, not integers [{header.count}]"
        )
    fault = label_fault(classes, header)
    if fault is not None:
        raise ValueError(fault)
    return classes.astype("<i4")


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _write_attributes(file: h5py.File, header: Header) -> None:
    _set_text(file, "format", FORMAT)
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["complete"] = False
    for name in TEXTS:
        _set_text(file, name, getattr(header, name))
    for name in NUMBERS:
        file.attrs[name] = getattr(header, name)
    for name in STRUCTURES:
        _set_text(file, name, json.dumps(getattr(header, name), allow_nan=False))


def _set_text(owner: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    """Store a text of fixed length: HDF5 keeps the others where no checksum covers them."""
    data = text.encode("utf-8")
    kind = h5py.string_dtype("utf-8", max(1, len(data)))
    owner.attrs.create(name, np.array(data, dtype=kind), dtype=kind)
