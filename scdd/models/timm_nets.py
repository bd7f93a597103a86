"""Any net of timm under its own name, randomly initialised and fitted to the image size.

Transformers that take an image size and a patch size get them. Where convolutions or pools halve
the map, as many leading halvings go as in torchvision's MobileNet. Nothing is downloaded.
"""

import inspect
from collections import OrderedDict
from typing import Any, NamedTuple

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
    fit = _fit(arch, stock, image_size)
    try:
        net = timm.create_model(
            arch,
            pretrained=False,
            num_classes=num_classes,
            img_size=fit.img_size,  # timm leaves out what is None
            patch_size=fit.patch_size,
        )
        changes = fit.changes + adapt_unlisted(net, fit.leading, image_size)
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


class _Fit(NamedTuple):
    """What makes a net suit an image size."""

    leading: int
    """Halvings that its convolutions and pools have to lose."""
    img_size: int | None = None
    patch_size: int | None = None
    """In pixels, arguments of timm."""
    changes: tuple[str, ...] = ()
    """In words, without those of the halvings."""


def _fit(arch: str, stock: Any, image_size: int) -> _Fit:
    leading = leading_drops("mobile", image_size)
    arguments = inspect.signature(type(stock).__init__).parameters
    if "img_size" not in arguments:
        return _Fit(leading)
    stock_size = stock.pretrained_cfg["input_size"][-1]
    stock_patch = _patch_of(stock)
    if "patch_size" not in arguments or not stock_patch:
        # Behind a stem without these halvings the maps are those of an image so much larger.
        size = image_size << leading
        if size == stock_size:
            return _Fit(leading)
        return _Fit(leading, size, changes=(f"sized for {size} px",))
    patch = stock_patch
    divides = image_size % patch == 0
    if stock.feature_info[-1]["reduction"] > patch:  # stages, which merge patches
        patch = max(1, patch >> leading)
    elif not divides or image_size < min(stock_size, MOST_SIDE * patch):
        patch = patch_size(image_size, arch)
    if (image_size, patch) == (stock_size, stock_patch):
        return _Fit(0)
    side = image_size // patch
    return _Fit(0, image_size, patch, (f"patch {patch}, {side}x{side} tokens",))


def _patch_of(stock: nn.Module) -> int | None:
    """Side of the square patches, where the first layer reads each pixel for one of them alone."""
    embedding: Any = next((m for m in stock.modules() if hasattr(m, "patch_size")), nn.Identity())
    layers = (m for m in embedding.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    first: Any = next(layers, None)
    if first is None:
        return None
    side = embedding.patch_size
    side = side if isinstance(side, int) else side[0]
    alone = getattr(first, "stride", (side, side)) == (side, side)
    return side if alone and first.weight[0].numel() == 3 * side**2 else None
