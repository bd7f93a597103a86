"""What a configuration asks for: the normalisation that the weights were trained with."""

from typing import Any

import pytest
import torch
import torchvision

from scdd.config.checkpoint import CheckpointConfig
from scdd.config.known_checkpoints import IMAGENET_MEAN, IMAGENET_STD, SWAV_STD
from scdd.errors import ConfigError
from scdd.foreign import squeezed_from
from scdd.models import create_model
from tests.foreign import layouts
from tests.foreign.conftest import own, same, state_of
from tests.foreign.layouts import write


def squeezed(cfg: dict[str, Any], mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD) -> Any:
    return squeezed_from(CheckpointConfig(**cfg), "resnet18", 32, mean, std)


def test_mean_and_std_have_to_be_set(net, tmp_path):
    path = str(write(tmp_path / "file", layouts.dino(*state_of(net))))
    assert same(squeezed({"path": path}), net)
    for mean, std in ((None, IMAGENET_STD), (IMAGENET_MEAN, None)):
        with pytest.raises(ConfigError, match=r"set dataset\.mean and dataset\.std to those"):
            squeezed({"path": path}, mean, std)


def test_a_known_checkpoint_brings_its_normalisation_and_architecture(tmp_path):
    with torch.device("meta"):
        state = torchvision.models.resnet50().state_dict()
    path = str(write(tmp_path / "file", layouts.swav(layouts.other(state), {})))
    cfg = CheckpointConfig(path=path, known="swav_800ep")

    def load(arch: str, mean: Any, std: Any) -> Any:
        return squeezed_from(cfg, arch, 32, mean, std)

    loaded = load("resnet50", IMAGENET_MEAN, SWAV_STD)
    assert (loaded.objective, loaded.epoch) == ("swav", 800)
    with pytest.raises(ConfigError, match=r"trained with mean: .* std: \[0.228, .* has .*0.229"):
        load("resnet50", IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(ConfigError, match=r"\(mean: .*, std: \[0.228, .* for swav_800ep"):
        load("resnet50", None, None)
    with pytest.raises(ConfigError, match=r"is a resnet50, but .* resnet18; set squeeze.arch"):
        load("resnet18", IMAGENET_MEAN, SWAV_STD)


def test_a_teacher_of_scdd_brings_its_normalisation(tmp_path):
    model = create_model("resnet18", 5, 32)
    path = str(own(tmp_path / "file", model, mean=[0.5] * 3, std=[0.25] * 3))
    assert squeezed({"path": path}, (0.5,) * 3, (0.25,) * 3).head is not None
    with pytest.raises(ConfigError, match=r"trained with mean: \[0.5, 0.5, 0.5\]"):
        squeezed({"path": path})
