"""scdd_apps: what people do with a distilled file when the real images are out of reach."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdd_apps.prune.pruned_file import load_pruned

__all__ = ["load_pruned"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line's help needs no torch.
    if name == "load_pruned":
        from scdd_apps.prune.pruned_file import load_pruned

        return load_pruned
    raise AttributeError(f"module 'scdd_apps' has no attribute '{name}'")
