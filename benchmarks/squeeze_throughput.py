"""Measure how many images a second squeeze trains on, views included, at several image sizes.

    python benchmarks/squeeze_throughput.py [--arch resnet18] [--sizes 32 64 224] [--batch 512]
        [--steps 50] [--device auto] [--compile] [--result FILE]

The loop is the real one (MoCo v2, symmetric, bf16 on CUDA) on random images; the first steps, in
which a GPU chooses its kernels, are not counted.
"""

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from record import commit  # noqa: E402

from scdd.checkpoint import NO_CHECKPOINT  # noqa: E402
from scdd.config.objectives import MocoV2Config  # noqa: E402
from scdd.config.squeeze import SqueezeConfig  # noqa: E402
from scdd.datasets.sources import ResidentSource  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.run import environment  # noqa: E402
from scdd.stages.squeeze import squeeze  # noqa: E402
from scdd.tables import table  # noqa: E402

SCHEMA = "scdd squeeze throughput 1"
WARM_UP, MEASURED = 1, 3
"""Epochs."""


def main() -> None:
    """Measure each size, then print and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    cfg = SqueezeConfig(
        arch=options.arch,
        objective=MocoV2Config(queue=2 * options.batch),
        epochs=WARM_UP + MEASURED,
        batch=options.batch,
        compile=options.compile,
        knn_every=0,
        collapse_below=0.0,
    )
    rows = [measure(cfg, size, options.steps, device) for size in options.sizes]
    cells = [[str(row["image_size"]), f"{row['images_per_second'][0]:.0f}"] for row in rows]
    print(table(["image size", "images/s, best of the epochs"], cells))
    if options.result:
        about = environment(str(device), torch.get_num_threads()) | {"command": ""}
        if device.type == "cuda":
            about["gpu"] = torch.cuda.get_device_name(device)
        result = {
            "schema": SCHEMA,
            "commit": commit(),
            "environment": about,
            "n": MEASURED,
            "config": cfg.model_dump(mode="json"),
            "rows": rows,
        }
        write_json(options.result, result)


def measure(cfg: SqueezeConfig, size: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Images a second of each epoch after the first, the fastest first."""
    images = torch.randint(0, 256, (steps * cfg.batch, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(len(images)) % 10
    classes = tuple(map(str, range(10)))
    source = ResidentSource(images.to(device), labels, classes, (0.5,) * 3, (0.25,) * 3)
    ends: list[float] = []
    # Each epoch's end waits for the device: the log holds the loss.
    squeeze(
        cfg,
        source,
        source,
        size,
        0,
        device,
        NO_CHECKPOINT,
        lambda stage, **line: ends.append(time.monotonic()),
    )
    seconds = [after - before for before, after in pairwise(ends)]
    rates = sorted((len(images) / epoch for epoch in seconds[WARM_UP - 1 :]), reverse=True)
    return {"image_size": size, "images_per_second": rates}


if __name__ == "__main__":
    main()
