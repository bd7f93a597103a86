"""scdd: distil a labelled image dataset into a small synthetic one, and put it to work."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scdd.distilled import DistilledDataset, RepresentationDataset
    from scdd.pipeline import distill

__all__ = ["DistilledDataset", "RepresentationDataset", "__version__", "distill", "load"]


def load(path: str, device: str = "cpu", teacher: str | None = None) -> "DistilledDataset":
    """Open a distilled file; `teacher` as in `DistilledDataset.open`."""
    from scdd.distilled import DistilledDataset

    return DistilledDataset.open(path, device, teacher)


def __getattr__(name: str) -> Any:
    # Lazy, so that `import scdd` and the command line's help need no torch.
    if name == "distill":
        from scdd.pipeline import distill

        return distill
    if name == "DistilledDataset":
        from scdd.distilled import DistilledDataset

        return DistilledDataset
    if name == "RepresentationDataset":
        from scdd.distilled import RepresentationDataset

        return RepresentationDataset
    raise AttributeError(f"module 'scdd' has no attribute '{name}'")
