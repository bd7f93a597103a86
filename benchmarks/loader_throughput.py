"""Measure how fast samples of a distilled file come, and what that is worth to a training.

    python benchmarks/loader_throughput.py [--archs resnet8] [--images 5000] [--classes 100]
        [--size 32] [--views 20] [--batch 128] [--threads 2] [--workers 2] [--rounds 7]
        [--seconds 3] [--commit C] [--result FILE]
    python benchmarks/loader_throughput.py --scale [--images 50000] [--classes 1000] [--views 30]
        [--folder DIR] [--result FILE]

The file is written on the spot, with random images and labels. Five ways to read it take turns in
one process: the iterator `epoch`, DistilledDataset in a DataLoader without and with workers, and
h5py with torchvision, sample by sample in workers, as one writes it down and with h5py's datasets
kept at hand. Nothing else should run all the same. With `--scale` a large store is read instead:
memory, random batches, and labels in sequence beside a plain file.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Threads that spin while they wait would take the cores from the workers.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from label_store import measure_store, write_store  # noqa: E402
from plain_loader import PlainDataset, write_plain  # noqa: E402
from record import commit, without_folder  # noqa: E402
from tables import TABLES  # noqa: E402

from scdd.config.relabel import RelabelConfig  # noqa: E402
from scdd.distilled import DistilledDataset  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.models import create_model  # noqa: E402
from scdd.progress import say  # noqa: E402
from scdd.run import environment  # noqa: E402
from scdd.seeding import generator, seeded  # noqa: E402

SCHEMA, SCALE_SCHEMA = "scdd loader throughput 1", "scdd label store 1"
VIEWS = {
    "crop, flip": RelabelConfig(),
    "crop, flip, cutmix": RelabelConfig(mix="cutmix"),
}
TRAINED_VIEWS = "crop, flip, cutmix"
ITERATOR, PLAIN, AT_HAND = "iterator", "plain", "plain, at hand"
Pair = tuple[Tensor, Tensor]
"""Images float32 [B, 3, S, S] and logits float32 [B, C]."""
Way = Callable[[int], Iterator[Pair]]
"""The batches of an epoch."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the result if a file is named."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    about = environment("cpu", options.threads)
    about["command"] = shlex.join(map(without_folder, sys.argv))
    result: dict[str, Any] = {
        "schema": SCALE_SCHEMA if options.scale else SCHEMA,
        "commit": options.commit or commit(),
        "environment": about,
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measured = measure_scale if options.scale else measure
        result |= measured(Path(folder), options)
    print(TABLES[result["schema"]](result))
    if options.result:
        write_json(options.result, result)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--archs", nargs="*", default=["resnet8"])
    parser.add_argument("--images", type=int, help="default: 5,000; with --scale 50,000")
    parser.add_argument("--classes", type=int, help="default: 100; with --scale 1,000")
    parser.add_argument("--views", type=int, help="default: 20; with --scale 30")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, help="default: 128; with --scale 64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3, help="of each way in each round")
    parser.add_argument("--folder", help="where the files lie meanwhile; default: the system's")
    parser.add_argument("--commit", help="for a copy of the files without their git repository")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args(arguments)
    usual = (50_000, 1000, 30, 64) if options.scale else (5000, 100, 20, 128)
    for name, value in zip(("images", "classes", "views", "batch"), usual, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rows of the result: samples a second by kind of views, then of trainings by net."""
    rows, trainings = [], []
    for name, cfg in VIEWS.items():
        data, ways = open_ways(folder / f"{len(rows)}", cfg, options)
        say(f"{name}: {len(data)} images")
        rows.append({"views": name, "ways": take_turns(ways, options)})
        if name == TRAINED_VIEWS:
            for arch in options.archs:
                say(f"training {arch}")
                trained = {
                    kind: partial(train, arch, data, ways[kind])
                    for kind in (ITERATOR, PLAIN, AT_HAND)
                }
                trainings.append({"arch": arch, "ways": take_turns(trained, options)})
    names = ("images", "classes", "views", "size", "batch", "workers", "seconds")
    config = {name: getattr(options, name) for name in names}
    return {"n": options.rounds, "config": config, "rows": rows, "trainings": trainings}


def open_ways(
    folder: Path, cfg: RelabelConfig, options: argparse.Namespace
) -> tuple[DistilledDataset, dict[str, Way]]:
    """Write a file, and return it with the ways to read it."""
    folder.mkdir()
    ours, plain = folder / "distilled.h5", folder / "plain.h5"
    write_store(ours, cfg, options.images, options.classes, options.views, options.size)
    data = DistilledDataset.open(ours)
    write_plain(plain, data)
    check(data, PlainDataset(plain, data, 0, at_hand=True))

    def loader(dataset: Any, workers: int) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            options.batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def iterator(epoch: int) -> Iterator[Pair]:
        for batch in data.epoch(epoch, options.batch, generator(0, "order", epoch)):
            assert batch.logits is not None
            yield batch.images, batch.logits

    def from_dataset(batches: DataLoader[Any], epoch: int) -> Iterator[Pair]:
        data.set_epoch(epoch)
        for batch in batches:
            yield batch.images, batch.logits

    def from_plain(batches: DataLoader[Any], epoch: int) -> Iterator[Pair]:
        for images, logits, _ in batches:
            yield images, logits

    return data, {
        ITERATOR: iterator,
        "DataLoader": partial(from_dataset, loader(data, 0)),
        f"DataLoader, {options.workers} workers": partial(
            from_dataset, loader(data, options.workers)
        ),
        PLAIN: partial(from_plain, loader(PlainDataset(plain, data, 0, False), options.workers)),
        AT_HAND: partial(from_plain, loader(PlainDataset(plain, data, 0, True), options.workers)),
    }


def check(data: DistilledDataset, plain: PlainDataset) -> None:
    """Compare some samples.

    Raises:
        SystemExit: if both are not the same but for torchvision's rounding to whole levels.
    """
    level = 1 / 255 / min(data.std)
    for row in range(0, len(data), max(1, len(data) // 20)):
        ours, (image, logits, label) = data[row], plain[row]
        if (
            (ours.images - image).abs().max() > 1.01 * level
            or not torch.equal(ours.logits, logits)
            or ours.labels != label
        ):
            raise SystemExit(f"sample {row} is not the same in both files")


def take_turns(ways: dict[str, Way], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Samples a second of each way in each round, and ratios to the plain way of that round."""
    # In training, larger tensors than views are freed, and glibc then keeps freed memory; here it
    # would give it back at every step.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    found: dict[str, dict[str, Any]] = {name: {"samples_per_second": []} for name in ways}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            rate = samples_per_second(way, options.seconds if number else 0)
            if number > 0:  # The first round starts the workers and warms the caches.
                found[name]["samples_per_second"].append(rate)
    for row in found.values():
        rates = row["samples_per_second"]
        pairs = zip(rates, found[PLAIN]["samples_per_second"], strict=True)
        row["median"] = statistics.median(rates)
        row["ratio"] = statistics.median(one / other for one, other in pairs)
    return found


def samples_per_second(way: Way, seconds: float) -> float:
    """Go through whole epochs, at least one, for about so long."""
    start, count = time.perf_counter(), 0
    for epoch in range(10**9):
        for images, logits in way(epoch):
            assert len(images) == len(logits)
            count += len(images)
        passed = time.perf_counter() - start
        if passed >= seconds:
            break
    return count / passed


def train(arch: str, data: DistilledDataset, way: Way, epoch: int) -> Iterator[Pair]:
    """An epoch of a student that matches the labels, in float32."""
    with seeded(0, "student"):
        student = create_model(arch, len(data.classes), data.image_size).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    for images, logits in way(epoch):
        ours = F.log_softmax(student(images), dim=1)
        loss = F.kl_div(ours, F.log_softmax(logits, dim=1), reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield images, logits


def measure_scale(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What reading a large store costs, in a process of its own."""
    path = folder / "distilled.h5"
    say(f"writing {options.images} images x {options.views} views x {options.classes} classes")
    start = time.perf_counter()
    write_store(path, VIEWS[TRAINED_VIEWS], options.images, options.classes, options.views, 32)
    written = time.perf_counter() - start
    names = ("images", "classes", "views", "batch", "threads")
    return {
        "config": {name: getattr(options, name) for name in names},
        "n": 1,
        "bytes": path.stat().st_size,
        "write_seconds": written,
        **measure_store(path, options.batch, options.threads),
    }


if __name__ == "__main__":
    main()
