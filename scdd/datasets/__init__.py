"""Real images: one file per dataset, all of them served as an `ImageSource`."""

from scdd.datasets.load import Dataset, check_dataset, load_dataset, load_split
from scdd.datasets.sources import ImageSource, ResidentSource
from scdd.datasets.streaming import StreamingSource

__all__ = [
    "Dataset",
    "ImageSource",
    "ResidentSource",
    "StreamingSource",
    "check_dataset",
    "load_dataset",
    "load_split",
]
