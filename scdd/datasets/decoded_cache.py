"""Decoded images kept in the user's cache folder, so that each file is decoded once."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

VERSION = 1


def cache_folder() -> Path:
    """Return $SCDD_CACHE, $XDG_CACHE_HOME/scdd or ~/.cache/scdd, the first that is set."""
    if own := os.environ.get("SCDD_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(shared or "~/.cache").expanduser().absolute() / "scdd"


def cached_decode(
    root: Path,
    key: tuple[str, int],
    rows: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    decode: Callable[[], Tensor],
) -> Tensor:
    """Return the decoded `rows` `[M]` of a split, uint8 `[M, 3, S, S]`, from the cache or `decode`.

    A damaged cache file is built anew; a folder that cannot be written to, or that lies inside
    `root`, costs one printed line and no more.

    Args:
        root: folder of the source images; nothing is ever written below it.
        key: (digest of the split's files, image size in pixels).
        rows: rows of the split, int64 `[M]`.
        labels: their classes, int64 `[M]`, stored beside the images.
        classes: class names, stored as metadata.
        decode: called where the cache has no usable file.
    """
    digest = _digest(key, rows)
    file = cache_folder() / "decoded" / f"{digest}.safetensors"
    if file.resolve().is_relative_to(root.resolve()):
        _say(f"The cache folder {cache_folder()} lies inside the dataset; nothing is kept there.")
        return decode()
    try:
        return _load(file, digest, labels, key[1])
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, SafetensorError, ValueError) as error:
        _say(f"The decoded images in {file} cannot be used ({error}); decoding them again.")
    images = decode()
    try:
        _store(file, digest, images, labels, classes)
    except (OSError, SafetensorError) as error:
        _say(f"The decoded images cannot be kept in {file.parent} ({error}); going on without.")
    return images


def _digest(key: tuple[str, int], rows: Tensor) -> str:
    chosen = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([VERSION, *key, chosen]).encode()).hexdigest()


def _load(file: Path, digest: str, labels: Tensor, size: int) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        stored = opened.metadata() or {}
        if stored.get("key") != digest:
            raise ValueError("it is of other images")
        images, stored_labels = opened.get_tensor("images"), opened.get_tensor("labels")
    if images.dtype != torch.uint8 or images.shape != (len(labels), 3, size, size):
        raise ValueError(f"it holds {images.dtype} {tuple(images.shape)}")
    if not torch.equal(stored_labels, labels) or stored.get("sha256") != _pixel_digest(images):
        raise ValueError("its contents do not match their checksum")
    return images


def _store(
    file: Path, digest: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> None:
    metadata = {
        "format": "scdd decoded images",
        "key": digest,
        "classes": json.dumps(classes),
        "sha256": _pixel_digest(images),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file({"images": images, "labels": labels}, temporary, metadata)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _pixel_digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().data).hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
