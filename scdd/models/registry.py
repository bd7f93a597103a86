"""The table of architectures, and `create_model`, which builds one for an image size."""

import difflib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from scdd.config.stem import Stem
from scdd.errors import ConfigError
from scdd.models.alexnet import alexnet
from scdd.models.convnet import convnet, instance_norm
from scdd.models.mobilenet import MobileNet
from scdd.models.small_resnet import resnet10w16, small_resnet
from scdd.models.stems import Downsampling, adapt, quicken, set_stem
from scdd.models.timm_nets import timm_head, timm_names, timm_net
from scdd.models.vgg import VGG, VGG11
from scdd.models.vit import vit_tiny

MIN_IMAGE_SIZE = 8
"""Pixels."""

Build = Callable[[int, int], tuple[nn.Module, tuple[str, ...]]]
"""(num_classes, image_size) to a net and the changes that its builder made to the geometry."""


@dataclass(frozen=True)
class Architecture:
    """How to build a net, where its classifier is, and where it halves the map."""

    build: Build
    head: str
    """Path of the classifier, one nn.Linear."""
    rule: str = "kept"
    """Key of `stems.LEADING_DROPS`."""
    downsamplings: tuple[Downsampling, ...] = ()
    """In the order of the forward pass."""


def create_model(
    arch: str, num_classes: int, image_size: int, stem: Stem | None = None
) -> nn.Module:
    """Build `arch`, randomly initialised, for images [B, 3, image_size, image_size].

    The name is one of `list_models`, or else one of timm's.

    Where `stem` is given, a ResNet of the torchvision family has exactly this one, and all its
    stages keep their strides; otherwise the image size decides.

    With `num_classes` 0 the classifier is an Identity and the net returns features
    [B, feature_dim]; all other state-dict keys are the same. The net has the plain attributes

    * arch, num_classes, image_size: the arguments;
    * stem: every change of the stock net in words, or "stock";
    * stem_spec: the argument as JSON has it, or None; `recreate` needs no more than these;
    * feature_dim: inputs of the classifier;
    * head: path of the classifier, one nn.Linear, so that its state-dict keys are
      `<head>.weight` and `<head>.bias`.

    Raises:
        ConfigError: if the name is unknown, the net cannot work at this image size, or it is no
            ResNet whose stem can be chosen.
        ValueError: if `num_classes` is negative.
    """
    if num_classes < 0:
        raise ValueError(f"create_model: num_classes is {num_classes}; it must be 0 or more")
    spec = _look_up(arch)
    if image_size < MIN_IMAGE_SIZE:
        raise ConfigError(
            f"{arch}: an image size of {image_size} px is too small; "
            f"choose {MIN_IMAGE_SIZE} px or more"
        )
    # A linear layer without outputs cannot be initialised, so a backbone starts with one output.
    model, changes = spec.build(max(num_classes, 1), image_size)
    if stem is None:
        changes += adapt(model, spec.downsamplings, spec.rule, image_size)
        changes += quicken(model, image_size)
    elif has_choice_of_stem(arch):
        changes += set_stem(model, stem)
    else:
        able = ", ".join(name for name in list_models() if has_choice_of_stem(name))
        raise ConfigError(f"{arch}: has no choice of stem; leave stem out, or use one of: {able}")
    classifier = model.get_submodule(spec.head)
    assert isinstance(classifier, nn.Linear)
    if num_classes == 0:
        model.set_submodule(spec.head, nn.Identity())
    facts = {
        "arch": arch,
        "num_classes": num_classes,
        "image_size": image_size,
        "stem": ", ".join(changes) or "stock",
        "stem_spec": stem and stem.model_dump(),
        "feature_dim": classifier.in_features,
        "head": spec.head,
    }
    for name, value in facts.items():
        setattr(model, name, value)
    # Convolutions follow the layout of their weights; this one is the faster on CPU and GPU.
    model = model.to(memory_format=torch.channels_last)
    return model


