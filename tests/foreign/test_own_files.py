"""Files of scdd itself say what they hold, and nets keep their geometry."""

import pytest
import torch

from scdd.checkpoint import save_weights
from scdd.config.stem import STOCK
from scdd.errors import CheckpointError
from scdd.foreign import load_backbone
from scdd.models import create_model
from tests.foreign import layouts
from tests.foreign.conftest import SMALL, own, refusal, same


def test_a_backbone_and_a_teacher_of_scdd_need_nothing_said(tmp_path):
    stem = SMALL.model_copy(update={"padding": 2})
    for arch, size, chosen in (
        ("resnet8", 16, None),
        ("resnet18", 32, None),
        ("resnet18", 32, stem),
    ):
        for classes in (0, 5):
            model = layouts.trained(create_model(arch, classes, size, chosen))
            path = own(tmp_path / "file.safetensors", model, objective="moco_v2", epoch=20)
            loaded = load_backbone(path, arch, size)
            assert (
                loaded.backbone.stem == model.stem and loaded.backbone.stem_spec == model.stem_spec
            )
            assert same(loaded, model) and loaded.backbone.num_classes == 0
            assert (loaded.objective, loaded.epoch) == ("moco_v2", 20)
            assert (loaded.head is None) == (classes == 0)


def test_a_net_of_scdd_keeps_its_stem_at_another_image_size(tmp_path):
    model = layouts.trained(create_model("resnet18", 0, 64))
    path = own(tmp_path / "file.safetensors", model)
    loaded = load_backbone(path, "resnet18", 128)
    assert loaded.backbone.stem == "conv 3x3 stride 1, no max-pool" and same(loaded, model)
    assert loaded.backbone.image_size == 128


def test_a_net_of_scdd_that_cannot_keep_its_geometry_is_refused(tmp_path):
    path = own(tmp_path / "vgg", create_model("vgg11", 0, 32))
    with pytest.raises(
        CheckpointError, match="geometry is 'pool 5 dropped', at 32 px, not 'stock'"
    ):
        load_backbone(path, "vgg11", 64)
    path = own(tmp_path / "resnet", create_model("resnet18", 0, 32))
    assert "leave the stem out" in refusal(path, stem=STOCK)
    assert "holds 'resnet18'; set squeeze.arch to that" in refusal(path, "resnet50")
    save_weights(tmp_path / "shard", {"images": torch.zeros(1)}, {"index": 3})
    assert "does not say which network it is for" in refusal(tmp_path / "shard")
