"""Distilled files with awkward class names, and folders of images as other methods leave them."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.distilled.conftest import Content, make_content

AWKWARD = (
    "../../etc/passwd",
    "CON",
    "Ant",
    "ant",
    "a/b",
    "a_b",
    "\x1b[31mred\x07",
    "no_class",
    ".hidden.",
    "`]<script>|*_\\",
    "gr\u00f6\u00dfe \U0001f600",
    "",
)


def awkward(ipc: int | None = 2) -> Content:
    """A file whose texts are hostile; `ipc` None: images in no order, some without a class."""
    about = {"class_names": AWKWARD, "dataset": "d\n---\n# <b>`x", "teacher": {"arch": "`\n# y"}}
    content = make_content(None, classes=len(AWKWARD), ipc=ipc, about=about)
    if ipc is None:
        labels = torch.tensor([7, -1, 3, 3, -1])
        content = dataclasses.replace(content, labels=labels)
    return content


def write_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> None:
    """Write PNG images of noise into folders of these names; size is (width, height)."""
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number:03}.png")


def pixels_of(path: Path) -> np.ndarray:
    """The image file as uint8 [3, H, W]."""
    with Image.open(path) as image:
        return np.asarray(image).transpose(2, 0, 1)
