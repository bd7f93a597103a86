"""Small stems, whose geometry the keys of a file do not carry."""

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from scdd.config.stem import STOCK
from scdd.errors import ConfigError
from scdd.foreign import load_backbone
from tests.foreign import layouts
from tests.foreign.conftest import SMALL, images, refusal, same, state_of
from tests.foreign.layouts import under, write


@pytest.mark.parametrize(
    ("writer", "layout"),
    [
        (layouts.moco_notebook, "MoCo, CIFAR notebook"),
        (layouts.lightly_children, "lightly, a Sequential of the children of torchvision"),
        (layouts.solo_learn, "solo-learn"),
    ],
)
def test_a_small_stem_is_asked_for_and_then_exact(writer, layout, tmp_path):
    padding = 2 if writer is layouts.solo_learn else 1
    theirs = layouts.trained(layouts.small_resnet18(padding))
    path = write(tmp_path / "file", writer(*state_of(theirs)))
    sentence = refusal(path)
    assert "first convolution is 3x3" in sentence
    assert "squeeze.stem: {kernel: 3, stride: 1, padding: 1, max_pool: false}" in sentence
    assert "1, or 2 as in solo-learn" in sentence
    stem = SMALL.model_copy(update={"padding": padding})
    loaded = load_backbone(path, "resnet18", 32, stem)
    assert same(loaded, theirs) and loaded.report.layout.startswith(layout)
    assert loaded.backbone.stem_spec == stem.model_dump()


@pytest.mark.parametrize("splits", [0, 8])
def test_lightlys_cifar_net_as_a_sequential_has_no_relu_in_its_stem(splits, tmp_path):
    models = pytest.importorskip("lightly.models", reason="lightly is not installed")
    resnet = models.ResNetGenerator("resnet-18", num_splits=splits)
    theirs = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1)).train()
    with torch.no_grad():
        theirs(images().repeat(8, 1, 1, 1))  # so that the groups of SplitBatchNorm differ
    content = {
        "state_dict": {
            **under("backbone.", theirs.state_dict()),
            **layouts.mlp("projection_head.layers", 0),
        }
    }
    path = write(tmp_path / "file", content)
    assert "no max-pool, no ReLU" in refusal(path)
    loaded = load_backbone(path, "resnet18", 32, SMALL)
    assert loaded.backbone.stem == "conv 3x3 stride 1, no max-pool, no ReLU"
    assert "children of lightly's CIFAR net" in loaded.report.layout
    with torch.no_grad():
        expected = theirs.eval()(images()).flatten(1)
        torch.testing.assert_close(loaded.backbone.eval()(images()), expected)


def test_the_same_net_not_taken_apart_keeps_its_relu(tmp_path):
    models = pytest.importorskip("lightly.models", reason="lightly is not installed")
    theirs = layouts.trained(models.ResNetGenerator("resnet-18", num_classes=6))
    loaded = load_backbone(write(tmp_path / "file", theirs.state_dict()), "resnet18", 32, SMALL)
    assert loaded.backbone.stem == "conv 3x3 stride 1, no max-pool" and loaded.head is not None
    with torch.no_grad():
        ours = loaded.backbone.eval()(images()) @ loaded.head[0].T + loaded.head[1]
        torch.testing.assert_close(ours, theirs(images()), rtol=1e-4, atol=1e-4)


def test_a_stem_that_contradicts_the_file_is_refused(small, net, tmp_path):
    path = write(tmp_path / "small", layouts.moco_notebook(*state_of(small)))
    pooled = SMALL.model_copy(update={"max_pool": True})
    assert "no max-pool has a place; set squeeze.stem.max_pool: false" in refusal(path, stem=pooled)
    assert "is 3x3, but the stem asks for 7x7" in refusal(path, stem=STOCK)
    path = write(tmp_path / "large", layouts.flat(*state_of(net)))
    assert "is 7x7, but the stem asks for 3x3" in refusal(path, stem=SMALL)


def test_a_large_stem_in_a_sequential_without_place_for_the_pool_is_asked_for(net, tmp_path):
    path = write(tmp_path / "file", layouts.moco_notebook(*state_of(net)))
    assert "{kernel: 7, stride: 2, padding: 3, max_pool: false}" in refusal(path)


def test_swavs_extra_padding_is_the_padding_of_the_stock_stem(net, tmp_path):
    theirs: Any = copy.deepcopy(net)
    theirs.conv1.padding = (2, 2)
    path = write(tmp_path / "file", layouts.swav(*state_of(net)))
    loaded = load_backbone(path, "resnet18", 32)
    with torch.no_grad():
        padded = nn.functional.pad(images(), (1, 1, 1, 1))
        theirs.fc = nn.Identity()
        expected = theirs.to(memory_format=torch.channels_last)(padded)
        assert torch.equal(loaded.backbone.eval()(images()), expected)


def test_other_nets_are_loaded_only_where_their_geometry_is_the_stock_one(tmp_path):
    theirs = torchvision.models.mobilenet_v3_large(num_classes=3)
    path = write(tmp_path / "file", theirs.state_dict())
    assert "weights of a stock mobilenet_v3_large, but at 32 px" in refusal(
        path, "mobilenet_v3_large"
    )
    loaded = load_backbone(path, "mobilenet_v3_large", 128)
    assert loaded.head is not None and loaded.backbone.stem == "stock"
    with pytest.raises(ConfigError, match="has no choice of stem"):
        load_backbone(path, "mobilenet_v3_large", 128, SMALL)
