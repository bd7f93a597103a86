"""Reading HDF5 from strangers: what a distilled file may hold, and one sentence for all else.

HDF5 itself follows links into other files, returns zeros for storage that is missing, loads filter
plug-ins and takes a declared size at its word; none of that is let through here.
"""

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from scdd.errors import FormatError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
AGAIN = "rerun the step that wrote it, or download it again"
NEWER = "it needs a newer scdd"


def refuse(path: Path, found: str, advice: str = AGAIN) -> NoReturn:
    """Raise the one sentence of an unusable file: where, what was found, what to do."""
    raise FormatError(f"{path}: {found}; {advice}")


@contextlib.contextmanager
def damage_refused(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file into a FormatError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).strip("'\"").partition(" (")[0].split())
        refuse(path, f"the file is damaged ({reason or type(error).__name__})")


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading.

    Raises:
        FormatError: if there is no file, or it is not HDF5 or cut off.
    """
    if not path.exists():
        refuse(path, "there is no such file", "check the path")
    if not path.is_file():
        refuse(path, "this is not a file", "give the path of a distilled.h5")
    try:
        with path.open("rb") as file:
            start = file.read(len(SIGNATURE))
    except OSError as error:
        refuse(path, f"the file cannot be read ({error.strerror})", "check its permissions")
    if start != SIGNATURE:
        if SIGNATURE.startswith(start):
            refuse(path, "the file is cut off")
        refuse(path, "this is not an HDF5 file", "give the path of a distilled.h5")
    with damage_refused(path):
        try:
            # Read-only media refuse locks, and a file is whole before it gets its name.
            return h5py.File(path, "r", locking="best-effort")
        except OSError as error:
            if "truncated" in str(error):
                refuse(path, "the file is cut off")
            raise


def check_names(group: h5py.Group, wanted: Collection[str], path: Path) -> None:
    """Refuse a group that holds more or less than the wanted names, or a link that leads away."""
    found = list(group)
    for name in wanted:
        if name not in found:
            refuse(path, f"'{inside(group, name)}' is missing")
    for name in found:
        if name not in wanted:
            refuse(path, f"'{inside(group, name)}' is unknown to format version 1", NEWER)
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            refuse(path, f"'{inside(group, name)}' is a link, which may lead anywhere")


def group_at(root: h5py.Group, name: str, path: Path) -> h5py.Group:
    """Return a group that `check_names` has seen."""
    found = root[name]
    if not isinstance(found, h5py.Group):
        refuse(path, f"'{name}' is not a group")
    return found


def dataset_at(
    group: h5py.Group, name: str, dtype: str, shape: Sequence[int | None], path: Path
) -> h5py.Dataset:
    """Return a dataset that `check_names` has seen, with this dtype and shape (None: any size).

    All its values are in this file, uncompressed, so reading it takes no more memory than the file
    is long.
    """
    found = group[name]
    label = inside(group, name)
    if not isinstance(found, h5py.Dataset):
        refuse(path, f"'{label}' is not a dataset")
    if found.dtype != np.dtype(dtype):
        refuse(path, f"'{label}' holds {found.dtype}, not {np.dtype(dtype)}")
    actual = found.shape
    fits = actual is not None and len(actual) == len(shape)
    if not fits or any(s is not None and s != a for s, a in zip(shape, actual, strict=True)):
        text = ", ".join("any" if size is None else str(size) for size in shape)
        refuse(path, f"'{label}' has shape {list(actual or ())}, not [{text}]")
    if min(actual, default=1) < 1:
        refuse(path, f"'{label}' is empty")
    _check_storage(found, label, path)
    return found


def attribute(owner: h5py.Group | h5py.Dataset, name: str, path: Path) -> Any:
    """Return an attribute as str, int or bool."""
    label = f"attribute '{name}'" + ("" if owner.name == "/" else f" of '{owner.name.strip('/')}'")
    if name not in owner.attrs:
        refuse(path, f"{label} is missing")
    stored = owner.attrs.get_id(name)
    if stored.shape != () or stored.get_storage_size() > path.stat().st_size:
        refuse(path, f"{label} is not a single value")
    value = owner.attrs[name]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int):
        refuse(path, f"{label} is neither a text nor an integer")
    return value


def text_attribute(owner: h5py.Group | h5py.Dataset, name: str, path: Path) -> str:
    """Return an attribute that must be a text."""
    value = attribute(owner, name, path)
    if not isinstance(value, str):
        refuse(path, f"attribute '{name}' is not a text")
    return value


def json_attribute(owner: h5py.Group, name: str, path: Path) -> Any:
    """Return what the JSON text of an attribute says."""
    try:
        return json.loads(text_attribute(owner, name, path), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        refuse(path, f"attribute '{name}' is not JSON")


def inside(group: h5py.Group, name: str) -> str:
    """The path of a member of a group, for sentences: `views/crop`."""
    return f"{group.name}/{name}".strip("/")


def _check_storage(found: h5py.Dataset, label: str, path: Path) -> None:
    layout = found.id.get_create_plist()
    if found.is_virtual or layout.get_external_count() > 0:
        refuse(path, f"'{label}' keeps its values in another file")
    for position in range(layout.get_nfilters()):
        if layout.get_filter(position)[0] != h5py.h5z.FILTER_FLETCHER32:
            refuse(path, f"'{label}' is compressed", NEWER)
    size, length = path.stat().st_size, found.dtype.itemsize
    declared = math.prod(found.shape) * length
    chunks = found.chunks
    if declared > size or (chunks is not None and math.prod(chunks) * length > size):
        refuse(path, f"'{label}' claims {declared} bytes, but the file has {size}")
    if chunks is None:
        missing = found.id.get_storage_size() < declared
    else:
        pieces = math.prod(-(-s // c) for s, c in zip(found.shape, chunks, strict=True))
        missing = found.id.get_num_chunks() != pieces
    if missing:
        refuse(path, f"'{label}' lacks some of its values")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
