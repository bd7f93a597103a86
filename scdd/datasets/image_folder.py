"""Any images in the layout root/train/<class>/* and root/val/<class>/*."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scdd.config.dataset import DatasetConfig
from scdd.datasets.catalog import Catalog, Split, files_digest, root_folder
from scdd.datasets.decoded_cache import cached_decode
from scdd.datasets.image_decoding import IMAGE_EXTENSIONS, decode_in_threads, read_square
from scdd.errors import DataError

LAYOUT = "train/<class>/<image> and val/<class>/<image>"
SHOWN = 5


@dataclass(frozen=True)
class _Files:
    """The images of one split; labels run along `classes`, which are sorted by name."""

    classes: tuple[str, ...]
    paths: list[Path]
    labels: list[int]


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


def _split(root: Path, files: _Files, name: str, size: int) -> Split:
    labels = torch.tensor(files.labels, dtype=torch.int64)
    digest = files_digest(root, files.paths)

    def decode(rows: Tensor) -> Tensor:
        paths = [files.paths[row] for row in rows.tolist()]

        def read(at: int) -> np.ndarray:
            return read_square(paths[at], size)

        return cached_decode(
            root,
            (digest, size),
            rows,
            labels[rows],
            files.classes,
            lambda: decode_in_threads(read, len(paths), size, f"decode {name}"),
        )

    return Split(labels, digest, decode)


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


def _scan(split: Path) -> _Files:
    entries = _entries(split)
    classes = tuple(sorted(entry.name for entry in entries if entry.is_dir()))
    if not classes:
        raise DataError(
            f"{split} holds no class folders (found: {_some({entry.name for entry in entries})}); "
            f"arrange the images as {LAYOUT}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name.encode(errors="ignore").decode() != name:
            raise DataError(f"{split}: class folder {name!r} has no UTF-8 name; rename it")
        images = _images(split / name)
        if not images:
            found = {entry.name for entry in _entries(split / name)}
            raise DataError(
                f"{split / name} holds no image (found: {_some(found)}; images end in "
                f"{' '.join(sorted(IMAGE_EXTENSIONS))}); add some or remove the folder"
            )
        paths += images
        labels += [label] * len(images)
    return _Files(classes, paths, labels)


def _images(folder: Path) -> list[Path]:
    """Return the images below `folder` by parent folder, then name; each folder once."""
    found: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        stat = os.stat(parent)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()  # a link back to a folder above would be followed for ever
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [(parent, name) for name in names if _is_image(name)]
    return [path for path in (Path(*names) for names in sorted(found)) if not path.is_fifo()]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


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
