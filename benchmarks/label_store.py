"""A file of random images and soft labels of any size, and what reading a large one costs.

    python benchmarks/label_store.py FILE [--batch 64] [--threads 2]

prints a JSON of memory, times of random batches, and speeds of reading labels in sequence. It is
meant for a process of its own, whose peak of memory is that of reading alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scdd.config.relabel import RelabelConfig  # noqa: E402
from scdd.distilled import (  # noqa: E402
    Arrays,
    DistilledDataset,
    DistilledFile,
    Header,
    ViewRecords,
    make_codec,
    sample_views,
    write_distilled,
)
from scdd.run import PeakMemory  # noqa: E402
from scdd.seeding import generator  # noqa: E402

RANDOM_BATCHES, WARM_UP = 300, 20
READ_ROWS = 1000
"""Labels that are read at a time in sequence."""


def write_store(
    path: Path, cfg: RelabelConfig, images: int, classes: int, views: int, size: int
) -> None:
    """Write a file of random images, views and float16 logits, a view at a time."""
    header = Header(
        target_kind="logits",
        target_dim=classes,
        method="random",
        recipe="custom",
        dataset="random",
        class_names=tuple(f"class {number}" for number in range(classes)),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        image_size=size,
        ipc=images // classes,
        seed=0,
    )
    codec, count = make_codec("full", classes), header.count

    def blocks() -> Iterator[tuple[ViewRecords, Arrays]]:
        for view in range(views):
            logits = torch.randn(1, count, classes, generator=generator(0, "logits", view))
            yield sample_views(cfg, count, size, 0, view, view + 1), codec.encode(logits)

    draw = generator(0, "images")
    pixels = torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    write_distilled(path, header, pixels, labels, blocks(), views, codec)


def measure_store(path: Path, batch: int, threads: int) -> dict[str, Any]:
    """Read a file in a new process and return what it found."""
    command = [
        sys.executable,
        __file__,
        str(path),
        "--batch",
        str(batch),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a file in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    peak = PeakMemory()
    imported, start = peak.read(), time.perf_counter()
    data = DistilledDataset.open(options.path)
    opened = time.perf_counter() - start
    result = {
        "open_seconds": opened,
        "random": random_batches(data, options.batch),
        "iterator": iterator_batches(data, options.batch),
        "cold": in_sequence(options.path, cold=True),
        "warm": in_sequence(options.path, cold=False),
        "peak_bytes": peak.read(),
        "imported_bytes": imported,
    }
    print(json.dumps(result))


def random_batches(data: DistilledDataset, batch: int) -> dict[str, float]:
    """Milliseconds of collated batches of any images, each of another view."""
    draw, seconds = generator(0, "random batches"), []
    for _ in range(WARM_UP + RANDOM_BATCHES):
        rows = torch.randperm(len(data), generator=draw)[:batch].tolist()
        start = time.perf_counter()
        data.set_epoch(int(torch.randint(data.num_views, (), generator=draw)))
        default_collate(data.__getitems__(rows))
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def iterator_batches(data: DistilledDataset, batch: int) -> dict[str, float]:
    """Milliseconds of the batches of an epoch."""
    seconds = []
    batches = data.epoch(0, batch, generator(0, "iterator batches"))
    for _ in range(min(WARM_UP + RANDOM_BATCHES, data.steps(batch))):
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 95 % quantile in milliseconds, the first ones left out."""
    warm = sorted(1000 * value for value in seconds[WARM_UP:] or seconds)
    return {"median_ms": statistics.median(warm), "p95_ms": warm[int(0.95 * (len(warm) - 1))]}


def in_sequence(path: Path, cold: bool) -> dict[str, float]:
    """MB/s of the stored labels of a view, and of as many bytes of the file by plain reads in turn.

    `cold`: the system has been asked to forget them; else they have been read just before.
    """
    ours, plain = [], []
    with DistilledFile(path, contents=False) as file, path.open("rb", buffering=0) as raw:
        assert file.codec is not None
        size = file.codec.bytes_a_label * file.header.count
        block = bytearray(READ_ROWS * file.codec.bytes_a_label)

        def read_labels(view: int) -> None:
            for row in range(0, file.header.count, READ_ROWS):
                file.encoded(view, slice(row, row + READ_ROWS))

        def read_plainly(view: int) -> None:
            raw.seek((path.stat().st_size - size) * view // file.num_views)
            left = size
            while left > 0:
                left -= raw.readinto(memoryview(block)[:left])

        for view in range(file.num_views):
            for read, speeds in ((read_labels, ours), (read_plainly, plain)):
                if cold:
                    os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    read(view)
                start = time.perf_counter()
                read(view)
                speeds.append(size / (time.perf_counter() - start) / 1e6)
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    return {
        "ours_mb_s": statistics.median(ours),
        "plain_mb_s": statistics.median(plain),
        "ratio": statistics.median(ratios),
    }


if __name__ == "__main__":
    main()
