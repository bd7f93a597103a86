"""The adaptation to the image size: what is dropped, and the map that remains."""

import json
import math
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from scdd.config.stem import STOCK, Stem
from scdd.errors import ConfigError
from scdd.models import create_model, has_choice_of_stem, list_models, recreate
from scdd.models.registry import ARCHITECTURES
from scdd.models.stems import LEADING_DROPS, Downsampling, adapt, last_map, stem_of
from scdd.models.vit import patch_size

HEAVY = {"resnet50", "resnet101", "regnet_x_8gf", "resnet50w2", "resnet50w4", "resnet50w5"}
CONVOLUTIONAL = [arch for arch in list_models() if arch != "vit_tiny"]

QUICK = "BatchNorm momentum 0.1 instead of 0.01"
START = "initial position embeddings x 25, block weights x 3"
STEMS = {
    ("resnet18", 16): "conv 3x3 stride 1, no max-pool",
    ("resnet18", 32): "conv 3x3 stride 1, no max-pool",
    ("resnet50", 64): "conv 3x3 stride 1, no max-pool",
    ("resnet18", 96): "conv 3x3 stride 1",
    ("resnet18", 128): "stock",
    ("resnet101", 224): "stock",
    ("resnet18", 8): "conv 3x3 stride 1, no max-pool, stage 4 stride 1",
    ("regnet_x_8gf", 32): "conv 3x3 stride 1, stage 1 stride 1",
    ("regnet_x_8gf", 64): "conv 3x3 stride 1",
    ("mobilenet_v3_large", 32): f"conv 3x3 stride 1, block 2 stride 1, {QUICK}",
    ("mobilenet_v3_large", 64): f"conv 3x3 stride 1, {QUICK}",
    ("mobilenet_v3_large", 224): "stock",
    ("shufflenet_v2_x0_5", 32): "conv 3x3 stride 1, no max-pool",
    ("shufflenet_v2_x0_5", 64): "conv 3x3 stride 1",
    ("mobilenet_v2", 32): "conv 3x3 stride 1, block 2 stride 1",
    ("mobilenet_v2", 64): "conv 3x3 stride 1",
    ("mobilenet_v2", 224): "stock",
    ("mobilenet", 32): "conv 3x3 stride 1, stage 2 stride 1",
    ("mobilenet", 64): "conv 3x3 stride 1",
    ("mobilenet", 224): "stock",
    ("alexnet", 16): "conv 5x5 stride 1",
    ("alexnet", 32): "conv 5x5 stride 1",
    ("alexnet", 64): "conv 5x5 stride 2",
    ("alexnet", 224): "stock",
    ("convnet", 8): "pool 3 dropped",
    ("convnet", 32): "stock",
    ("convnet_bn", 64): "4 blocks",
    ("convnet_krr", 224): "5 blocks",
    ("squeezenet1_0", 32): "linear classifier after the pool, conv 3x3 stride 1, pool 1 dropped",
    ("squeezenet1_0", 224): "linear classifier after the pool",
    ("vgg11", 16): "pool 4 dropped, pool 5 dropped",
    ("vgg11", 32): "pool 5 dropped",
    ("vgg11", 64): "stock",
    ("vit_tiny", 32): f"patch 4, 8x8 tokens, {START}",
    ("vit_tiny", 64): f"patch 8, 8x8 tokens, {START}",
    ("vit_tiny", 224): "stock",
    ("vit_tiny", 256): "patch 16, 16x16 tokens",
    ("resnet8", 8): "stock",
    ("resnet8x2", 32): "stock",
}


def build(arch: str, size: int) -> Any:
    if arch.startswith("regnet"):  # torchvision cannot build it on meta
        return create_model(arch, 10, size).to("meta")
    with torch.device("meta"):
        return create_model(arch, 10, size)


def seen_last_map(model: nn.Module, size: int) -> int:
    """Side of the last map before the global pool, as seen by hooks in a forward pass."""
    sides: list[int] = []

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if output.dim() == 4 and not isinstance(module, nn.AdaptiveAvgPool2d):
            assert output.shape[2] == output.shape[3]
            sides.append(output.shape[2])

    for module in model.modules():
        module.register_forward_hook(note)
    model.train()(torch.empty(2, 3, size, size, device="meta"))
    return sides[-1]


