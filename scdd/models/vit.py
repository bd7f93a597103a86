"""ViT-Tiny (timm's vit_tiny_patch16_224) with a patch size and a start that suit the images."""

from collections import OrderedDict

import torch
from torch import nn

from scdd.errors import ConfigError

STOCK_SIZE, STOCK_PATCH, WIDTH = 224, 16, 192
MOST_SIDE, LEAST_PATCH = 8, 4
"""Small images: 8x8 tokens, but no patch below 4 px, which would say too little to be a token."""

POSITION_SCALE, BLOCK_SCALE = 25.0, 3.0
"""Of the initial values below STOCK_SIZE: see `_enlarge_start`."""


def patch_size(image_size: int, arch: str = "vit_tiny") -> int:
    """Side of the square patches of `arch`, in pixels, for square images of `image_size` pixels.

    Among the divisors of the size the one whose tokens come closest to 8x8 (fewer below 32 px,
    as a patch has at least 4 px), or from 224 px up to patches of 16 px; between two equally
    close the one with more tokens.

    Raises:
        ConfigError: if every divisor gives less than half or more than twice that many tokens
            a side, as for primes.
    """
    small = image_size < STOCK_SIZE
    wanted = min(MOST_SIDE, image_size / LEAST_PATCH) if small else image_size / STOCK_PATCH
    sides = [n for n in range(1, image_size // LEAST_PATCH + 1) if image_size % n == 0]
    sides = [n for n in sides if wanted / 2 <= n <= wanted * 2]
    if not sides:
        raise ConfigError(
            f"{arch}: {image_size} px does not divide into about {wanted:.0f}x{wanted:.0f} equal "
            f"patches; choose an image size that is a multiple of {8 if small else STOCK_PATCH}"
        )
    return image_size // min(sides, key=lambda n: (abs(n - wanted), -n))


def vit_tiny(num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the net and say how its geometry differs from stock; images [B, 3, size, size].

    The transformer is the child `backbone` and the classifier the child `fc`, because timm's own
    name of the classifier, `head`, is a plain attribute of every net of `create_model`.
    """
    patch = patch_size(image_size)
    from timm.models import create_model  # takes a second to import; only this net needs it

    backbone = create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        img_size=image_size,
        patch_size=patch,
        num_classes=0,
    )
    fc = nn.Linear(WIDTH, num_classes)
    nn.init.trunc_normal_(fc.weight, std=0.02)
    nn.init.zeros_(fc.bias)
    tokens = image_size // patch
    stock = (image_size, patch) == (STOCK_SIZE, STOCK_PATCH)
    changes: tuple[str, ...] = () if stock else (f"patch {patch}, {tokens}x{tokens} tokens",)
    if image_size < STOCK_SIZE:
        _enlarge_start(backbone)
        changes += (
            f"initial position embeddings x {POSITION_SCALE:g}, block weights x {BLOCK_SCALE:g}",
        )
    return nn.Sequential(OrderedDict(backbone=backbone, fc=fc)), changes


@torch.no_grad()
def _enlarge_start(backbone: nn.Module) -> None:
    """Scale what timm starts too small for a short training on small images, in place.

    Position embeddings of std 0.02 are lost beside patch embeddings of small images (std about
    0.5), and weights of the same std shrink every branch to almost nothing at a width of 192.
    Stock trainings have epochs to grow both.
    """
    backbone.get_parameter("pos_embed").mul_(POSITION_SCALE)
    for module in backbone.get_submodule("blocks").modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(BLOCK_SCALE)
