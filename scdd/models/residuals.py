"""Residual branches that start at zero (section 5.1 of arXiv:1706.02677)."""

from torch import nn

from scdd.errors import ConfigError


def zero_init_residual(model: nn.Module) -> None:
    """Set the scale of the last BatchNorm of each residual block to 0, in place.

    For ResNets of basic or bottleneck blocks: each then starts as its shortcut.

    Raises:
        ConfigError: if the net has no such block.
    """
    # Both kinds of block, ours and torchvision's, number their BatchNorms and name the shortcut.
    blocks = [m for m in model.modules() if hasattr(m, "downsample") and hasattr(m, "bn2")]
    if not blocks:
        raise ConfigError(
            f"squeeze.zero_init_residual: {model.arch} has no residual blocks of a ResNet; "
            "switch it off or choose a ResNet"
        )
    for block in blocks:
        last = getattr(block, "bn3", block.bn2)
        assert isinstance(last, nn.BatchNorm2d)
        nn.init.zeros_(last.weight)