@pytest.mark.parametrize(("arch", "size"), STEMS)
def test_the_stem_says_what_was_changed(arch, size):
    assert build(arch, size).stem == STEMS[arch, size]


@pytest.mark.parametrize("arch", CONVOLUTIONAL)
def test_the_last_map_is_at_least_2x2_at_every_size(arch):
    odd = () if arch in HEAVY else (8, 13, 31, 47, 63, 65, 127)
    for size in (16, 32, 64, 224, *odd):
        assert seen_last_map(build(arch, size), size) >= 2


@pytest.mark.parametrize("arch", CONVOLUTIONAL)
def test_no_more_is_dropped_at_the_end_than_needed(arch):
    spec = ARCHITECTURES[arch]
    for size in (8, 16, 24, 32) if arch not in HEAVY else (8,):
        model = build(arch, size)
        leading = next((n for bound, n in LEADING_DROPS[spec.rule] if size <= bound), 0)
        if any(item.dropped in model.stem for item in spec.downsamplings[leading:]):
            # With one more halving the map would be 1x1.
            assert seen_last_map(model, size) <= 3


# Of the others the builder adapts the first convolution or the number of blocks.
LISTED = [a for a in CONVOLUTIONAL if ARCHITECTURES[a].downsamplings and a != "alexnet"]


@pytest.mark.parametrize("arch", [a for a in LISTED if a not in HEAVY])
def test_the_last_map_by_arithmetic_is_the_one_seen(arch):
    spec = ARCHITECTURES[arch]
    for size in (33, 101, 130):
        model = build(arch, size)
        keep = [item for item in spec.downsamplings if item.dropped not in model.stem.split(", ")]
        assert last_map(model, keep, size) == seen_last_map(model, size)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 3, 1)]
)
def test_the_arithmetic_of_pools_is_that_of_torch(kernel, stride, padding, ceil_mode):
    pool = nn.Sequential(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode))
    for side in range(3, 40):
        expected = pool(torch.zeros(1, 1, side, side)).shape[-1]
        assert last_map(pool, [Downsampling("0", "")], side) == expected


@pytest.mark.parametrize(("arch", "fan"), [("resnet18", 64 * 9), ("squeezenet1_0", 3 * 9)])
def test_a_replaced_7x7_convolution_is_initialised_as_a_fresh_3x3_one(arch, fan):
    torch.manual_seed(0)
    conv = next(m for m in create_model(arch, 10, 32).modules() if isinstance(m, nn.Conv2d))
    assert conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    assert conv.weight.requires_grad
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.06)


def test_any_net_can_be_adapted_by_naming_where_it_halves_the_map():
    halvings = [nn.Conv2d(3, 3, 3, 2, 1), nn.MaxPool2d(2), nn.Conv2d(3, 3, 3, 2, 1)]
    net = nn.Sequential(*halvings)
    places = [Downsampling(str(n), f"{n} dropped") for n in range(3)]
    assert adapt(net, places, "kept", image_size=8) == ("2 dropped",)
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 2, 2)


