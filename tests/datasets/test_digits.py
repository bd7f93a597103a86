"""The embedded digits."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from sklearn.datasets import load_digits

from scdd.config.dataset import DatasetConfig
from scdd.datasets import load_dataset


def test_digits_are_the_embedded_images_scaled_to_bytes_in_three_equal_channels():
    dataset = load_dataset(DatasetConfig(name="digits", image_size=8))
    found = torch.cat([dataset.train.images, dataset.val.images])
    assert (found == found[:, :1]).all()
    expected = np.floor(load_digits().images * 255 / 16 + 0.5).astype(np.uint8)
    assert sorted(x.numpy().tobytes() for x in found[:, 0]) == sorted(x.tobytes() for x in expected)


def test_a_resized_digit_equals_torchvision():
    small = load_dataset(DatasetConfig(name="digits", image_size=8)).train
    large = load_dataset(DatasetConfig(name="digits", image_size=20)).train
    assert torch.equal(small.labels, large.labels)
    rows = torch.arange(50)
    expected = tv.resize(small.read(rows), [20, 20], antialias=True)
    assert (large.read(rows).int() - expected.int()).abs().max() <= 1


def test_a_fifth_of_every_digit_is_validation():
    dataset = load_dataset(DatasetConfig(name="digits"))
    assert dataset.classes == tuple("0123456789")
    train, val = dataset.train.labels.bincount(), dataset.val.labels.bincount()
    assert (train + val).tolist() == np.bincount(load_digits().target).tolist()
    assert ((val / (train + val) - 0.2).abs() < 0.01).all()


def test_labels_belong_to_their_digits():
    # A nearest neighbour among the training digits recognises the others, so labels fit images.
    dataset = load_dataset(DatasetConfig(name="digits", image_size=8))
    train, val = (s.images.flatten(1).double() for s in (dataset.train, dataset.val))
    nearest = torch.cdist(val, train).argmin(1)
    assert (dataset.train.labels[nearest] == dataset.val.labels).double().mean() > 0.95


def test_digits_are_the_same_every_time_and_on_every_seed():
    torch.manual_seed(1)
    first = load_dataset(DatasetConfig(name="digits"))
    torch.manual_seed(2)
    second = load_dataset(DatasetConfig(name="digits"))
    assert first.digest == second.digest
    assert torch.equal(first.val.images, second.val.images)


def test_holdout_of_digits_comes_out_of_train_alone():
    plain = load_dataset(DatasetConfig(name="digits"))
    held = load_dataset(DatasetConfig(name="digits", holdout=0.25))
    assert len(held.train) + len(held.val) == len(plain.train)
    known = {x.numpy().tobytes() for x in plain.train.images}
    assert {x.numpy().tobytes() for x in held.val.images} <= known


@pytest.mark.parametrize("changed", [{"image_size": 32}, {"holdout": 0.1}, {"train_per_class": 3}])
def test_the_digest_follows_the_settings_that_change_what_is_seen(changed):
    plain = load_dataset(DatasetConfig(name="digits")).digest
    assert len(plain) == 64
    assert load_dataset(DatasetConfig(name="digits", **changed)).digest != plain
