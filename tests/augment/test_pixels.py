"""Normalisation against torchvision's, and back."""

import torch
import torchvision.transforms.v2.functional as TF

from scdd.augment import denormalise, normalise
from tests.augment.conftest import noise


def test_normalising_is_torchvisions_and_can_be_undone():
    images, mean, std = noise(2, 3, 5, 6), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    before = images.clone()
    normal = normalise(images, mean, std)
    torch.testing.assert_close(normal, TF.normalize(images, list(mean), list(std)))
    torch.testing.assert_close(denormalise(normal, mean, std), images)
    assert torch.equal(images, before)
