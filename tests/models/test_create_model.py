"""create_model against torchvision, timm, published counts and its own contract."""

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scdd.errors import ConfigError
from scdd.models import create_model, list_models

WIDE = {"resnet50w2", "resnet50w4", "resnet50w5"}  # too large to be built here but on meta
EXPECTED = {
    *WIDE,
    *("alexnet", "convnet", "convnet_bn", "mobilenet", "mobilenet_v2"),
    *("convnet_krr", "convnet_krr_w128", "convnet_krr_w32"),
    *("resnet8", "resnet8x2", "resnet8x4", "resnet10w16", "resnet14", "resnet20"),
    *("resnet18", "resnet50", "resnet101", "regnet_x_400mf", "regnet_x_8gf"),
    *("mobilenet_v3_large", "shufflenet_v2_x0_5", "squeezenet1_0", "vgg11", "vit_tiny"),
    *("convnet_bn_w16", "convnet_bn_w32"),
}
HEAVY = {"resnet50", "resnet101", "regnet_x_8gf"}
BUILT = sorted(EXPECTED - WIDE)
LIGHT = sorted(set(BUILT) - HEAVY)

# Millions of parameters with 100 classes (ViT: at 32 px), and millions of multiply-adds at 32 and
# 64 px; the latter counted by torch-pruning, which adds what BatchNorm, ReLU and pools do.
PARAMETERS = {
    "resnet18": 11.22,
    "resnet50": 23.71,
    "resnet101": 42.70,
    "regnet_x_8gf": 37.84,
    "squeezenet1_0": 0.78,
    "mobilenet_v3_large": 4.33,
    "shufflenet_v2_x0_5": 0.44,
    "vit_tiny": 5.38,
    "vgg11": 9.28,
    "mobilenet_v2": 2.35,
}
MULTIPLY_ADDS = {
    "resnet18": (557, 2229),
    "resnet50": (1308, 5231),
    "regnet_x_8gf": (2612, 2624),
    "squeezenet1_0": (208, 217),
    "mobilenet_v3_large": (69, 76),
    "shufflenet_v2_x0_5": (12, 14),
    "vit_tiny": (367, 368),
    "vgg11": (154, 614),
}


def on_meta(arch: str, num_classes: int, image_size: int) -> Any:
    if arch.startswith("regnet"):  # torchvision cannot build it there
        return create_model(arch, num_classes, image_size).to("meta")
    with torch.device("meta"):
        return create_model(arch, num_classes, image_size)


