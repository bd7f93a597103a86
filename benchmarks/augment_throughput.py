"""Measure how fast views are made on the device, against torchvision in a DataLoader's workers.

    python benchmarks/augment_throughput.py [--result benchmarks/results/augment_throughput.json]
        [--images N] [--batch B] [--size S] [--rounds R] [--workers W] [--threads T] [--device D]

An image counts when its two normalised views are there, in a batch, on the device. Both ways take
turns in one process, so that a busy machine slows both; nothing else should run all the same.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Threads that spin while they wait would take the cores from the workers.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from record import commit, without_folder  # noqa: E402

from scdd.augment import colour, draw_views, normalise  # noqa: E402
from scdd.config.views import ViewConfig  # noqa: E402
from scdd.datasets.sources import Request, ResidentSource  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.run import environment  # noqa: E402
from scdd.seeding import generator  # noqa: E402
from scdd.tables import table  # noqa: E402

SCHEMA = "scdd throughput 1"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SIGMA = (0.1, 2.0)
Pair = tuple[Tensor, Tensor]


def pillow_blur(image: Image.Image) -> Image.Image:
    """Blur as the code of MoCo v2 does, by box filters that come near a Gaussian."""
    sigma = torch.empty(1).uniform_(*SIGMA).item()
    return image.filter(ImageFilter.GaussianBlur(radius=sigma))


BLURS: dict[str, Callable[..., Any] | None] = {
    "MoCo v2 on CIFAR, no blur": None,
    "MoCo v2, torchvision's blur": transforms.GaussianBlur(13, SIGMA),
    "MoCo v2, Pillow's blur": pillow_blur,
}
"""The pipelines, by what blurs half of the views beside us."""


class TwoViews(Dataset[Pair]):
    """Two views of each image, by torchvision on Pillow's images."""

    def __init__(self, images: Tensor, blur: Callable[..., Any] | None) -> None:
        self.images = [Image.fromarray(x.numpy()) for x in images.permute(0, 2, 3, 1).contiguous()]
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(images.shape[-1], scale=(0.2, 1.0)),
                transforms.RandomApply([jitter], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                *([] if blur is None else [transforms.RandomApply([blur], p=0.5)]),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        image = self.images[index]
        return self.transform(image), self.transform(image)


def by_torchvision(loader: DataLoader[Pair], device: torch.device) -> Iterator[Pair]:
    """One epoch of batches."""
    for first, second in loader:
        yield first.to(device), second.to(device)


def by_scdd(source: ResidentSource, blur: float, batch: int, seed: int) -> Iterator[Pair]:
    """One epoch of batches, made as squeeze makes them."""
    cfg, (count, *_, size) = ViewConfig(count=2, blur=blur), source.images.shape
    order = torch.randperm(count, generator=generator(seed, "order"))
    for step, rows in enumerate(order.split(batch)):
        drawn = draw_views([cfg], batch, size, generator(seed, "views", step))
        (crops,) = source.crops([Request(rows, tuple(view.crop for view in drawn))])
        first, second = (
            normalise(colour(crop, view.colour), MEAN, STD)
            for crop, view in zip(crops, drawn, strict=True)
        )
        yield first, second


def images_per_second(batches: Iterator[Pair], device: torch.device) -> float:
    """Go through an epoch."""
    start, count = time.perf_counter(), 0
    for first, second in batches:
        assert first.shape == second.shape
        count += len(first)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)


def measure(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Let both ways of all pipelines take turns."""
    draw = torch.Generator().manual_seed(0)
    shape = (options.images // options.batch * options.batch, 3, options.size, options.size)
    images = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    labels = torch.zeros(len(images), dtype=torch.long)
    source = ResidentSource(images.to(device), labels, ("any",), MEAN, STD)
    loaders = {
        name: DataLoader(
            TwoViews(images, blur),
            options.batch,
            shuffle=True,
            num_workers=options.workers,
            persistent_workers=True,
        )
        for name, blur in BLURS.items()
    }
    # In training, larger tensors than views are freed, and glibc then keeps freed memory; here it
    # would give it back at every step.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    rows: dict[str, dict[str, Any]] = {
        name: {"views": name, "ours": [], "torchvision": []} for name in BLURS
    }
    for number in range(options.rounds + 1):
        for name, blur in BLURS.items():
            ours = by_scdd(source, 0.0 if blur is None else 0.5, options.batch, number)
            theirs = by_torchvision(loaders[name], device)
            speeds = images_per_second(ours, device), images_per_second(theirs, device)
            if number > 0:  # The first round starts the workers and warms the caches.
                rows[name]["ours"].append(speeds[0])
                rows[name]["torchvision"].append(speeds[1])
    for row in rows.values():
        medians = [statistics.median(row[side]) for side in ("ours", "torchvision")]
        row |= {"median_ours": medians[0], "median_torchvision": medians[1]}
        row["ratio"] = medians[0] / medians[1]
    return list(rows.values())


def main() -> None:
    """Measure, print, and write the result if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    torch.set_num_threads(options.threads)
    rows = measure(options, device)
    headers = ["views", "ours, images/s", "torchvision, images/s", "ratio"]
    cells = [
        [
            row["views"],
            f"{row['median_ours']:.0f}",
            f"{row['median_torchvision']:.0f}",
            f"{row['ratio']:.1f}",
        ]
        for row in rows
    ]
    print(table(headers, cells))
    if options.result:
        about = environment(options.device, options.threads)
        about["command"] = shlex.join(map(without_folder, sys.argv))
        settings = {name: getattr(options, name) for name in ("images", "batch", "size", "workers")}
        result = {
            "schema": SCHEMA,
            "commit": commit(),
            "environment": about,
            "config": settings,
            "n": options.rounds,
            "rows": rows,
        }
        write_json(options.result, result)


if __name__ == "__main__":
    main()
