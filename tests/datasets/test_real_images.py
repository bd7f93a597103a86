"""A few real photographs through the image-folder reader."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

from scdd.config.dataset import DatasetConfig
from scdd.datasets import load_dataset

PER_CLASS = 3


@pytest.fixture
def photographs(real_data_dir: Path, tmp_path: Path) -> Path:
    """Return an image folder with the first images of each class of a real pack."""
    pack = real_data_dir / "cifar10.tar.gz"
    if not pack.is_file():
        pytest.skip(f"no real data: {pack} does not exist")
    taken: dict[str, int] = {}
    with tarfile.open(pack) as opened:
        for member in opened:
            folder = str(Path(member.name).parent)
            if member.isfile() and taken.setdefault(folder, 0) < PER_CLASS:
                taken[folder] += 1
                opened.extract(member, tmp_path, filter="data")
    return tmp_path / "cifar10"


def test_real_photographs_are_read_as_torchvision_reads_them(photographs):
    cfg = DatasetConfig(name="image_folder", root=str(photographs), image_size=32)
    dataset = load_dataset(cfg)
    for source, split in ((dataset.train, "train"), (dataset.val, "val")):
        reference = ImageFolder(photographs / split)
        assert source.classes == tuple(reference.classes) and len(source.classes) == 10
        assert source.labels.tolist() == reference.targets
        expected = np.stack([np.asarray(image) for image, _ in reference]).transpose(0, 3, 1, 2)
        assert np.array_equal(source.read(torch.arange(len(source))).numpy(), expected)
    assert all(0.3 < mean < 0.7 for mean in dataset.mean)
