"""From the dataset section of a configuration to training and validation images on a device."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scdd.config.dataset import DatasetConfig
from scdd.config.section import Triple
from scdd.datasets.catalog import Catalog, dataset_digest
from scdd.datasets.cifar import read_cifar
from scdd.datasets.digits import read_digits
from scdd.datasets.file_index import FileIndex
from scdd.datasets.image_decoding import require_memory
from scdd.datasets.image_folder import decode_files, read_image_folder, read_split
from scdd.datasets.pixel_statistics import measure_mean_std
from scdd.datasets.sources import ImageSource, ResidentSource
from scdd.datasets.splits import evenly_spaced, first_per_class, hold_out
from scdd.datasets.streaming import StreamingSource, default_workers
from scdd.progress import track

MEASURED = 4000
"""Images that mean and std are measured on while streaming."""

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
    read at all. Both splits carry the statistics of train; while streaming, these are measured on
    at most 4,000 of its images, evenly spaced.

    Raises:
        DataError: if the data is missing, unreadable or laid out in another way.
    """
    catalog = _READERS[cfg.name](cfg)
    load = _streaming if cfg.storage == "streaming" else _resident
    train, val = load(cfg, catalog, torch.device(device))
    return Dataset(
        name=cfg.name,
        train=train,
        val=val,
        image_size=cfg.image_size,
        digest=dataset_digest(cfg, catalog),
    )


def check_dataset(cfg: DatasetConfig) -> None:
    """Refuse data that `load_dataset` would refuse, as far as can be told without decoding it.

    Raises:
        DataError: if the data is missing or laid out in another way.
    """
    _rows(cfg, _READERS[cfg.name](cfg))


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


def _resident(
    cfg: DatasetConfig, catalog: Catalog, device: torch.device
) -> tuple[ImageSource, ImageSource]:
    train, val = catalog.train, catalog.val
    rows, held = _rows(cfg, catalog)
    # Decoded together, so that a run with holdout and one without share the cached file.
    needed = torch.cat([rows, held]).sort().values
    decoded = train.decode(needed)
    images = decoded if len(held) == 0 else decoded[torch.searchsorted(needed, rows)]
    if val is None:
        val_images, val_labels = decoded[torch.searchsorted(needed, held)], train.labels[held]
    else:
        val_images, val_labels = val.decode(torch.arange(len(val.labels))), val.labels
    mean, std = _mean_std(cfg, images.split(4096))

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        require_memory(len(images) + len(val_images), cfg.image_size, free, f"{device} (free)")

    def source(images: Tensor, labels: Tensor) -> ResidentSource:
        return ResidentSource(images.to(device), labels, catalog.classes, mean, std)

    return source(images, train.labels[rows]), source(val_images, val_labels)


def _streaming(
    cfg: DatasetConfig, catalog: Catalog, device: torch.device
) -> tuple[ImageSource, ImageSource]:
    """Nothing is decoded here but the images that mean and std are measured on."""
    files = catalog.train.files
    assert files is not None
    rows, held = _rows(cfg, catalog)
    sample = evenly_spaced(rows, MEASURED).split(64)
    label = "measure mean and std"
    chunks = (decode_files(files, part, cfg.image_size, label) for part in sample)
    mean, std = _mean_std(cfg, track(chunks, len(sample), label))
    workers = default_workers() if cfg.workers is None else cfg.workers

    def source(files: FileIndex, rows: Tensor) -> StreamingSource:
        return StreamingSource(files, rows, mean, std, cfg.image_size, device, workers)

    if catalog.val is None:
        return source(files, rows), source(files, held)
    val_files = catalog.val.files
    assert val_files is not None
    return source(files, rows), source(val_files, torch.arange(len(val_files)))


def _rows(cfg: DatasetConfig, catalog: Catalog) -> tuple[Tensor, Tensor]:
    """Rows of train that are trained on, and those that are held out, both ascending."""
    labels = catalog.train.labels
    rows, held = torch.arange(len(labels)), torch.arange(0)
    if catalog.val is None:
        rows, held = hold_out(labels, cfg.holdout, catalog.classes, "holdout")
    if cfg.train_per_class is not None:
        rows = rows[first_per_class(labels[rows], cfg.train_per_class)]
    return rows, held


def _mean_std(cfg: DatasetConfig, chunks: Iterable[Tensor]) -> tuple[Triple, Triple]:
    """The statistics that are given; `chunks` are only looked at where one is missing."""
    if cfg.mean is not None and cfg.std is not None:
        return cfg.mean, cfg.std
    mean, std = measure_mean_std(chunks)
    return cfg.mean or mean, cfg.std or std
