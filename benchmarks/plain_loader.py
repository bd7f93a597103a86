"""Stored views by h5py and torchvision, sample by sample: what loader_throughput compares with."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from scdd.distilled import DistilledDataset

PlainSample = tuple[Tensor, Tensor, int]
"""Image float32 [3, S, S], logits float32 [C], class."""


class PlainDataset(Dataset[PlainSample]):
    """One view of the images in a file of `write_plain`.

    Each worker opens the file once. Images are cropped as uint8, which torchvision does faster than
    as float32.

    Args:
        path: the file.
        data: what it was written from.
        view: which view.
        at_hand: keep h5py's datasets instead of looking them up by name for every sample, which
            takes h5py several times as long as reading a row.
    """

    def __init__(self, path: Path, data: DistilledDataset, view: int, at_hand: bool) -> None:
        self.path, self.view, self.at_hand, self.length = path, view, at_hand, len(data)
        self.mean, self.std, self.size = list(data.mean), list(data.std), data.image_size
        self.parts: Mapping[str, h5py.Dataset] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> PlainSample:
        if self.parts is None:
            file = h5py.File(self.path, "r")
            self.parts = dict(file) if self.at_hand else file
        parts, view = self.parts, self.view
        image = self.cropped(parts, index)
        if "partner" in parts:
            other = self.cropped(parts, int(parts["partner"][view, index]))
            top, left, height, width = parts["box"][view, index].tolist()
            box = np.s_[:, top : top + height, left : left + width]
            image[box] = other[box]
        image = F.normalize(F.to_dtype(image, torch.float32, scale=True), self.mean, self.std)
        logits = torch.from_numpy(parts["logits"][view, index]).float()
        return image, logits, int(parts["labels"][index])

    def cropped(self, parts: Mapping[str, h5py.Dataset], index: int) -> Tensor:
        """An image as its view shows it before mixing, uint8 [3, S, S]."""
        image = torch.from_numpy(parts["images"][index])
        box = parts["crop"][self.view, index].tolist()
        image = F.resized_crop(image, *box, [self.size, self.size], antialias=True)
        return F.horizontal_flip(image) if parts["flip"][self.view, index] else image


def write_plain(path: Path, data: DistilledDataset) -> None:
    """Write images, views and float16 labels as h5py does when it is asked for nothing else."""
    assert data.records is not None
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = data.images.numpy(), data.labels.numpy()
        for name, values in data.records.parameters.items():
            file[name] = values.numpy()
        shape = (data.num_views, len(data), len(data.classes))
        logits = file.create_dataset("logits", shape, "float16")
        for view in range(data.num_views):
            logits[view] = data.soft_labels(view).numpy()
