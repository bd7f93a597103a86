"""A trained network from a file of a run or of `scdd-apps prune`, with what the file says of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scdd.checkpoint import fill, read_safetensors
from scdd.config.section import Triple
from scdd.errors import CheckpointError, ConfigError
from scdd.models import recreate
from scdd_apps.prune.pruned_file import load_pruned

WANTED = "give a teacher.safetensors of a run or a network of scdd-apps prune"


@dataclass(frozen=True, eq=False)
class Network:
    """A network of `create_model`, perhaps pruned, and what it was trained on."""

    path: Path
    model: nn.Module
    """On the CPU, in eval mode; takes normalised images [B, 3, image_size, image_size]."""
    arch: str
    image_size: int
    """Pixels."""
    classes: tuple[str, ...]
    """Names of its outputs; none where it is a backbone, whose outputs are features."""
    mean: Triple
    std: Triple
    trained_on: str | None
    """Digest of the distilled file that it was trained on, if the file says so."""


def load_network(path: Path) -> Network:
    """Build the network that a file holds.

    Raises:
        CheckpointError: if the file is missing, damaged, or does not say all that is needed.
    """
    weights, found = read_safetensors(path, WANTED)
    about = found if isinstance(found, dict) else {}
    try:
        mean, std = (_triple(about[name]) for name in ("mean", "std"))
        outputs, classes = int(about["num_classes"]), tuple(map(str, about.get("classes", ())))
        if len(classes) != outputs:
            raise ValueError(f"{outputs} outputs, but {len(classes)} names of classes")
        model = _model(path, weights, about)
        size, arch = int(about["image_size"]), str(about["arch"])
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: does not say which network it is for ({_reason(error)}); {WANTED}"
        ) from error
    for name, values in model.state_dict().items():
        if not torch.isfinite(values).all():
            raise CheckpointError(f"{path}: '{name}' has values that are not finite; {WANTED}")
    return Network(path, model, arch, size, classes, mean, std, about.get("trained_on"))


def _model(path: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> nn.Module:
    if "pruning_history" in about:
        return load_pruned(path)
    return fill(recreate(about), weights, path).eval()


def _triple(values: Any) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
