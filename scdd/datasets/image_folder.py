"""Any images in the layout root/train/<class>/* and root/val/<class>/*."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from scdd.config.dataset import DatasetConfig
from scdd.datasets.catalog import Catalog, Split, files_digest, root_folder
from scdd.datasets.decoded_cache import cached_decode
from scdd.datasets.file_index import FileIndex, index_files
from scdd.datasets.image_decoding import IMAGE_EXTENSIONS, decode_in_threads, read_square
from scdd.errors import DataError

LAYOUT = "train/<class>/<image> and val/<class>/<image>"
SHOWN = 5


def read_split(root: Path, name: str, size: int) -> tuple[tuple[str, ...], Split]:
    """Return the classes and the images of `root`/`name` alone; nothing else of `root` is read.

    Raises:
        DataError: if the layout is another one or a class is empty.
    """
    _check_layout(root, (name,))
    files = _scan(root / name)
    return files.classes, _split(root, files, name, size)


def read_image_folder(cfg: DatasetConfig) -> Catalog:
    """Return the image folder at `cfg.root`; with `holdout` its val/ is not looked at.

    Classes and files are ordered as torchvision's ImageFolder orders them.

    Raises:
        DataError: if the layout is another one, a class is empty or train and val disagree.
    """
    root = root_folder(cfg, LAYOUT)
    _check_layout(root, ("train",) if cfg.holdout else ("train", "val"))
    classes, train = read_split(root, "train", cfg.image_size)
    if cfg.holdout:
        return Catalog(classes, train, None)
    val_classes, val = read_split(root, "val", cfg.image_size)
    if classes != val_classes:
        raise DataError(
            f"{root}: train/ and val/ hold different classes (only in train/: "
            f"{_some(set(classes) - set(val_classes))}; only in val/: "
            f"{_some(set(val_classes) - set(classes))}); give both the same class folders"
        )
    return Catalog(classes, train, val)


def decode_files(files: FileIndex, rows: Tensor, size: int, label: str) -> Tensor:
    """Decode `rows` [M] in threads: uint8 [M, 3, size, size]; `label` stands before a long bar.

    Raises:
        DataError: about the first file that cannot be read.
    """
    wanted = rows.tolist()

    def read(at: int) -> np.ndarray:
        return read_square(files.path(wanted[at]), size)

    return decode_in_threads(read, len(wanted), size, label)


def _split(root: Path, files: FileIndex, name: str, size: int) -> Split:
    digest = files_digest(
        root, (f"{name}/".encode() + file for file in files.names_in_byte_order())
    )

    def decode(rows: Tensor) -> Tensor:
        return cached_decode(
            root,
            (digest, size),
            rows,
            files.labels[rows],
            files.classes,
            lambda: decode_files(files, rows, size, f"decode {name}"),
        )

    return Split(files.labels, digest, decode, files)


def _check_layout(root: Path, wanted: Sequence[str]) -> None:
    if not root.exists():
        raise DataError(f"dataset.root: {root} does not exist; give a folder with {LAYOUT}")
    if not root.is_dir():
        raise DataError(f"dataset.root: {root} is a file; unpack it to a folder with {LAYOUT}")
    missing = [name for name in wanted if not (root / name).is_dir()]
    if missing:
        found = {entry.name for entry in _entries(root)}
        hint = len(wanted) > 1 and missing == ["val"]
        raise DataError(
            f"{root} has no {' and no '.join(f'{name}/' for name in missing)} (found: "
            f"{_some(found)}); arrange the images as {LAYOUT}"
            + (", or set dataset.holdout to evaluate on a share of train" if hint else "")
        )


def _scan(split: Path) -> FileIndex:
    entries = _entries(split)
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise DataError(
            f"{split} holds no class folders (found: {_some({entry.name for entry in entries})}); "
            f"arrange the images as {LAYOUT}"
        )
    for name in classes:
        if name.encode(errors="ignore").decode() != name:
            raise DataError(f"{split}: class folder {name!r} has no UTF-8 name; rename it")
    return index_files(str(split), ((name, _images(split / name)) for name in classes))


def _images(folder: Path) -> Iterator[str]:
    """Yield the images below `folder` by parent folder, then name; each folder once."""
    found: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link back to a folder above would be followed for ever
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found[parent] = sorted(name for name in names if _is_image(name))
    empty = True
    for parent in sorted(found):
        below = Path(parent).relative_to(folder).parts
        for name in found[parent]:
            if not _is_fifo(os.path.join(parent, name)):
                empty = False
                yield "/".join((*below, name))
    if empty:
        others = {entry.name for entry in _entries(folder)}
        raise DataError(
            f"{folder} holds no image (found: {_some(others)}; images end in "
            f"{' '.join(sorted(IMAGE_EXTENSIONS))}); add some or remove the folder"
        )


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _is_fifo(path: str) -> bool:
    """Whether reading would wait for ever; what cannot be reached is for others to name."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        _refuse(error)
        raise  # unreachable: _refuse always raises


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); check its permissions"
    ) from error


def _some(names: set[str]) -> str:
    """Write a few names for a sentence."""
    shown = ", ".join(sorted(names)[:SHOWN]) or "nothing"
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
