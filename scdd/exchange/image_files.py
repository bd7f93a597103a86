"""The images to import: which files, in which order, of which classes and sizes."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from scdd.datasets.file_index import FileIndex
from scdd.datasets.image_decoding import read_rgb
from scdd.datasets.image_folder import read_split
from scdd.errors import DataError
from scdd.exchange.class_folders import CLASSES, ClassFolder, read_classes
from scdd.exchange.class_order import check_classes, class_order, rank_major


class Known(NamedTuple):
    """Class names by label that are known from elsewhere."""

    classes: tuple[str, ...]
    origin: str
    """Where from, for sentences."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files in the order of their rows."""

    files: FileIndex
    rows: Tensor
    """int64 [N]: which of the files."""
    labels: Tensor
    """int64 [N]; -1 is none."""
    classes: tuple[str, ...]


def find_images(folder: Path, known: Known | None) -> ImageFiles:
    """Find the images in the class folders of `folder`, or of its train/.

    What scdd exported has the order it had; all else is ordered rank-major, by name in a class.

    Raises:
        DataError: if there are no classes, one is empty, or they are others than the known ones.
    """
    files = _class_files(folder)
    described = read_classes(folder / CLASSES)
    if described is not None:
        found = _exported(folder, files, described)
        if known is not None:
            check_classes(found.classes, known.classes, str(folder), known.origin)
        return found
    names, origin = known or (None, "")
    label_of, classes = class_order(files.classes, names, str(folder), origin)
    labels = torch.tensor(label_of)[files.labels]
    rows = rank_major(labels)
    return ImageFiles(files, rows, labels[rows], classes)


def class_files(root: Path, split: str) -> FileIndex:
    """Return the image files below `root`/`split`/<class>, undecoded.

    Raises:
        DataError: if the layout is another one or a class is empty.
    """
    _, found = read_split(root, split, 1)
    assert found.files is not None
    return found.files


def image_size(images: ImageFiles, wanted: int | None, folder: Path) -> tuple[int, int]:
    """Return (side in pixels, number of images that have to be resized to it).

    Raises:
        DataError: if none is wanted and the images are not all squares of one size, or about an
            image that cannot be read.
    """
    sizes = Counter(_size_of(images.files.path(row)) for row in range(len(images.files)))
    if wanted is None:
        (width, height), *others = sizes
        if others or width != height:
            shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
            raise DataError(
                f"{folder}: images are not squares of one size ({shown}"
                f"{', ...' if len(sizes) > 3 else ''}); say with --size which one they shall have"
            )
        wanted = width
    return wanted, sum(sizes.values()) - sizes[wanted, wanted]


def _class_files(folder: Path) -> FileIndex:
    if not folder.exists():
        raise DataError(f"{folder}: there is no such folder; give one with a folder per class")
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file; unpack it to a folder with a folder per class")
    place = folder.resolve()
    if _holds_folders(place / "train"):  # The split; a class of that name would hold images.
        place = place / "train"
    if not _holds_folders(place):
        raise DataError(f"{folder}: holds no class folders; put the images into one per class")
    return class_files(place.parent, place.name)


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(
        entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()
    )


def _exported(folder: Path, files: FileIndex, described: Sequence[ClassFolder]) -> ImageFiles:
    """Rows and labels as classes.json and the names of the images say."""
    remedy = f"export them again, or remove {CLASSES} to go by the names of the folders"
    said = {one.folder: one.images for one in described if one.images}
    found = Counter(files.classes[label] for label in files.labels.tolist())
    for name in sorted(said.keys() | found.keys()):
        if said.get(name, 0) != found[name]:
            raise DataError(
                f"{folder / CLASSES}: says {said.get(name, 0)} images of folder {name!r}, but "
                f"there are {found[name]}; {remedy}"
            )
    stems = [os.path.splitext(os.path.basename(files.path(row)))[0] for row in range(len(files))]
    file_of = {int(stem): row for row, stem in enumerate(stems) if stem.isdecimal()}
    if sorted(file_of) != list(range(len(files))):
        raise DataError(f"{folder}: images are not named 0 .. {len(files) - 1}; {remedy}")
    rows = torch.tensor([file_of[row] for row in range(len(files))])
    label_of = {one.folder: one.label for one in described}
    labels = torch.tensor([label_of[name] for name in files.classes])[files.labels]
    classes = sorted((one.label, one.name) for one in described if one.name is not None)
    return ImageFiles(files, rows, labels[rows], tuple(name for _, name in classes))


def _size_of(path: str) -> tuple[int, int]:
    """Width and height as the head of the file says."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:
        return read_rgb(path).size  # Its error says what is wrong.
