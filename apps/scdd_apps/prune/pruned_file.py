"""A pruned network as a file: safetensors, and as JSON the cuts that lead to its shape."""

from pathlib import Path
from typing import Any

from torch import nn

from scdd.checkpoint import fill, load_weights, save_weights
from scdd.errors import CheckpointError, ConfigError
from scdd.models import recreate
from scdd_apps.prune.surgery import History, replay

FACTS = ("arch", "num_classes", "image_size", "stem_spec")


def save_pruned(path: Path, model: nn.Module, history: History, about: dict[str, Any]) -> None:
    """Write a network that `create_model` built and `remove_channels` cut; no code is stored."""
    facts = {name: getattr(model, name) for name in FACTS}
    save_weights(path, model.state_dict(), {**about, **facts, "pruning_history": history})


def load_pruned(path: str | Path) -> nn.Module:
    """Build a network from what `scdd-apps prune` wrote; on the CPU, in eval mode.

    Raises:
        CheckpointError: if the file is missing, damaged or of another kind.
    """
    return load_cut(Path(path))[0].eval()


def load_cut(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """As `load_pruned`, with what was written beside the weights.

    Raises:
        CheckpointError: as `load_pruned` does.
    """
    weights, about = load_weights(path)
    if "pruning_history" not in about:
        raise CheckpointError(f"{path}: is not a pruned network; give a file of scdd-apps prune")
    try:
        model = recreate(about)
        replay(model, about["image_size"], about["pruning_history"])
    except (
        ArithmeticError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        RuntimeError,
        ConfigError,
    ) as error:
        raise CheckpointError(
            f"{path}: its pruning history does not fit its architecture ({error}); prune again"
        ) from error
    return fill(model, weights, path), about