def recreate(about: Mapping[str, Any]) -> nn.Module:
    """Build the net that has these facts: arch, num_classes, image_size and, if any, stem_spec.

    Raises:
        ConfigError: as `create_model` does.
    """
    spec = about.get("stem_spec")
    stem = Stem(**spec) if spec else None
    return create_model(about["arch"], about["num_classes"], about["image_size"], stem)


def has_choice_of_stem(arch: str) -> bool:
    """Whether `create_model` takes a stem for this net: a ResNet of the torchvision family."""
    return arch in ARCHITECTURES and ARCHITECTURES[arch].rule == "resnet"


def list_models() -> list[str]:
    """Names of our own, in alphabetical order; `create_model` also takes those of timm."""
    return sorted(ARCHITECTURES)


def _look_up(arch: str) -> Architecture:
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch]
    theirs = timm_names()
    if arch in theirs:
        return Architecture(partial(timm_net, arch), timm_head(arch))
    if arch.partition(".")[0] in theirs:
        raise ConfigError(
            f"unknown architecture {arch!r}; the part after the dot names weights of timm, which "
            f"are not loaded: write {arch.partition('.')[0]!r}"
        )
    close = difflib.get_close_matches(arch, [*list_models(), *theirs])
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ConfigError(
        f"unknown architecture {arch!r}; {hint}choose any name of timm or one of: "
        f"{', '.join(list_models())}"
    )


# Builders. torchvision is imported inside, since the small nets do without it.


