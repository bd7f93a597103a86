"""Adaptation of convolutional nets to the image size: which downsamplings go, and how.

A net made for 224 px halves the map five times. On small images the first halvings are dropped
(the usual stem for 32 px images: a 3x3 convolution with stride 1 and no max-pool), which keeps
the last map at 4x4 to 8x8. Then any net whose last map would still fall below 2x2 loses its last
halvings, one by one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from scdd.config.stem import STOCK, Stem

SMALL = 127
"""Pixels; larger images find every net as it is in stock."""

# How many leading downsamplings go, by image size in pixels: the first row whose bound is not
# exceeded holds, and above the last row the stem is stock. ResNets keep the usual 8x8 map at
# 64 px; the others have a 4x4 map there, at a quarter of the cost.
LEADING_DROPS: dict[str, tuple[tuple[int, int], ...]] = {
    "resnet": ((64, 2), (SMALL, 1)),
    "mobile": ((63, 2), (SMALL, 1)),
    "kept": (),
}

MIN_LAST_MAP = 2
"""Smallest side of the last feature map, in pixels."""

MOMENTUM = 0.1
"""Of BatchNorm, torch's default."""


class Downsampling(NamedTuple):
    """One halving of the feature map."""

    at: str
    """Path of the pool, the convolution, or the block whose parallel branches are strided."""
    dropped: str
    """What `stem` says when it is dropped."""


def leading_drops(rule: str, image_size: int) -> int:
    """Look up in `LEADING_DROPS` how many leading downsamplings go at this image size."""
    return next((n for bound, n in LEADING_DROPS[rule] if image_size <= bound), 0)


def adapt(
    model: nn.Module, downsamplings: Sequence[Downsampling], rule: str, image_size: int
) -> tuple[str, ...]:
    """Drop downsamplings of `model`, in place, as `image_size` asks; return what was dropped.

    `downsamplings` are in the order of the forward pass and `rule` is a key of `LEADING_DROPS`.
    """
    leading = leading_drops(rule, image_size)
    keep = list(downsamplings[leading:])
    for item in downsamplings[:leading]:
        _drop(model, item.at)
    while keep and last_map(model, keep, image_size) < MIN_LAST_MAP:
        _drop(model, keep.pop().at)
    return tuple(item.dropped for item in downsamplings if item not in keep)


def set_stem(model: nn.Module, stem: Stem) -> tuple[str, ...]:
    """Give a fresh stock ResNet this stem, in place; return how it differs from the stock one."""
    conv = model.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7)
    if stem.kernel == 3:
        conv = narrowed(conv, 3)
        model.set_submodule("conv1", conv)
    conv.stride, conv.padding = _pair(stem.stride), _pair(stem.padding)
    if not stem.max_pool:
        model.set_submodule("maxpool", nn.Identity())
    if not stem.relu:
        model.set_submodule("relu", nn.Identity())
    changes = []
    if (stem.kernel, stem.stride, stem.padding) != (STOCK.kernel, STOCK.stride, STOCK.padding):
        padding = "" if stem.padding == stem.kernel // 2 else f" padding {stem.padding}"
        changes.append(f"conv {stem.kernel}x{stem.kernel} stride {stem.stride}{padding}")
    changes += [] if stem.max_pool else ["no max-pool"]
    changes += [] if stem.relu else ["no ReLU"]
    return tuple(changes)


def stem_of(model: nn.Module) -> Stem:
    """Read the stem of a ResNet of the torchvision family."""
    conv = model.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
    return Stem.model_validate(
        {
            "kernel": conv.kernel_size[0],
            "stride": conv.stride[0],
            "padding": conv.padding[0],
            "max_pool": isinstance(model.get_submodule("maxpool"), nn.MaxPool2d),
            "relu": isinstance(model.get_submodule("relu"), nn.ReLU),
        }
    )


def quicken(model: nn.Module, image_size: int) -> tuple[str, ...]:
    """Raise the momentum of slow BatchNorm, in place, for small images; return what was changed.

    A momentum of 0.01 is made for trainings of many thousand steps. After 400 it leaves 2 % of the
    initial variance 1, which is more than many layers have of their own.
    """
    slow = [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        and module.momentum is not None
        and module.momentum < MOMENTUM
    ]
    if image_size > SMALL or not slow:
        return ()
    before = slow[0].momentum
    for module in slow:
        module.momentum = MOMENTUM
    return (f"BatchNorm momentum {MOMENTUM:g} instead of {before:g}",)


def last_map(model: nn.Module, downsamplings: Sequence[Downsampling], image_size: int) -> int:
    """Side of the last feature map, in pixels, when only `downsamplings` change the size."""
    side = image_size
    for item in downsamplings:
        # Parallel branches agree, or the net would not run: the first one speaks for all.
        _, module = _strided(model, item.at)[0]
        side = _output_side(module, side)
    return side


def _strided(model: nn.Module, at: str) -> list[tuple[str, nn.Conv2d | nn.MaxPool2d]]:
    found = [
        (name, module)
        for name, module in model.get_submodule(at).named_modules(prefix=at)
        if isinstance(module, nn.Conv2d | nn.MaxPool2d) and _pair(module.stride) != (1, 1)
    ]
    assert found, f"nothing is strided at {at}"
    return found


def _drop(model: nn.Module, at: str) -> None:
    for name, module in _strided(model, at):
        if isinstance(module, nn.MaxPool2d):
            model.set_submodule(name, nn.Identity())
        elif module.kernel_size == (7, 7):
            model.set_submodule(name, narrowed(module, 3))
        else:
            module.stride = (1, 1)


def narrowed(conv: nn.Conv2d, side: int) -> nn.Conv2d:
    """A convolution of stride 1 with a smaller, odd kernel in place of a fresh one."""
    small = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        side,
        padding=side // 2,
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    # Initialisations scale with 1 / kernel side, so the scaled centre of the wide weights is
    # distributed as fresh narrow weights, whichever scheme the net uses.
    wide = conv.kernel_size[0]
    centre = slice((wide - side) // 2, (wide + side) // 2)
    small.weight.data = conv.weight.data[:, :, centre, centre] * (wide / side)
    small.bias = conv.bias
    return small


def _output_side(module: nn.Conv2d | nn.MaxPool2d, side: int) -> int:
    def first(value: int | str | tuple[int, ...]) -> int:
        assert not isinstance(value, str)
        return _pair(value)[0]

    kernel, stride, padding = map(first, (module.kernel_size, module.stride, module.padding))
    room = side + 2 * padding - first(module.dilation) * (kernel - 1) - 1
    if isinstance(module, nn.MaxPool2d) and module.ceil_mode:
        steps = -(-room // stride)
        # A window that starts beyond the left padding and the map does not count.
        return steps + 1 if steps * stride < side + padding else steps
    return room // stride + 1


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else value
