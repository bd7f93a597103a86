"""Image files to square uint8 RGB arrays: any mode and orientation, Pillow, many threads."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scdd.errors import DataError
from scdd.progress import track

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
LONGEST_STRIP = 16
PROGRESS_FROM = 2000

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_rgb(path: str | Path) -> Image.Image:
    """Return the image at `path` as RGB, upright as its EXIF says.

    Raises:
        DataError: if the file is no whole image, too large, or of unknown pixel range.
    """
    try:
        with Image.open(path) as image:
            image.load()  # before the tag is asked for: loading a TIFF applies and clears it
            upright = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
            return rgb.transpose(upright) if upright is not None else rgb
    # A decoder that meets arbitrary bytes may raise anything; each of them means the same here.
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); repair or remove the file"
        ) from error


def read_square(path: str | Path, size: int) -> np.ndarray:
    """Return the centre of the image at `path` as uint8 `[3, size, size]`; see `fit_square`.

    Raises:
        DataError: as `read_rgb` does.
    """
    return fit_square(read_rgb(path), size)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Make Pillow refuse an image of suspiciously many pixels, of which it would only warn.

    Not for a thread among others: the filter belongs to the whole process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def fit_square(image: Image.Image, size: int) -> np.ndarray:
    """Return the centre of an RGB image as uint8 `[3, size, size]`.

    The short side is resized to `size` with Pillow's bilinear filter, whose support grows with
    the reduction (antialiasing), then the long side is cropped around its centre.
    """
    width, height = image.size
    longest = LONGEST_STRIP * min(width, height)
    if max(width, height) > longest:
        # Only the centre survives the crop; resizing all of a thin strip could fill the memory.
        left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        width, height = image.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def decode_in_threads(
    read: Callable[[int], np.ndarray], count: int, size: int, label: str
) -> Tensor:
    """Return uint8 `[count, 3, size, size]`, row i from `read(i)`; Pillow decodes without the GIL.

    Raises:
        DataError: the first one in row order, or if the images do not fit in memory.
    """
    require_memory(count, size, _memory())
    images = np.empty((count, 3, size, size), dtype=np.uint8)

    def decode(rows: range) -> range:
        for row in rows:
            images[row] = read(row)
        return rows

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with bombs_refused():
            chunks = [range(start, min(start + 32, count)) for start in range(0, count, 32)]
            rows = _flatten(pool.map(decode, chunks))
            for _ in track(rows, count, label) if count > PROGRESS_FROM else rows:
                pass
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)


def require_memory(count: int, size: int, memory: int | None, holder: str = "this machine") -> None:
    """Refuse images that cannot be resident in `memory` bytes; None: unknown, not checked.

    `holder` is what has the memory, in words.

    Raises:
        DataError: if `count` images at `size` px take more.
    """
    needed = count * 3 * size * size
    if memory is not None and needed > memory:
        raise DataError(
            f"dataset: {count} images at {size} px take {needed / 2**30:.1f} GiB and {holder} "
            f"has {memory / 2**30:.1f} GiB; set dataset.storage=streaming (image folders only), "
            "or a smaller image_size or train_per_class"
        )


def _memory() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _flatten(chunks: Iterable[range]) -> Iterator[int]:
    for chunk in chunks:
        yield from chunk


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    # Damaged EXIF beside sound pixels is common and no reason to refuse an image.
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    # Pillow opens 16-bit PGM, and PNG in its older versions, as mode I with values to 65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        deep = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit grey has no known range; convert it to 8 or 16 bits")
    if "transparency" in image.info:
        # Palette entries with alpha only convert without a warning by way of RGBA.
        image = image.convert("RGBA")
    return image.convert("RGB")