def _torchvision(name: str, num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    from torchvision.models import get_model

    return get_model(name, weights=None, num_classes=num_classes), ()


def _wide_resnet(
    factor: int, num_classes: int, image_size: int
) -> tuple[nn.Module, tuple[str, ...]]:
    from scdd.models.wide_resnet import BLOCKS, WideResNet

    return WideResNet(BLOCKS, factor, num_classes), ()


def _regnet(name: str, num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    """As children `backbone` and `fc`: torchvision's own child `stem` would hide our attribute.

    torchvision computes the widths with tensors, so this cannot run under the meta device.
    """
    backbone, changes = _torchvision(name, num_classes, image_size)
    fc = backbone.get_submodule("fc")
    backbone.set_submodule("fc", nn.Identity())
    return nn.Sequential(OrderedDict(backbone=backbone, fc=fc)), changes


def _squeezenet(num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    """With a linear layer after the pool, where stock has a 1x1 convolution and ReLU before it."""
    model, _ = _torchvision("squeezenet1_0", num_classes, image_size)
    linear = nn.Linear(512, num_classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), linear)
    model.set_submodule("classifier", head)
    return model, ("linear classifier after the pool",)


def _vgg11(num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    return VGG(VGG11, num_classes), ()


def _mobilenet(num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    return MobileNet(num_classes), ()


def _small_resnet(
    depth: int, factor: int, num_classes: int, image_size: int
) -> tuple[nn.Module, tuple[str, ...]]:
    return small_resnet(depth, factor, num_classes), ()


def _resnet10w16(num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    return resnet10w16(num_classes), ()


# Places where the map is halved, in the order of the forward pass.


def _stages(path: str, numbers: range) -> tuple[Downsampling, ...]:
    return tuple(Downsampling(f"{path}{n}", f"stage {n} stride 1") for n in numbers)


_STEM_CONV = "conv 3x3 stride 1"
_CONV_AND_POOL = (Downsampling("conv1", _STEM_CONV), Downsampling("maxpool", "no max-pool"))
_RESNET = _CONV_AND_POOL + _stages("layer", range(2, 5))
_SHUFFLENET = _CONV_AND_POOL + _stages("stage", range(2, 5))
_SMALL_RESNET = _stages("layer", range(2, 4))
_REGNET = (
    Downsampling("backbone.stem", _STEM_CONV),
    *_stages("backbone.trunk_output.block", range(1, 5)),
)
_MOBILENET = (
    Downsampling("features.0", _STEM_CONV),
    *(Downsampling(f"features.{n}", f"block {n} stride 1") for n in (2, 4, 7, 13)),
)
_MOBILENET_V2 = (
    Downsampling("features.0", _STEM_CONV),
    *(Downsampling(f"features.{n}", f"block {n} stride 1") for n in (2, 4, 7, 14)),
)
_KRR_MOBILENET = (
    Downsampling("conv1", _STEM_CONV),
    *(Downsampling(f"layers.{n - 1}", f"stage {n} stride 1") for n in (2, 3, 4, 6)),
)
_ALEXNET = tuple(
    Downsampling(f"features.{at}", f"pool {n} dropped") for n, at in enumerate((3, 7, 17), 1)
)
_SQUEEZENET = (
    Downsampling("features.0", _STEM_CONV),
    *(Downsampling(f"features.{at}", f"pool {n} dropped") for n, at in enumerate((2, 6, 11), 1)),
)
_VGG11 = tuple(
    Downsampling(f"features.{at}", f"pool {n} dropped")
    for n, at in enumerate((3, 7, 14, 21, 28), 1)
)

ARCHITECTURES: dict[str, Architecture] = {
    **{
        f"resnet{depth}": Architecture(
            partial(_torchvision, f"resnet{depth}"), "fc", "resnet", _RESNET
        )
        for depth in (18, 50, 101)
    },
    **{
        f"resnet50w{factor}": Architecture(partial(_wide_resnet, factor), "fc", "resnet", _RESNET)
        for factor in (2, 4, 5)
    },
    **{
        f"resnet{depth}{'' if factor == 1 else f'x{factor}'}": Architecture(
            partial(_small_resnet, depth, factor), "fc", "kept", _SMALL_RESNET
        )
        for depth, factor in ((8, 1), (8, 2), (8, 4), (14, 1), (20, 1))
    },
    "resnet10w16": Architecture(
        _resnet10w16,
        "fc",
        "kept",
        (Downsampling("conv1", "stem stride 1"), *_stages("layer", range(2, 5))),
    ),
    **{
        name: Architecture(partial(_regnet, name), "fc", "mobile", _REGNET)
        for name in ("regnet_x_400mf", "regnet_x_8gf")
    },
    "mobilenet_v3_large": Architecture(
        partial(_torchvision, "mobilenet_v3_large"), "classifier.3", "mobile", _MOBILENET
    ),
    "mobilenet_v2": Architecture(
        partial(_torchvision, "mobilenet_v2"), "classifier.1", "mobile", _MOBILENET_V2
    ),
    "mobilenet": Architecture(_mobilenet, "fc", "mobile", _KRR_MOBILENET),
    "alexnet": Architecture(alexnet, "classifier", "kept", _ALEXNET),
    "convnet": Architecture(partial(convnet, instance_norm, False, 128), "classifier"),
    "convnet_bn": Architecture(partial(convnet, nn.BatchNorm2d, False, 128), "classifier"),
    **{
        f"convnet_krr{'' if width == 512 else f'_w{width}'}": Architecture(
            partial(convnet, nn.BatchNorm2d, True, width), "classifier"
        )
        for width in (512, 128, 32)
    },
    "shufflenet_v2_x0_5": Architecture(
        partial(_torchvision, "shufflenet_v2_x0_5"), "fc", "mobile", _SHUFFLENET
    ),
    "squeezenet1_0": Architecture(_squeezenet, "classifier.3", "mobile", _SQUEEZENET),
    "vgg11": Architecture(_vgg11, "classifier", "kept", _VGG11),
    # Narrow ones for committees of labellers (arXiv:2404.13733) and for a CPU.
    **{
        f"convnet_bn_w{width}": Architecture(
            partial(convnet, nn.BatchNorm2d, False, width), "classifier"
        )
        for width in (16, 32)
    },
    "vit_tiny": Architecture(vit_tiny, "fc"),
}
