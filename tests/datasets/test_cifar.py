"""CIFAR from files in the layout of its python release, written here with random pixels."""

import hashlib
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.datasets import CIFAR10, CIFAR100

from scdd.config.dataset import DatasetConfig
from scdd.datasets import load_dataset
from scdd.errors import DataError

CLASSES = ["plane", "car", "bird"]


def write(path: Path, contents: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(contents))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(kind: type[CIFAR10], root: Path, monkeypatch) -> dict[str, np.ndarray]:
    """Write a release of 6 images a file and let torchvision expect its checksums."""
    rng, rows = np.random.default_rng(0), {}
    key, names_key = ("labels", "label_names")
    if kind is CIFAR100:
        key, names_key = ("fine_labels", "fine_label_names")
    for attribute in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(kind, attribute):
            rows[name] = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
            contents = {"data": rows[name], key: [0, 1, 2, 0, 1, 2]}
            sums.append([name, write(root / kind.base_folder / name, contents)])
        monkeypatch.setattr(kind, attribute, sums)
    meta_file = root / kind.base_folder / kind.meta["filename"]
    meta = dict(kind.meta, md5=write(meta_file, {names_key: CLASSES}))
    monkeypatch.setattr(kind, "meta", meta)
    return rows


def load(root: Path, name: str = "cifar10", size: int = 32, **changed):
    return load_dataset(DatasetConfig(name=name, root=str(root), image_size=size, **changed))


@pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_the_bytes_of_the_release_are_the_images(tmp_path, monkeypatch, name, kind):
    rows = write_cifar(kind, tmp_path, monkeypatch)
    dataset = load(tmp_path, name)
    assert dataset.classes == tuple(CLASSES)
    for source, listed in ((dataset.train, kind.train_list), (dataset.val, kind.test_list)):
        # The release keeps 1024 red, then 1024 green, then 1024 blue bytes, row by row.
        expected = np.concatenate([rows[name] for name, _ in listed]).reshape(-1, 3, 32, 32)
        assert np.array_equal(source.images.numpy(), expected)
        assert source.labels.tolist() == [0, 1, 2, 0, 1, 2] * len(listed)


def test_another_size_is_an_antialiased_resize_and_is_cached(tmp_path, monkeypatch, cache):
    write_cifar(CIFAR10, tmp_path / "data", monkeypatch)
    whole = load(tmp_path / "data")
    assert not cache.exists()
    small = load(tmp_path / "data", size=12)
    assert len(list(cache.rglob("*.safetensors"))) == 2
    for one, other in ((whole.train, small.train), (whole.val, small.val)):
        expected = tv.resize(one.images, [12, 12], antialias=True)
        assert (other.images.int() - expected.int()).abs().max() <= 1
    assert torch.equal(load(tmp_path / "data", size=12).train.images, small.train.images)


def test_holdout_and_limits_work_on_cifar_too(tmp_path, monkeypatch):
    write_cifar(CIFAR10, tmp_path, monkeypatch)
    dataset = load(tmp_path, holdout=0.2, train_per_class=5)
    assert dataset.train.labels.bincount().tolist() == [5, 5, 5]
    assert dataset.val.labels.bincount().tolist() == [2, 2, 2]


def refused(root: Path, *words: str, **changed) -> None:
    with pytest.raises(DataError) as caught:
        load(root, **changed)
    assert "\n" not in str(caught.value)
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)


def test_missing_files_are_refused_with_the_folder_and_the_way_out(tmp_path):
    words = ("cifar-10-batches-py does not exist", "dataset.download=true")
    refused(tmp_path, *words)
    refused(tmp_path / "nowhere", *words)
    with pytest.raises(DataError, match="cifar10 needs a folder with cifar-10-batches-py/"):
        load_dataset(DatasetConfig(name="cifar10", image_size=32))


def test_a_release_with_a_file_missing_names_it(tmp_path, monkeypatch):
    write_cifar(CIFAR10, tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    refused(tmp_path, "lacks data_batch_3;", "dataset.download=true")


def test_a_release_with_a_changed_byte_is_refused(tmp_path, monkeypatch):
    write_cifar(CIFAR10, tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes() + b"x")
    refused(tmp_path, "wrong checksum")


def test_a_download_that_fails_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", (tmp_path / "gone.tar.gz").as_uri())
    refused(tmp_path / "data", "could not be downloaded", "by hand", download=True)


def test_a_release_still_in_its_archive_is_unpacked_by_download(tmp_path, monkeypatch):
    rows = write_cifar(CIFAR10, tmp_path / "made", monkeypatch)
    archive = tmp_path / "data" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "made" / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    dataset = load(tmp_path / "data", download=True)
    assert np.array_equal(dataset.val.images.flatten(1).numpy(), rows["test_batch"])