def images(size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def multiply_adds(model: nn.Module, size: int) -> float:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2


def same_outputs(ours: nn.Module, theirs: nn.Module, size: int) -> bool:
    theirs = theirs.eval().to(memory_format=torch.channels_last)  # as ours: sums in one order
    with torch.no_grad():
        return torch.equal(ours.eval()(images(size)), theirs(images(size)))


def test_every_architecture_is_listed_in_order():
    assert list_models() == sorted(EXPECTED)


@pytest.mark.parametrize(
    ("arch", "size"), [(arch, 16) for arch in BUILT] + [(arch, 32) for arch in LIGHT]
)
def test_a_training_step_on_two_small_images_reaches_every_parameter(arch, size):
    check_training_step(arch, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("arch", BUILT)
def test_a_training_step_on_two_larger_images_reaches_every_parameter(arch, size):
    check_training_step(arch, size)


def check_training_step(arch: str, size: int) -> None:
    model = create_model(arch, 10, size).train()
    logits = model(images(size))
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("arch", sorted(PARAMETERS))
def test_parameter_counts_are_the_known_ones(arch):
    count = sum(p.numel() for p in on_meta(arch, 100, 32).parameters())
    assert count / 1e6 == pytest.approx(PARAMETERS[arch], abs=0.01)


@pytest.mark.parametrize(
    "arch",
    [
        *("resnet18", "resnet50", "resnet101", "regnet_x_400mf", "regnet_x_8gf", "mobilenet_v2"),
        *("mobilenet_v3_large", "shufflenet_v2_x0_5", "squeezenet1_0"),
    ],
)
def test_parameter_counts_with_1000_classes_are_those_that_torchvision_publishes(arch):
    published = torchvision.models.get_model_weights(arch).DEFAULT.meta["num_params"]
    assert sum(p.numel() for p in on_meta(arch, 1000, 224).parameters()) == published


@pytest.mark.parametrize("arch", sorted(MULTIPLY_ADDS))
def test_multiply_adds_at_32_and_64_px_are_the_known_ones(arch):
    for size, known in zip((32, 64), MULTIPLY_ADDS[arch], strict=True):
        ratio = multiply_adds(on_meta(arch, 100, size), size) / (known * 1e6)
        assert 0.9 < ratio <= 1.0


def test_multiply_adds_of_resnet18_at_32_px_follow_from_its_layers():
    # (inputs, width, side of the output) of each stage; the first has no strided block.
    stages = [(64, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4)]
    expected = 3 * 64 * 9 * 32**2 + 512 * 100
    for inputs, width, side in stages:
        shortcut = 0 if inputs == width else inputs * width
        expected += (9 * inputs * width + 3 * 9 * width**2 + shortcut) * side**2
    assert multiply_adds(on_meta("resnet18", 100, 32), 32) == expected


@pytest.mark.parametrize("arch", BUILT)
def test_a_backbone_and_the_weights_of_a_head_make_a_classifier(arch):
    backbone: Any = create_model(arch, 0, 16).eval()
    classifier: Any = create_model(arch, 7, 16).eval()
    head = classifier.head
    assert backbone.head == head
    assert backbone.feature_dim == classifier.feature_dim
    assert type(classifier.get_submodule(head)) is nn.Linear

    weight, bias = torch.randn(7, backbone.feature_dim), torch.randn(7)
    state = backbone.state_dict() | {f"{head}.weight": weight, f"{head}.bias": bias}
    assert list(state) == list(classifier.state_dict())
    classifier.load_state_dict(state)
    with torch.no_grad():
        features = backbone(images(16))
        assert features.shape == (2, backbone.feature_dim)
        torch.testing.assert_close(classifier(images(16)), F.linear(features, weight, bias))


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("arch", sorted(EXPECTED))
def test_the_facts_of_a_net_are_plain_attributes_that_survive_a_copy(arch, num_classes):
    model = copy.deepcopy(on_meta(arch, num_classes, 64))
    facts = (model.arch, model.num_classes, model.image_size)
    assert facts == (arch, num_classes, 64)
    assert isinstance(model.stem, str) and model.stem
    assert isinstance(model.head, str) and type(model.feature_dim) is int


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet101"])
def test_resnet_keys_and_shapes_are_those_of_torchvision(arch):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(arch).state_dict()
    ours = on_meta(arch, 1000, 224).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}

    small = on_meta(arch, 1000, 32).state_dict()
    different = [key for key in theirs if small[key].shape != theirs[key].shape]
    assert list(small) == list(theirs) and different == ["conv1.weight"]


@pytest.mark.parametrize(
    "arch", ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x0_5"]
)
def test_stock_nets_compute_what_torchvision_computes(arch):
    theirs = torchvision.models.get_model(arch, num_classes=5)
    ours: Any = create_model(arch, 5, 128)
    ours.load_state_dict(theirs.state_dict())
    assert ours.stem == "stock"
    assert same_outputs(ours, theirs, 128)


def test_stock_regnet_computes_what_torchvision_computes():
    theirs = torchvision.models.regnet_x_400mf(num_classes=5)
    ours: Any = create_model("regnet_x_400mf", 5, 128)
    ours.fc.load_state_dict(theirs.fc.state_dict())
    theirs_without_fc = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.backbone.load_state_dict(theirs_without_fc)
    assert same_outputs(ours, theirs, 128)


def test_stock_squeezenet_is_torchvisions_but_for_the_order_of_pool_and_classifier():
    theirs = torchvision.models.squeezenet1_0(num_classes=5).eval()
    nn.init.constant_(theirs.classifier[1].bias, 100.0)  # so that their last ReLU passes all
    ours: Any = create_model("squeezenet1_0", 5, 128).eval()
    ours.features.load_state_dict(theirs.features.state_dict())
    linear = ours.get_submodule(ours.head)
    linear.load_state_dict(
        {"weight": theirs.classifier[1].weight.flatten(1), "bias": theirs.classifier[1].bias}
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(images(128)), theirs(images(128)))


def test_stock_vit_computes_what_timm_computes():
    theirs: Any = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    ours: Any = create_model("vit_tiny", 5, 224)
    ours.fc.load_state_dict(theirs.head.state_dict())
    theirs_without_head = {
        k: v for k, v in theirs.state_dict().items() if not k.startswith("head.")
    }
    ours.backbone.load_state_dict(theirs_without_head)
    assert ours.stem == "stock"
    assert same_outputs(ours, theirs, 224)


def test_positions_of_a_small_vit_start_as_large_as_its_patches():
    torch.manual_seed(0)
    net: Any = create_model("vit_tiny", 10, 16)
    patches = net.backbone.patch_embed(images(16, batch=64))
    ratio = (net.backbone.pos_embed.std() / patches.std()).item()
    assert 0.5 < ratio < 2


@pytest.mark.parametrize(("size", "momentum"), [(16, 0.1), (127, 0.1), (128, 0.01)])
def test_slow_batchnorm_is_quickened_only_for_small_images(size, momentum):
    net = on_meta("mobilenet_v3_large", 10, size)
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {momentum}


def test_vgg_features_are_those_of_torchvision():
    theirs = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True)
    ours: Any = create_model("vgg11", 0, 64)
    ours.features.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        maps = theirs.eval()(images(64))
        torch.testing.assert_close(ours.eval()(images(64)), maps.mean(dim=(2, 3)))


@pytest.mark.parametrize("arch", LIGHT)
def test_the_same_seed_gives_the_same_net(arch):
    def build() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return create_model(arch, 4, 32).state_dict()

    first, second = build(), build()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_unknown_name_is_answered_with_the_closest_names_and_the_list():
    with pytest.raises(ConfigError) as error:
        create_model("resnet81", 10, 32)
    message = str(error.value)
    assert "'resnet81'" in message and "did you mean" in message and "'resnet8'" in message
    assert all(name in message for name in list_models())

    with pytest.raises(ConfigError) as error:
        create_model("zzz", 10, 32)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("size", [-1, 0, 7])
def test_images_below_8_px_are_refused(size):
    with pytest.raises(ConfigError, match=f"resnet8: .*{size} px is too small.*8 px or more"):
        create_model("resnet8", 10, size)


def test_a_negative_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="num_classes is -1"):
        create_model("resnet8", -1, 32)
