"""A pruned network as a file: bit-equal in another process, and nothing else is taken for one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scdd.checkpoint import load_weights, save_weights
from scdd.errors import CheckpointError
from scdd.models import create_model
from scdd_apps import load_pruned
from scdd_apps.prune.plan import PRUNABLE
from scdd_apps.prune.pruned_file import save_pruned
from tests.apps.cuts import cut_by
from tests.conftest import child_environment

IMAGES = torch.linspace(-2, 2, 2 * 3 * 8 * 8).view(2, 3, 8, 8).sin()

CHILD = """
import sys, torch
from safetensors.torch import load_file, save_file
from scdd_apps import load_pruned
torch.set_num_threads(1)
images = load_file("images")["images"]
with torch.no_grad():
    save_file({path: load_pruned(path)(images) for path in sys.argv[1:]}, "logits")
"""


def pruned(arch: str, path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model(arch, 5, 8)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_var is not None
            torch.nn.init.uniform_(module.weight)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    history = cut_by(model, 8, 0.5)
    save_pruned(path, model, history, {"ratio": 0.5})
    return model.eval()


@pytest.mark.parametrize(
    "archs",
    [
        ("vgg11", "resnet8", "mobilenet_v3_large", "regnet_x_400mf", "squeezenet1_0", "vit_tiny"),
        pytest.param(tuple(PRUNABLE), marks=pytest.mark.slow),
    ],
    ids=["one of each kind", "all"],
)
def test_another_process_gets_the_same_networks_bit_for_bit(archs: tuple[str, ...], tmp_path: Path):
    models = {arch: pruned(arch, tmp_path / arch) for arch in archs}
    save_file({"images": IMAGES}, tmp_path / "images")
    subprocess.run(
        [sys.executable, "-c", CHILD, *models], cwd=tmp_path, env=child_environment(), check=True
    )
    logits = load_file(tmp_path / "logits")
    for arch, model in models.items():
        with torch.no_grad():
            assert torch.equal(logits[arch], model(IMAGES)), arch


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "teacher.safetensors"
    save_weights(path, {"weight": torch.zeros(2)}, {"arch": "resnet8"})
    with pytest.raises(CheckpointError, match="is not a pruned network"):
        load_pruned(path)


@pytest.mark.parametrize(
    "history",
    [
        [["features.99", True, [0]]],
        [["features.0", True, [10**6]]],
        [["features.0", True, ["a"]]],
        [["features.0", True, list(range(64))]],
        [["features.0", True, [3, 3]]],
        [["features.0", False, [0]]],
        [["features.3.__class__", True, [0]]],
        ["features.0"],
        [["features", True, [0]]],
        [["features.2", True, [0]]],
        5,
    ],
    ids=lambda history: str(history)[:40],
)
def test_a_history_that_does_not_fit_is_refused(history: object, tmp_path: Path):
    path = tmp_path / "pruned.safetensors"
    pruned("vgg11", path)
    weights, about = load_weights(path)
    save_weights(path, weights, {**about, "pruning_history": history})
    with pytest.raises(CheckpointError, match=str(path)):
        load_pruned(path)


def test_a_damaged_file_is_refused(tmp_path: Path):
    path = tmp_path / "pruned.safetensors"
    pruned("vgg11", path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_pruned(path)
