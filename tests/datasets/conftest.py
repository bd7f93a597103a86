"""Small image folders of random pixels, and a decoded cache of each test's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Pixels = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache folder of this test; it does not exist yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SCDD_CACHE", str(folder))
    return folder


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., tuple[Path, Pixels]]:
    """Return `write(train=5, val=2, size=8, classes=...)`, giving the root and its raw pixels."""

    def write(
        train: int = 5, val: int = 2, size: int = 8, classes: tuple[str, ...] = ("ant", "bee")
    ) -> tuple[Path, Pixels]:
        rng = np.random.default_rng(train * 1000 + val)
        root, pixels = tmp_path / "images", {}
        for split, count in (("train", train), ("val", val)):
            for label in classes:
                (root / split / label).mkdir(parents=True)
                for number in range(count):
                    name = f"{split}/{label}/{number:03}.png"
                    pixels[name] = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels[name]).save(root / name)
        return root, pixels

    return write


HEIGHTS_AND_WIDTHS = ((40, 60), (60, 40), (33, 33), (9, 120), (120, 9), (64, 48), (7, 5))


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Return a root whose 18 training images have all sizes, modes and orientations; val has 4."""
    rng = np.random.default_rng(5)
    root = tmp_path / "mixed"
    for label in ("ant", "bee"):
        for split, shapes in (("train", HEIGHTS_AND_WIDTHS), ("val", HEIGHTS_AND_WIDTHS[:2])):
            (root / split / label).mkdir(parents=True)
            for number, (height, width) in enumerate(shapes):
                pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
        turned = Image.Exif()
        turned[0x0112] = 6
        photograph = Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8))
        photograph.save(root / "train" / label / "turned.jpg", exif=turned)
        photograph.convert("L").save(root / "train" / label / "grey.png")
    return root
