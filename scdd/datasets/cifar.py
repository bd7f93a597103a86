"""CIFAR-10 and CIFAR-100 from the files of their python release, read by torchvision."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from scdd.config.dataset import DatasetConfig
from scdd.datasets.catalog import Catalog, Split, files_digest, root_folder
from scdd.datasets.decoded_cache import cached_decode
from scdd.datasets.image_decoding import decode_in_threads, fit_square
from scdd.errors import DataError

_KINDS: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def read_cifar(cfg: DatasetConfig) -> Catalog:
    """Return CIFAR from `cfg.root`; sizes other than 32 px are resized as an image folder is.

    Raises:
        DataError: if the files are missing or damaged, or cannot be downloaded.
    """
    kind = _KINDS[cfg.name]
    root = root_folder(cfg, f"{kind.base_folder}/")
    train = _open(kind, root, True, cfg.download)
    val = None if cfg.holdout else _split(cfg, root, _open(kind, root, False, False))
    return Catalog(tuple(train.classes), _split(cfg, root, train), val)


def _open(kind: type[CIFAR10], root: Path, train: bool, download: bool) -> CIFAR10:
    folder = root / kind.base_folder
    try:
        return kind(root, train=train, download=download)
    except (OSError, RuntimeError) as error:
        if download:
            raise DataError(
                f"dataset.download: {kind.__name__} could not be downloaded into {root} ({error}); "
                f"put its python release at {folder} by hand"
            ) from error
        listed = [name for name, _ in kind.train_list + kind.test_list]
        missing = [name for name in listed if not (folder / name).is_file()]
        found = f"lacks {', '.join(missing)}" if missing else "has files with a wrong checksum"
        raise DataError(
            f"dataset.root: {folder} {found if folder.is_dir() else 'does not exist'}; put the "
            f"python release of {kind.__name__} there or set dataset.download=true"
        ) from error


def _split(cfg: DatasetConfig, root: Path, opened: CIFAR10) -> Split:
    labels = torch.tensor(opened.targets, dtype=torch.int64)
    listed = opened.train_list if opened.train else opened.test_list
    names = sorted(f"{opened.base_folder}/{name}".encode() for name, _ in listed)
    digest = files_digest(root, names)
    size, label = cfg.image_size, f"resize {cfg.name}"

    def decode(rows: Tensor) -> Tensor:
        pixels = opened.data[rows.numpy()]
        if size == pixels.shape[1]:
            return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

        def resized(at: int) -> np.ndarray:
            return fit_square(Image.fromarray(pixels[at]), size)

        return cached_decode(
            root,
            (digest, size),
            rows,
            labels[rows],
            tuple(opened.classes),
            lambda: decode_in_threads(resized, len(rows), size, label),
        )

    return Split(labels, digest, decode)
