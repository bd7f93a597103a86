"""Where any convolutional net halves its feature map, found by watching a forward pass.

`stems` adapts nets whose downsamplings are listed; this is for those that nobody has listed. The
forward pass runs on the meta device: shapes alone, no arithmetic.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from scdd.models.stems import MIN_LAST_MAP, narrowed

Halvings = dict[int, list[str]]
"""By the side of the maps that are halved, in pixels: paths of the strided layers that meet them.
Parallel branches halve together."""


class Unadaptable(Exception):
    """Why a net cannot be fitted to an image size."""


def adapt_unlisted(model: nn.Module, leading: int, image_size: int) -> tuple[str, ...]:
    """Drop halvings of a fresh net of timm, in place; return what was dropped.

    The `leading` first ones go, a stride of 4 counting as two, and then the last ones until the
    last map has `MIN_LAST_MAP` pixels a side.

    Raises:
        Unadaptable: if the last map stays too small, or a layer in question cannot lose its stride.
    """
    changes: dict[str, str] = {}
    for still in range(leading, 0, -1):
        # Without these halvings the maps are those of an image so much larger, which fits.
        halvings, _ = watch(model, image_size << still)
        if halvings:
            _drop(model, halvings, max(halvings), changes)
    halvings, last_map = watch(model, image_size)
    while halvings and last_map and last_map < MIN_LAST_MAP:
        _drop(model, halvings, min(halvings), changes)
        halvings, last_map = watch(model, image_size)
    if last_map and last_map < MIN_LAST_MAP:
        raise Unadaptable(f"its last map would be {last_map}x{last_map}")
    return tuple(changes.values())


def watch(model: nn.Module, image_size: int) -> tuple[Halvings, int | None]:
    """Run `model.forward_features` on an image; return its halvings and the side of its last map.

    That is None where the features are no map but tokens.
    """
    paths = {module: name for name, module in model.named_modules() if _strided(module)}
    halvings: Halvings = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        side = inputs[0].shape[-1]
        if inputs[0].dim() == 4 and output.shape[-1] < side:
            halvings.setdefault(side, []).append(paths[module])

    hooks = [module.register_forward_hook(note) for module in paths]
    features = on_meta(_Features(model), torch.empty(1, 3, image_size, image_size))
    for hook in hooks:
        hook.remove()
    if not isinstance(features, Tensor) or features.dim() != 4:
        return halvings, None
    channels_last = features.shape[-1] == model.num_features != features.shape[1]
    return halvings, min(features.shape[1:3] if channels_last else features.shape[2:])


def on_meta(model: nn.Module, images: Tensor) -> Tensor:
    """Run `model` for the shape of what it gives, wherever its weights are."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state = {name: tensor.to("meta") for name, tensor in tensors}
    return functional_call(model, state, (images.to("meta"),))


class _Features(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net: Any = net

    def forward(self, x: Tensor) -> Tensor:
        was_training = self.net.training
        features = self.net.eval().forward_features(x)
        self.net.train(was_training)
        return features


def _strided(module: nn.Module) -> bool:
    """Whether this is one layer, a convolution or a pool, that has a stride."""
    stride = getattr(module, "stride", 1)
    return not any(module.children()) and (max(stride) if isinstance(stride, tuple) else stride) > 1


def _drop(model: nn.Module, halvings: Halvings, side: int, changes: dict[str, str]) -> None:
    """Halve the stride of the layers that meet a map of this side; note it by their place."""
    paths, stride = halvings[side], ""
    for path in paths:
        module = model.get_submodule(path)
        if isinstance(module, nn.Conv2d):
            stride = _slow_down(model, path, module, side)
        elif module.stride in (2, (2, 2)) and not any(True for _ in module.parameters()):
            model.set_submodule(path, nn.Identity())
        else:
            raise Unadaptable(f"its layer {path} cannot lose its stride")
    place = _common(paths) or f"{paths[0]} and {len(paths) - 1} beside it"
    pools = f"{place} dropped" if len(paths) == 1 else f"pools of {place} dropped"
    changes[place] = f"{place} {stride}" if stride else pools


def _common(paths: list[str]) -> str:
    """Path of the innermost module that holds all these, or "" where that is the net."""
    outer = paths[0]
    while outer and not all(f"{path}.".startswith(f"{outer}.") for path in paths):
        outer = outer.rpartition(".")[0]
    return outer


def _slow_down(model: nn.Module, path: str, conv: nn.Conv2d, side: int) -> str:
    stride, kernel = (max(conv.stride) + 1) // 2, conv.kernel_size[0]
    narrower = 3 if kernel == 7 and conv.groups == 1 else kernel - 1 + kernel % 2
    if type(conv) is nn.Conv2d and stride == 1 and narrower != kernel:
        model.set_submodule(path, narrowed(conv, narrower))
        return f"{narrower}x{narrower} stride 1"
    conv.stride = (stride, stride)
    if _output_side(conv, side) != -(-side // stride):  # even kernels, and those without padding
        conv.padding = tuple((kernel - stride + 1) // 2 for kernel in conv.kernel_size)
    return f"stride {stride}"


def _output_side(conv: nn.Conv2d, side: int) -> int:
    """By running it, since some convolutions of timm choose their padding as they run."""
    twin = copy.deepcopy(conv).to("meta")
    return twin(torch.empty(2, conv.in_channels, side, side, device="meta")).shape[-1]
