"""Network files as a run writes them, with weights and BatchNorm statistics drawn at random."""

from pathlib import Path

import torch
from torch import nn

from scdd.checkpoint import save_weights
from scdd.models import create_model
from scdd_apps.prune.channels import select
from scdd_apps.prune.criteria import scale_size
from scdd_apps.prune.pruned_file import save_pruned
from scdd_apps.prune.surgery import coupled_channels, remove_channels
from tests.apps.conftest import CLASSES, MEAN, STD


def random_network(arch: str, classes: int, size: int) -> nn.Module:
    """A network in eval mode whose BatchNorm layers do something, as after training."""
    torch.manual_seed(0)
    model = create_model(arch, classes, size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def save_network(
    path: Path, arch: str = "resnet8", size: int = 8, classes: tuple[str, ...] = CLASSES
) -> nn.Module:
    """Write a teacher, or a backbone where there are no classes; return it."""
    model = random_network(arch, len(classes), size)
    about = {
        **{name: getattr(model, name) for name in ("arch", "image_size", "num_classes", "stem")},
        "stem_spec": None,
        "mean": MEAN,
        "std": STD,
    }
    if classes:
        about["classes"] = classes
    save_weights(path, model.state_dict(), about)
    return model


def save_pruned_network(path: Path, arch: str = "vgg11", size: int = 8) -> nn.Module:
    """Write what `scdd-apps prune` would; return it."""
    model = random_network(arch, len(CLASSES), size)
    layers = coupled_channels(model, size)
    half = sum(layer.width for layer in layers) // 2
    floors = {layer.root: 1 for layer in layers}
    history = remove_channels(model, size, select(layers, half, scale_size, floors))
    about = {"classes": CLASSES, "mean": MEAN, "std": STD, "trained_on": "a1b2"}
    save_pruned(path, model, history, about)
    return model.eval()
