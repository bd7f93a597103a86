"""Tiny real inputs for the stages: images that can be learnt, a teacher with a past, a file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scdd.config.relabel import RelabelConfig
from scdd.datasets import ResidentSource
from scdd.distilled import DistilledDataset, Header, ViewRecords, make_codec, write_distilled
from scdd.models import create_model
from scdd.stages.relabel import relabel

CLASSES, SIZE = 4, 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
CPU = torch.device("cpu")


@pytest.fixture
def make_source() -> Callable[..., ResidentSource]:
    """Return `make(count, seed=0)`: noisy images of four classes, each with a bright corner."""

    def make(count: int, seed: int = 0) -> ResidentSource:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % CLASSES
        images = torch.randint(120, (count, 3, SIZE, SIZE), generator=draw)
        half = SIZE // 2
        for image, label in zip(images, labels.tolist(), strict=True):
            top, left = half * (label // 2), half * (label % 2)
            image[:, top : top + half, left : left + half] += 130
        names = tuple("abcd")
        return ResidentSource(images.to(torch.uint8), labels, names, MEAN, STD)

    return make


def trained_teacher(arch: str = "resnet8", size: int = SIZE) -> nn.Module:
    """A frozen net whose BatchNorm has statistics and weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = create_model(arch, CLASSES, size).train()
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.3)
            for _ in range(5):
                net(1.5 * torch.randn(16, 3, size, size) + 0.3)
    return net.eval().requires_grad_(False)


@pytest.fixture
def make_teacher() -> Callable[..., nn.Module]:
    """Return `make(arch="resnet8")`: a frozen net whose BatchNorm has statistics and weights."""

    return trained_teacher


@pytest.fixture
def make_distilled(
    tmp_path: Path, make_teacher: Callable[..., nn.Module]
) -> Callable[..., DistilledDataset]:
    """Return `make(cfg, ipc=3)`: a distilled file of random images with the teacher's labels."""

    def make(cfg: RelabelConfig, ipc: int = 3, scale: float = 1.0) -> DistilledDataset:
        images, labels = random_images(CLASSES * ipc), torch.arange(CLASSES).repeat(ipc)
        records, logits = labelled(cfg, [make_teacher()], images)
        header = Header(
            target_kind="logits",
            target_dim=CLASSES,
            method="scdd",
            recipe="custom",
            dataset="corners",
            class_names=tuple("abcd"),
            mean=MEAN,
            std=STD,
            image_size=SIZE,
            ipc=ipc,
            seed=0,
        )
        path = tmp_path / "distilled.h5"
        codec = make_codec("full", CLASSES)
        block = records, codec.encode(scale * logits)
        write_distilled(path, header, images, labels.int(), [block], cfg.views, codec)
        return DistilledDataset.open(path)

    return make


def labelled(
    cfg: RelabelConfig,
    teachers: Sequence[nn.Module],
    images: Tensor,
    first: int = 0,
    last: int | None = None,
    batch: int = 500,
    seed: int = 0,
) -> tuple[ViewRecords, Tensor]:
    """Views first .. last - 1 as the stage makes them, and its labels float32 [V, N, C]."""
    views = range(first, cfg.views if last is None else last)
    made = list(
        relabel(
            cfg,
            teachers,
            images,
            MEAN,
            STD,
            seed,
            views,
            CPU,
            lambda logits: {"logits": logits},
            batch,
        )
    )
    logits = torch.cat([kept["logits"] for _, kept in made])
    return ViewRecords.cat([records for records, _ in made]), logits


def random_images(count: int, size: int = SIZE, seed: int = 3) -> Tensor:
    """uint8 [count, 3, size, size]."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
