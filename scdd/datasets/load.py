"""From the dataset section of a configuration to training and validation images on a device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scdd.config.dataset import DatasetConfig
from scdd.config.section import Triple
from scdd.datasets.catalog import Catalog, dataset_digest
from scdd.datasets.cifar import read_cifar
from scdd.datasets.digits import read_digits
from scdd.datasets.image_folder import read_image_folder, read_split
from scdd.datasets.pixel_statistics import measure_mean_std
from scdd.datasets.sources import ImageSource, ResidentSource
from scdd.datasets.splits import first_per_class, hold_out

_READERS: dict[str, Callable[[DatasetConfig], Catalog]] = {
    "digits": read_digits,
    "image_folder": read_image_folder,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and validation images with the statistics and the identity that go with them."""

    name: str
    train: ImageSource
    val: ImageSource
    image_size: int
    """Side in pixels."""
    digest: str
    """sha256 of the data's identity and of the settings that change pixels or split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return self.train.classes

    @property
    def mean(self) -> Triple:
        """Channel means of the training pixels in [0, 1]."""
        return self.train.mean

    @property
    def std(self) -> Triple:
        """Channel standard deviations of the training pixels in [0, 1]."""
        return self.train.std


def load_dataset(cfg: DatasetConfig, device: str | torch.device = "cpu") -> Dataset:
    """Load the images that `cfg` describes onto `device`.

    With `holdout`, validation is a fixed share of train and the real validation split is not
    read at all. Both splits carry the statistics of train.

    Raises:
        DataError: if the data is missing, unreadable or laid out in another way.
    """
    catalog = _READERS[cfg.name](cfg)
    train_images, train_labels, val_images, val_labels = _decode_splits(cfg, catalog)
    mean, std = cfg.mean, cfg.std
    if mean is None or std is None:
        measured_mean, measured_std = measure_mean_std(train_images)
        mean, std = mean or measured_mean, std or measured_std

    def source(images: Tensor, labels: Tensor) -> ResidentSource:
        return ResidentSource(images.to(device), labels, catalog.classes, mean, std)

    return Dataset(
        name=cfg.name,
        train=source(train_images, train_labels),
        val=source(val_images, val_labels),
        image_size=cfg.image_size,
        digest=dataset_digest(cfg, catalog),
    )


def load_split(
    root: str | Path,
    split: str,
    image_size: int,
    mean: Triple,
    std: Triple,
    device: str | torch.device = "cpu",
) -> ImageSource:
    """Load one split of an image folder, say "val", with statistics that are already known.

    Raises:
        DataError: if `root`/`split` is missing, unreadable or laid out in another way.
    """
    classes, images = read_split(Path(root).expanduser(), split, image_size)
    pixels = images.decode(torch.arange(len(images.labels)))
    return ResidentSource(pixels.to(device), images.labels, classes, mean, std)


def _decode_splits(cfg: DatasetConfig, catalog: Catalog) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train, val = catalog.train, catalog.val
    rows, held = torch.arange(len(train.labels)), torch.arange(0)
    if val is None:
        rows, held = hold_out(train.labels, cfg.holdout, catalog.classes, "holdout")
    if cfg.train_per_class is not None:
        rows = rows[first_per_class(train.labels[rows], cfg.train_per_class)]
    # Decoded together, so that a run with holdout and one without share the cached file.
    needed = torch.cat([rows, held]).sort().values
    decoded = train.decode(needed)
    images = decoded if len(held) == 0 else decoded[torch.searchsorted(needed, rows)]
    if val is None:
        held_images = decoded[torch.searchsorted(needed, held)]
        return images, train.labels[rows], held_images, train.labels[held]
    return images, train.labels[rows], val.decode(torch.arange(len(val.labels))), val.labels
