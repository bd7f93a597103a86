"""Images as PNG files in memory, encoded ahead of being written."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from torch import Tensor

from scdd.progress import track

AT_ONCE = 256
"""Images that are encoded ahead of being written."""


def png_files(images: Tensor) -> Iterator[tuple[str, bytes]]:
    """Yield `<row>.png` and the file for each of uint8 [N, 3, S, S], encoded in threads."""
    digits = max(5, len(str(len(images) - 1)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded = (png for part in images.split(AT_ONCE) for png in pool.map(_png, part))
        for row, png in enumerate(track(encoded, len(images), "export")):
            yield f"{row:0{digits}}.png", png


def _png(image: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "png")
    return file.getvalue()
