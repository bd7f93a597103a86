"""Small distilled content, and files of it."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scdd.config.relabel import RelabelConfig
from scdd.distilled import (
    Arrays,
    Codec,
    DistilledDataset,
    Header,
    ViewRecords,
    make_codec,
    sample_views,
    write_distilled,
)


@dataclasses.dataclass(frozen=True)
class Content:
    """What goes into a file, and the way to put it there."""

    header: Header
    images: Tensor
    labels: Tensor
    records: ViewRecords | None
    logits: Tensor | None
    codec: Codec | None

    def write(self, path: Path, block: int = 2) -> str:
        """Write all of it, `block` views at a time; return the digest."""
        views = 0 if self.records is None else self.records.count()
        blocks = None if self.records is None else self.blocks(block)
        return write_distilled(
            path, self.header, self.images, self.labels, blocks, views, self.codec
        )

    def blocks(self, block: int) -> Iterator[tuple[ViewRecords, Arrays]]:
        assert self.records is not None and self.logits is not None
        encode = self.codec.encode if self.codec is not None else lambda logits: {}
        for first in range(0, len(self.logits), block):
            last = min(first + block, len(self.logits))
            yield self.records.slice(first, last), encode(self.logits[first:last])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def opened(made: Content, folder: Path) -> DistilledDataset:
    """The dataset of a file with this content."""
    made.write(folder / "distilled.h5")
    return DistilledDataset.open(folder / "distilled.h5")


def numbered(made: Content) -> Content:
    """Content whose image k is the constant k, so that images can be told apart."""
    made.images[:] = torch.arange(len(made.images), dtype=torch.uint8)[:, None, None, None]
    return made


def make_content(
    cfg: RelabelConfig | None = RelabelConfig(),  # noqa: B008  (frozen)
    classes: int = 3,
    ipc: int | None = 2,
    views: int = 4,
    size: int = 8,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    codec: str = "full",
    **attributes: int,
) -> Content:
    """Random images, labels and logits; `cfg` None: images alone; ipc None: 5 unlabelled images.

    `codec` hard: views without soft labels.
    """
    draw = torch.Generator().manual_seed(seed)
    count = classes * ipc if ipc is not None else 5
    labels = torch.arange(count) % classes if ipc is not None else torch.full((count,), -1)
    header = Header(
        target_kind="none" if cfg is None or codec == "hard" else "logits",
        target_dim=0 if cfg is None or codec == "hard" else classes,
        method="scdd",
        recipe="custom",
        image_size=size,
        ipc=ipc,
        budget_n=None if ipc is not None else count,
        seed=seed,
        created="2026-01-01T00:00:00+00:00",
        **(
            {
                "dataset": "digits",
                "class_names": tuple(f"class {c}" for c in range(classes)),
                "mean": (0.5, 0.4, 0.3),
                "std": (0.2, 0.2, 0.25),
                "config": {"relabel": {"views": views}},
                "versions": {"torch": "2.6"},
                "teacher": {"arch": "resnet8", "val_top1": 97.5},
            }
            | (about or {})
        ),
    )
    images = torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    if cfg is None:
        return Content(header, images, labels, None, None, None)
    records = sample_views(cfg, count, size, seed, 0, views)
    logits = 10 * torch.randn(views, count, classes, generator=draw)
    stored = None if codec == "hard" else make_codec(codec, classes, attributes)
    return Content(header, images, labels, records, logits, stored)


@pytest.fixture(scope="session")
def content() -> Callable[..., Content]:
    """`make_content` with its defaults: 3 classes, ipc 2, 4 views, 8 x 8 pixels."""
    return make_content


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small, right file with crops, flips and mixup."""
    path = tmp_path / "distilled.h5"
    make_content(RelabelConfig(mix="mixup")).write(path)
    return path
