"""A new HDF5 file and its datasets, streamed and hashed on the way to a disk that may be full."""

import contextlib
import datetime
import json
import math
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

import h5py
import numpy as np

from scdd.distilled.format import (
    FORMAT,
    FORMAT_VERSION,
    Header,
    attribute_names,
    content_hash,
    header_digest,
)

# "latest" follows the HDF5 that happens to be installed, and what 2.0 writes 1.14 cannot read;
# 1.10 has all we want of it, checksums on the metadata.
LIBRARY_VERSIONS = ("v110", "v110")
CHUNK_BYTES = 2**20


class Sink:
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


class Stream:
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
        set_text(self._dataset, "sha256", self._hash.hexdigest())
        return self._hash.hexdigest()


@contextlib.contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[h5py.File, Sink]]:
    """Make a file at `path`; the sink raises what went wrong in writing it, at the latest here."""
    with FileIO(path, "w+") as raw:
        sink = Sink(raw)
        try:
            with h5py.File(sink, "w", libver=LIBRARY_VERSIONS) as file:
                yield file, sink
        finally:
            sink.check()  # the cause; what HDF5 raised, if anything, is its context


def write_attributes(file: h5py.File, header: Header) -> None:
    """Store the header, all but its digest, with `complete` false."""
    set_text(file, "format", FORMAT)
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["complete"] = False
    texts, numbers, structures = attribute_names(header.target_kind)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for name in texts:
        text = getattr(header, name)
        set_text(file, name, now if name == "created" and not text else text)
    for name in numbers:
        file.attrs[name] = getattr(header, name)
    for name in structures:
        set_text(file, name, json.dumps(getattr(header, name), allow_nan=False))


def finish(
    file: h5py.File,
    sink: Sink,
    header: Header,
    groups: dict[str, dict[str, object]],
    streams: Sequence[Stream],
) -> str:
    """Store all hashes and the digest, and say that the file is complete; return the digest.

    Args:
        groups: attributes of the groups, by the name of the group.
        streams: every dataset of the file.
    """
    hashes = {stream.name: stream.finish() for stream in streams}
    digest = header_digest(header, groups, hashes)
    set_text(file, "digest", digest)
    file.flush()
    sink.check()
    file.attrs.modify("complete", True)
    return digest


def set_text(owner: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    """Store a text of fixed length: HDF5 keeps the others where no checksum covers them."""
    data = text.encode("utf-8")
    kind = h5py.string_dtype("utf-8", max(1, len(data)))
    owner.attrs.create(name, np.array(data, dtype=kind), dtype=kind)
