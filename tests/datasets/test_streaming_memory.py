"""What a streamed set costs in memory: nothing but its index, however many images there are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import child_environment

CLASSES, BYTES_AN_IMAGE = 1000, 200

MEASURE = """
import os
import sys
import torch
from scdd.augment import draw_views
from scdd.config.dataset import DatasetConfig
from scdd.config.views import ViewConfig
from scdd.datasets import load_dataset
from scdd.datasets.sources import Request
from scdd.run import PeakMemory

torch.set_num_threads(1)

def work(root):
    cfg = {"name": "image_folder", "root": root, "image_size": 32, "storage": "streaming"}
    data = load_dataset(DatasetConfig.model_validate(cfg | {"workers": 0}))
    draw = torch.Generator().manual_seed(0)
    def requests():
        for rows in torch.randint(len(data.train), (5, 32), generator=draw):
            views = draw_views((ViewConfig(count=2),), 32, 32, draw)
            yield Request(rows, tuple(view.crop for view in views))
    for _ in data.train.crops(requests()):
        pass
    for rows in torch.arange(500).split(100):
        data.train.read(rows)
    return len(data.train)

warm_up, *roots = sys.argv[1:]
work(warm_up)  # What decoding takes, whatever there is to decode.
for root in roots:
    if os.fork() == 0:
        memory = PeakMemory()
        before = memory.read()
        print(work(root), memory.read() - before, flush=True)
        os._exit(0)
    os.wait()
"""
STEADY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""Otherwise malloc of glibc keeps some freed megabytes, now more, now fewer."""


def tree(root: Path, per_class: int) -> Path:
    """Write 1,000 classes of links to six images of mixed sizes."""
    rng = np.random.default_rng(0)
    shapes = ((40, 60), (90, 64), (33, 33), (120, 50), (20, 200), (64, 64))
    root.mkdir()
    images = [root / f"{number}.jpg" for number in range(len(shapes))]
    for path, (height, width) in zip(images, shapes, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    for split, count in (("train", per_class), ("val", 1)):
        for label in range(CLASSES):
            folder = root / split / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(count):
                name = folder / f"n{label:08}_{number:05}.JPEG"
                os.link(images[(label + number) % len(images)], name)
    return root


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks from /proc")
def test_peak_memory_grows_by_less_than_200_bytes_an_image(tmp_path: Path):
    trees = [tree(tmp_path / str(per_class), per_class) for per_class in (1, 2, 20)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, trees)],
        env=child_environment() | STEADY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    few, few_peak, many, many_peak = map(int, done.stdout.split())
    assert (few, many) == (2 * CLASSES, 20 * CLASSES)
    assert many_peak - few_peak < BYTES_AN_IMAGE * (many - few), done.stdout
