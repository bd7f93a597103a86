"""Weights that are not those of the architecture: which they are, or what does not fit."""

import torch
import torchvision

from scdd.models import create_model
from tests.foreign import layouts
from tests.foreign.conftest import refusal, state_of
from tests.foreign.layouts import filled, write


def test_a_file_for_another_architecture_says_which(net, small, tiny, tmp_path):
    path = write(tmp_path / "large", layouts.moco_v2(*state_of(net)))
    for arch in ("resnet50", "resnet8x2", "resnet20"):
        assert "of resnet18; set squeeze.arch: resnet18" in refusal(path, arch)
    path = write(tmp_path / "small", layouts.moco_notebook(*state_of(small)))
    assert "set squeeze.arch: resnet18" in refusal(path, "resnet50")
    path = write(tmp_path / "tiny", layouts.flat(*state_of(tiny)))
    assert "set squeeze.arch: resnet8" in refusal(path)
    with torch.device("meta"):
        wide = torchvision.models.wide_resnet50_2().state_dict()
    path = write(tmp_path / "wide", layouts.other(wide))
    sentence = refusal(path, "resnet50w2")
    assert "weight 'conv1.weight' has shape [64, 3, 7, 7], not [128, 3, 7, 7]" in sentence
    assert "no ResNet here has these shapes" in sentence


def test_a_deeper_net_is_not_taken_for_the_shallower_one_that_it_contains(tiny, tmp_path):
    with torch.device("meta"):
        deep = {n: torchvision.models.get_model(f"resnet{n}").state_dict() for n in (34, 50, 101)}
    for depth, arch, said in (
        (34, "resnet18", "'layer1.2.conv1.weight' is one too many and 79 more do not fit"),
        (101, "resnet50", "'layer3.6.conv1.weight' is one too many"),
        (101, "resnet18", "these are the shapes of resnet101; set squeeze.arch: resnet101"),
        (50, "resnet101", "these are the shapes of resnet50"),
    ):
        assert said in refusal(write(tmp_path / "file", layouts.other(deep[depth])), arch)
    path = write(tmp_path / "file", create_model("resnet14", 0, 32).state_dict())
    assert "these are the shapes of resnet14; set squeeze.arch: resnet14" in refusal(
        path, "resnet8"
    )


def test_a_missing_weight_is_named_with_the_layout_found(net, tmp_path):
    backbone, head = state_of(net)
    for name in ("conv1.weight", "layer3.0.downsample.1.running_var", "bn1.bias"):
        kept = {k: v for k, v in backbone.items() if k != name}
        sentence = refusal(write(tmp_path / "file", layouts.barlow_twins(kept, head)))
        assert "found Barlow Twins, full, under 'model.backbone.'" in sentence
        assert f"the backbone weight 'backbone.{name}' is missing for resnet18" in sentence


def test_a_misshapen_weight_is_named(net, tmp_path):
    backbone, _ = state_of(net)
    for name, shape in (
        ("layer1.0.bn1.weight", (32,)),
        ("conv1.weight", (64, 3, 5, 5)),
        ("bn1.running_mean", (65,)),
        ("layer2.0.conv1.weight", ()),
    ):
        sentence = refusal(write(tmp_path / "file", {**backbone, name: filled(*shape)}))
        assert f"weight '{name}' has shape {list(shape)}, not" in sentence


def test_weights_that_are_not_finite_are_refused(net, tmp_path):
    backbone, _ = state_of(net)
    spoilt = {**backbone, "bn1.weight": torch.full((64,), torch.nan)}
    assert "'bn1.weight' has values that are not finite" in refusal(write(tmp_path / "f", spoilt))
