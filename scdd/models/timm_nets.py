"""Any net of timm under its own name, randomly initialised and fitted to the image size.

Transformers that take an image size and a patch size get them. Where convolutions or pools halve
the map, as many leading halvings go as in torchvision's MobileNet. Nothing is downloaded.
"""

import inspect
from collections import OrderedDict

import torch
from torch import nn

from scdd.errors import ConfigError
from scdd.models.halvings import Unadaptable, adapt_unlisted, on_meta
from scdd.models.stems import leading_drops
from scdd.models.vit import MOST_SIDE, patch_size

CHILD = "net"
"""The net of timm is this child of ours: it has children of its own named `head` and `stem`."""


def timm_names() -> list[str]:
    """Names of all nets of timm."""
    from timm import list_models

    return list_models()


def timm_head(arch: str) -> str:
    """Path of the classifier in our net.

    Raises:
        ConfigError: if timm names several classifiers, or none.
    """
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(arch)
    if cfg is None or not isinstance(cfg.classifier, str):
        raise _no_single_classifier(arch)
    return f"{CHILD}.{cfg.classifier}"


def timm_net(arch: str, num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the net for images [B, 3, size, size] and say how its geometry differs from stock.

    Raises:
        ConfigError: if its classifier is not one linear layer, or it cannot be fitted to the size.
    """
    import timm

    with torch.device("meta"):
        stock = timm.create_model(arch, pretrained=False, num_classes=num_classes)
    sizes, leading, changes = _sizes(arch, stock, image_size)
    try:
        net = timm.create_model(arch, pretrained=False, num_classes=num_classes, **sizes)
        changes += adapt_unlisted(net, leading, image_size)
        logits = on_meta(net, torch.empty(2, 3, image_size, image_size))
    except Exception as error:  # each family has its own way to say that a size does not suit it
        reason = f" ({error})" if isinstance(error, Unadaptable) else ""
        raise ConfigError(
            f"{arch}: this net of timm cannot be fitted to images of {image_size} px{reason}; "
            "choose another image size or another net"
        ) from error
    classifier = net.get_submodule(timm_head(arch).removeprefix(f"{CHILD}."))
    if not isinstance(classifier, nn.Linear) or logits.shape != (2, num_classes):
        raise _no_single_classifier(arch)
    return nn.Sequential(OrderedDict([(CHILD, net)])), changes


def _no_single_classifier(arch: str) -> ConfigError:
    return ConfigError(
        f"{arch}: this net of timm does not end in one linear classifier; choose another net"
    )


def _sizes(
    arch: str, stock: nn.Module, image_size: int
) -> tuple[dict[str, int], int, tuple[str, ...]]:
    """Arguments of the net, halvings that its convolutions have to lose, changes in words."""
    leading = leading_drops("mobile", image_size)
    arguments = inspect.signature(type(stock).__init__).parameters
    if "img_size" not in arguments:
        return {}, leading, ()
    stock_size = stock.pretrained_cfg["input_size"][-1]
    stock_patch = _patch_of(stock)
    if "patch_size" not in arguments or not stock_patch:
        # Behind a stem without these halvings the maps are those of an image so much larger.
        size = image_size << leading
        if size == stock_size:
            return {}, leading, ()
        return {"img_size": size}, leading, (f"sized for {size} px",)
    patch = stock_patch
    divides = image_size % patch == 0
    if stock.feature_info[-1]["reduction"] > stock_patch:  # stages, which merge patches
        patch = max(1, stock_patch >> leading)
    elif not divides or image_size < min(stock_size, MOST_SIDE * patch):
        patch = patch_size(image_size, arch)
    if (image_size, patch) == (stock_size, stock_patch):
        return {}, 0, ()
    side = image_size // patch
    changes = (f"patch {patch}, {side}x{side} tokens",)
    return {"img_size": image_size, "patch_size": patch}, 0, changes


def _patch_of(stock: nn.Module) -> int | None:
    """Side of the square patches, where the first layer reads each pixel for one of them alone."""
    for module in stock.modules():
        layers = (m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        if hasattr(module, "patch_size") and (layer := next(layers, None)):
            side = module.patch_size
            side = side if isinstance(side, int) else side[0]
            alone = getattr(layer, "stride", (side, side)) == (side, side)
            return side if alone and layer.weight[0].numel() == 3 * side**2 else None
    return None
