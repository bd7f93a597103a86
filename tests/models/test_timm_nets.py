"""Nets of timm: as in stock at 224 px, and adapted as the nets that we list on small images."""

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from scdd.errors import ConfigError
from scdd.models import create_model, has_choice_of_stem, list_models, recreate
from scdd.models.halvings import Unadaptable, adapt_unlisted
from scdd.models.timm_nets import timm_net

SMALL_NETS = ["regnetx_002", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"]


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def on_meta(arch: str, num_classes: int, image_size: int) -> Any:
    with torch.device("meta"):
        return create_model(arch, num_classes, image_size)


def outputs(net: nn.Module, size: int) -> torch.Tensor:
    with torch.no_grad():
        return net.eval().to(memory_format=torch.channels_last)(images(size))


@pytest.mark.parametrize("arch", SMALL_NETS)
def test_at_224_px_keys_and_outputs_are_those_of_timm(arch):
    theirs = timm.create_model(arch, num_classes=5)
    ours: Any = create_model(arch, 5, 224)
    assert list(ours.state_dict()) == [f"net.{key}" for key in theirs.state_dict()]
    ours.net.load_state_dict(theirs.state_dict())
    assert ours.stem == "stock"
    assert torch.equal(outputs(ours, 224), outputs(theirs, 224))


@pytest.mark.parametrize(
    ("theirs", "ours", "size"),
    [
        ("resnet18", "resnet18", 32),
        ("resnet18", "resnet18", 96),
        ("mobilenetv2_100", "mobilenet_v2", 32),
        ("mobilenetv2_100", "mobilenet_v2", 64),
        ("regnetx_004_tv", "regnet_x_400mf", 32),
    ],
)
def test_what_is_found_in_a_net_of_timm_is_what_is_listed_for_the_same_net_of_torchvision(
    theirs, ours, size
):
    found, _ = timm_net(theirs, 5, size)
    listed = create_model(ours, 5, size)
    weights = sorted(tuple(v.shape) for v in listed.state_dict().values())
    assert sorted(tuple(v.shape) for v in found.state_dict().values()) == weights
    assert maps(found, size) == maps(listed, size)


def maps(net: nn.Module, size: int) -> list[tuple[int, ...]]:
    """Shapes of the maps that all convolutions give."""
    seen: list[tuple[int, ...]] = []
    hooks = [
        m.register_forward_hook(lambda _m, _x, y: seen.append(tuple(y.shape)))
        for m in net.modules()
        if isinstance(m, nn.Conv2d)
    ]
    outputs(net, size)
    for hook in hooks:
        hook.remove()
    return sorted(seen)


STEMS = {
    ("resnet34", 32): "conv1 3x3 stride 1, maxpool dropped",
    ("resnet34", 64): "conv1 3x3 stride 1",
    ("resnet34", 8): "conv1 3x3 stride 1, maxpool dropped, layer4.0 stride 1",
    ("efficientnet_b0", 32): "conv_stem stride 1, blocks.1.0.conv_dw stride 1",
    ("efficientnet_b0", 64): "conv_stem stride 1",
    ("efficientnet_b0", 128): "stock",
    ("tf_efficientnet_b0", 96): "conv_stem stride 1",
    ("regnetx_002", 32): "stem.conv stride 1, s1.b1 stride 1",
    ("convnext_atto", 32): "stem.0 3x3 stride 1",
    ("convnext_atto", 64): "stem.0 stride 2",
    ("resnetrs50", 32): "conv1.0 stride 1, maxpool.0 stride 1",
    ("vit_small_patch16_224", 32): "patch 4, 8x8 tokens",
    ("vit_small_patch16_224", 64): "patch 8, 8x8 tokens",
    ("vit_small_patch16_224", 224): "stock",
    ("vit_base_patch32_224", 224): "stock",
    ("swin_tiny_patch4_window7_224", 32): "patch 1, 32x32 tokens",
    ("swin_tiny_patch4_window7_224", 64): "patch 2, 32x32 tokens",
    ("coatnet_nano_rw_224", 32): (
        "sized for 128 px, stem.conv1 stride 1, pools of stages.0.blocks.0 dropped"
    ),
}


@pytest.mark.parametrize(("arch", "size"), STEMS)
def test_the_stem_says_what_was_changed(arch, size):
    assert on_meta(arch, 10, size).stem == STEMS[arch, size]


@pytest.mark.parametrize("size", [13, 32, 64, 127])
@pytest.mark.parametrize("arch", ["resnet34", "efficientnet_b0", "convnext_atto"])
def test_the_last_map_of_a_small_image_is_neither_lost_nor_large(arch, size):
    features = on_meta(arch, 10, size).net.forward_features(
        torch.empty(2, 3, size, size).to("meta")
    )
    assert 2 <= features.shape[-1] <= 8


@pytest.mark.parametrize("arch", [*SMALL_NETS, "resnet10t"])
def test_a_training_step_on_two_small_images_reaches_every_parameter(arch):
    model = create_model(arch, 10, 32).train()
    F.cross_entropy(model(images(32)), torch.tensor([0, 1])).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


@pytest.mark.parametrize("arch", SMALL_NETS)
def test_a_backbone_and_the_weights_of_a_head_make_a_classifier(arch):
    backbone: Any = create_model(arch, 0, 32).eval()
    classifier: Any = recreate({"arch": arch, "num_classes": 7, "image_size": 32}).eval()
    head = classifier.head
    assert isinstance(classifier.get_submodule(head), nn.Linear) and backbone.head == head
    weight, bias = torch.randn(7, backbone.feature_dim), torch.randn(7)
    state = backbone.state_dict() | {f"{head}.weight": weight, f"{head}.bias": bias}
    classifier.load_state_dict(state)
    with torch.no_grad():
        features = backbone(images(32))
        assert features.shape == (2, backbone.feature_dim)
        torch.testing.assert_close(classifier(images(32)), F.linear(features, weight, bias))


def test_the_facts_that_json_keeps_recreate_the_net():
    net: Any = create_model("regnetx_002", 4, 32)
    facts = {name: getattr(net, name) for name in ("arch", "num_classes", "image_size")}
    again: Any = recreate(json.loads(json.dumps({**facts, "stem_spec": net.stem_spec})))
    again.load_state_dict(net.state_dict())
    assert again.stem == net.stem and again.feature_dim == net.feature_dim
    assert torch.equal(outputs(again, 32), outputs(net, 32))
    assert not has_choice_of_stem("regnetx_002")


def test_a_net_is_left_in_training_mode_without_hooks():
    net = create_model("resnet10t", 4, 32)
    assert all(module.training and not module._forward_hooks for module in net.modules())


class Chain(nn.Module):
    """What `adapt_unlisted` needs of a net: features and how many channels they have."""

    num_features = 3

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize(
    ("layer", "sides_after"),
    [
        (nn.Conv2d(3, 3, 4, 4), (8, 16, 32)),
        (nn.Conv2d(3, 3, 7, 4, 3), (8, 16, 32)),
        (nn.Conv2d(3, 3, 7, 2, 3), (16, 32)),
        (nn.Conv2d(3, 3, 3, 2), (15, 32)),
        (nn.Conv2d(3, 3, 2, 2), (16, 32)),
        (nn.Conv2d(3, 3, 8, 8), (4, 8, 16, 32)),
        (nn.Conv2d(3, 3, 1, 2), (16, 32)),
        (nn.MaxPool2d(3, 2, 1), (16, 32)),
        (nn.AvgPool2d(2), (16, 32)),
    ],
)
def test_each_dropped_halving_doubles_the_map(layer, sides_after):
    for leading, side in enumerate(sides_after):
        net = Chain(copy.deepcopy(layer))
        adapt_unlisted(net, leading, 32)
        assert net.forward_features(images(32)).shape == (2, 3, side, side)


def test_a_halving_that_cannot_be_dropped_is_a_reason():
    with pytest.raises(Unadaptable, match="last map would be 1x1"):
        adapt_unlisted(Chain(nn.PixelUnshuffle(8), nn.Conv2d(192, 3, 1)), 0, 8)
    with pytest.raises(Unadaptable, match=r"layer layers\.0 cannot lose its stride"):
        adapt_unlisted(Chain(nn.MaxPool2d(4)), 1, 32)


@pytest.mark.parametrize(("wide", "narrow"), [(7, 3), (4, 3), (2, 1)])
def test_a_narrowed_convolution_answers_as_strongly_as_the_wide_one(wide, narrow):
    torch.manual_seed(0)
    net = Chain(nn.Conv2d(3, 512, wide, 2))
    before = net.layers[0].weight.std() * wide
    adapt_unlisted(net, 1, 32)
    assert net.layers[0].kernel_size == (narrow, narrow)
    assert (net.layers[0].weight.std() * narrow).item() == pytest.approx(before.item(), rel=0.06)


@pytest.mark.parametrize(
    ("arch", "size", "reason"),
    [
        ("deit_tiny_distilled_patch16_224", 224, "does not end in one linear classifier"),
        ("dla34", 32, "does not end in one linear classifier"),
        ("inception_v3", 13, "cannot be fitted to images of 13 px; choose another image size"),
        ("mixer_s16_224", 32, "cannot be fitted to images of 32 px; choose another image size"),
        ("vit_tiny_patch16_224", 31, r"31 px does not divide into .* multiple of 8"),
        ("swin_tiny_patch4_window7_224", 8, r"images of 8 px \(its last map would be 1x1\)"),
    ],
)
def test_a_net_that_cannot_serve_is_refused_in_a_sentence(arch, size, reason):
    with pytest.raises(ConfigError, match=f"^{arch}: .*{reason}"):
        create_model(arch, 10, size)


def test_close_names_of_timm_are_suggested_too():
    with pytest.raises(ConfigError, match=r"'convnext_tin'; did you mean .*'convnext_tiny'"):
        create_model("convnext_tin", 10, 32)


def test_names_of_weights_and_of_the_hub_are_refused():
    with pytest.raises(ConfigError, match=r"'resnet34.a1_in1k'; .* not loaded: write 'resnet34'"):
        create_model("resnet34.a1_in1k", 10, 32)
    with pytest.raises(ConfigError, match="unknown architecture 'hf-hub:timm/resnet34'"):
        create_model("hf-hub:timm/resnet34", 10, 32)


def test_names_that_timm_has_too_are_ours_and_no_more_than_these():
    """A new one would change what a name means in files that are already written."""
    both = set(list_models()) & set(timm.list_models())
    assert both == {"resnet18", "resnet50", "resnet101", "vgg11"}
    assert on_meta("vgg11", 10, 32).head == "classifier"


def test_timm_is_imported_for_its_own_nets_alone():
    code = (
        "import sys; from scdd.models import create_model, list_models; list_models(); "
        "create_model('resnet8', 10, 32); sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