def test_vit_patches_have_4_px_and_divide_the_image_into_8x8_tokens_where_they_can():
    for size in range(8, 224):
        wanted = min(8, size / 4)
        sides = [n for n in range(1, size // 4 + 1) if size % n == 0]
        sides = [n for n in sides if wanted / 2 <= n <= 2 * wanted]
        if not sides:
            with pytest.raises(ConfigError, match=f"vit_tiny: {size} px .* multiple of 8"):
                patch_size(size)
            continue
        tokens = size // patch_size(size)
        assert size % patch_size(size) == 0
        assert patch_size(size) >= 4
        assert abs(tokens - wanted) == min(abs(n - wanted) for n in sides)
    assert [patch_size(size) for size in (8, 16, 32, 64, 96)] == [4, 4, 4, 8, 12]


def test_vit_patches_are_16_px_from_224_px_up_where_they_can():
    assert [patch_size(size) for size in (224, 256, 384)] == [16, 16, 16]
    with pytest.raises(ConfigError, match=r"vit_tiny: 227 px .* multiple of 16"):
        patch_size(227)


def test_vit_has_64_tokens_on_small_images_from_32_px():
    for size, tokens in ((8, 4), (16, 16), (32, 64), (64, 64), (96, 64), (128, 64)):
        model = build("vit_tiny", size)
        assert model.backbone.pos_embed.shape == (1, tokens + 1, 192)
        assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 10)


# A stem that is asked for.

SMALL_STEM = Stem(kernel=3, stride=1, padding=1, max_pool=False)
CHOSEN = {
    SMALL_STEM: "conv 3x3 stride 1, no max-pool",
    Stem(kernel=3, stride=1, padding=2, max_pool=False): (
        "conv 3x3 stride 1 padding 2, no max-pool"
    ),
    Stem(kernel=3, stride=2, padding=1, max_pool=True): "conv 3x3 stride 2",
    Stem(kernel=7, stride=2, padding=3, max_pool=False): "no max-pool",
    Stem(kernel=7, stride=1, padding=3, max_pool=True): "conv 7x7 stride 1",
    Stem(kernel=3, stride=1, padding=1, max_pool=False, relu=False): (
        "conv 3x3 stride 1, no max-pool, no ReLU"
    ),
    STOCK: "stock",
}


def torchvision_with(stem: Stem) -> nn.Module:
    """ResNet-18 of torchvision whose children are replaced by hand."""
    net = torchvision.models.resnet18()
    net.conv1 = nn.Conv2d(3, 64, stem.kernel, stem.stride, stem.padding, bias=False)
    if not stem.max_pool:
        net.maxpool = nn.Identity()
    if not stem.relu:
        net.relu = nn.Identity()
    return net


@pytest.mark.parametrize("stem", CHOSEN, ids=CHOSEN.values())
def test_a_chosen_stem_is_built_said_and_recreated_from_what_json_keeps(stem):
    theirs = torchvision_with(stem)
    ours: Any = create_model("resnet18", 1000, 32, stem)
    assert ours.stem == CHOSEN[stem] and stem_of(ours) == stem
    ours.load_state_dict(theirs.state_dict())
    facts = {name: getattr(ours, name) for name in ("arch", "num_classes", "image_size")}
    again: Any = recreate(json.loads(json.dumps({**facts, "stem_spec": ours.stem_spec})))
    again.load_state_dict(ours.state_dict())
    assert again.stem == ours.stem and again.stem_spec == ours.stem_spec
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = theirs.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs(x))
        assert torch.equal(again.eval()(x), theirs(x))


def test_with_a_chosen_stem_the_image_size_changes_nothing():
    for size in (8, 32, 96, 224):
        with torch.device("meta"):
            model: Any = create_model("resnet18", 0, size, STOCK)
        assert model.stem == "stock"
        strides = [model.get_submodule(f"layer{n}.0.conv1").stride for n in (2, 3, 4)]
        assert strides == [(2, 2)] * 3


def test_without_a_choice_nothing_is_recorded_and_metadata_of_old_files_still_serve():
    with torch.device("meta"):
        model: Any = create_model("resnet18", 0, 32)
        old: Any = recreate({"arch": "resnet18", "num_classes": 0, "image_size": 32})
    assert model.stem_spec is None and old.stem == model.stem
    assert stem_of(model) == SMALL_STEM


def test_only_resnets_of_the_torchvision_family_have_a_choice_of_stem():
    able = {arch for arch in list_models() if has_choice_of_stem(arch)}
    assert able == {"resnet18", "resnet50", "resnet101", "resnet50w2", "resnet50w4", "resnet50w5"}
    for arch in ("resnet8x2", "vit_tiny", "mobilenet_v3_large"):
        with pytest.raises(ConfigError, match=f"{arch}: has no choice of stem; .*resnet18"):
            create_model(arch, 10, 32, STOCK)
