"""What labels cost in memory: a view and the images, however many views there are."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import child_environment

CLASSES, IPC, VIEWS = 1000, 50, 3
LARGEST = 1.5e9
"""Bytes, of which torch itself takes a good part; the labels of a view are 100 MB as float16."""

PREPARE = """
import sys
from pathlib import Path
import torch
from torch import nn
from scdd.checkpoint import save_weights
from scdd.distilled import Header, write_distilled
from scdd.models import create_model
from scdd.models.registry import ARCHITECTURES, Architecture

classes, ipc, views, run = *map(int, sys.argv[1:4]), Path(sys.argv[4])
ARCHITECTURES["one_layer"] = Architecture(
    lambda outputs, size: (nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, outputs)), ()), "1"
)
statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
names = tuple(f"class {number}" for number in range(classes))
"""

MAKE = """
net = create_model("one_layer", classes, 32)
about = {"arch": "one_layer", "image_size": 32, "num_classes": classes, "stem": "stock",
         "stem_spec": None, "objective": "supervised", "epoch": 1, "val_top1": 1.0,
         "classes": names} | statistics
save_weights(run / "probe" / "teacher.safetensors", net.state_dict(), about)
header = Header(target_kind="none", method="scdd", recipe="custom", dataset="made up",
                class_names=names, image_size=32, ipc=ipc, seed=0, **statistics)
rows = classes * ipc
images = torch.randint(256, (rows, 3, 32, 32), dtype=torch.uint8)
(run / "recover").mkdir()
write_distilled(run / "recover" / "images.h5", header, images, torch.arange(rows) % classes)
"""

MEASURE = """
from scdd.config.load import load_config
from scdd.run import PeakMemory, RunDirectory
from scdd.steps import Context, run_relabel

torch.set_num_threads(1)
settings = [f"ipc={ipc}", f"relabel.views={views}", "relabel.mix=cutmix"]
memory = PeakMemory()
context = Context(load_config("digits", settings), RunDirectory(run), torch.device("cpu"), ())
run_relabel(context, "relabel")
print(memory.read())
"""


def python(script: str, run: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + script, str(CLASSES), str(IPC), str(VIEWS), str(run)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks from /proc")
def test_fifty_thousand_images_of_a_thousand_classes_are_labelled_in_bounded_memory(tmp_path: Path):
    python(MAKE, tmp_path)
    peak = float(python(MEASURE, tmp_path).splitlines()[-1])
    assert peak < LARGEST, f"{peak / 1e9:.2f} GB"
    stored = (tmp_path / "relabel" / "distilled.h5").stat().st_size
    assert stored > VIEWS * CLASSES * IPC * CLASSES * 2
