"""What a dataset file knows before any pixel is decoded: labels, identity, how to get the rows."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scdd.config.dataset import DatasetConfig
from scdd.datasets.file_index import FileIndex
from scdd.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """One split, undecoded."""

    labels: Tensor
    """Class of every row: int64 `[N]`."""
    digest: str
    """Identity of the data of all rows, whatever the settings."""
    decode: Callable[[Tensor], Tensor]
    """Rows int64 `[M]` to their pixels, uint8 `[M, 3, S, S]` on the CPU."""
    files: FileIndex | None = None
    """Where the images lie, if each is a file of its own, which can be streamed."""


@dataclass(frozen=True, eq=False)
class Catalog:
    """A dataset, undecoded; `val` is None where a share of train is evaluated on instead."""

    classes: tuple[str, ...]
    train: Split
    val: Split | None


def root_folder(cfg: DatasetConfig, wanted: str) -> Path:
    """Return `cfg.root` as a path, or say that this dataset needs one.

    Raises:
        DataError: if no root is set.
    """
    if not cfg.root:
        raise DataError(f"dataset.root: {cfg.name} needs a folder with {wanted}; none is given")
    return Path(cfg.root).expanduser()


def files_digest(root: Path, names: Iterable[bytes]) -> str:
    """Return the sha256 over the (relative path, size, mtime in ns) of the files in `root`.

    Only the metadata is read, and nothing of where `root` lies, so a moved folder keeps it. The
    `names`, relative paths in UTF-8 with slashes, come sorted, so that nobody has to hold them all.

    Raises:
        DataError: if a file cannot be reached, a dangling link for instance.
    """
    digest, before = hashlib.sha256(), b""
    for name in names:
        assert before < name, (before, name)
        path = os.path.join(root, name.decode(errors="surrogateescape"))
        try:
            stat = os.stat(path)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be reached ({error.strerror}); repair or remove it"
            ) from error
        digest.update(name + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        before = name
    return digest.hexdigest()


def dataset_digest(cfg: DatasetConfig, catalog: Catalog) -> str:
    """Return the sha256 of the data and of the settings that change which pixels are seen."""
    identity = [catalog.train.digest, catalog.val.digest if catalog.val else None]
    settings = cfg.model_dump(include={"name", "image_size", "holdout", "train_per_class"})
    if cfg.storage != "resident":  # Digests made before there was a choice stay valid.
        settings["storage"] = cfg.storage
    return hashlib.sha256(json.dumps([identity, settings], sort_keys=True).encode()).hexdigest()
