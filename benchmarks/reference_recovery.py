"""The loop that recovery is measured against: the released code's, written from the paper."""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms

from scdd.augment import normalise
from scdd.config.recover import RecoverConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def watched(teacher: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """A copy of a net, and a list that gets the distance of each BatchNorm layer in each pass."""
    net = copy.deepcopy(teacher).to(memory_format=torch.contiguous_format)
    distances: list[Tensor] = []

    def compare(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        mean = inputs[0].mean(dim=(0, 2, 3))
        by_channel = inputs[0].permute(1, 0, 2, 3).contiguous().flatten(1)
        variance = by_channel.var(dim=1, correction=0)
        off_mean, off_variance = norm.running_mean - mean, norm.running_var - variance
        distances.append(off_mean.norm() + off_variance.norm())

    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(compare)
    return net, distances


def reference_losses(
    net: nn.Module, distances: list[Tensor], seen: Tensor, labels: Tensor, first: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and matching loss of a watched net, the latter by Eq. 8 and Table 5."""
    distances.clear()
    class_loss = F.cross_entropy(net(seen), labels)
    weights = [first, *[1.0] * (len(distances) - 1)]
    matching_loss = sum(w * d for w, d in zip(weights, distances, strict=True))
    assert isinstance(matching_loss, Tensor)
    return class_loss, matching_loss


def reference(
    cfg: RecoverConfig,
    labels: Tensor,
    size: int,
    net: nn.Module,
    distances: list[Tensor],
    iterations: int,
    advance: Callable[[str], None],
) -> None:
    """Recover one batch by the loop that the released code has: eager, fp32, NCHW, with hooks.

    Leaner than it: no priors of weight 0, nothing computed a second time to be printed.
    """
    device = labels.device
    low, high = (
        normalise(torch.full((1, 3, 1, 1), edge), MEAN, STD).to(device) for edge in (0.0, 1.0)
    )
    x = torch.randn(len(labels), 3, size, size, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=cfg.lr, betas=cfg.betas)
    # Not antialiased: a crop is enlarged, so nothing differs but the time.
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, cfg.crop_scale, antialias=False),
            transforms.RandomHorizontalFlip(),
        ]
    )
    history = []
    for step in range(iterations):
        for settings in optimizer.param_groups:
            settings["lr"] = cfg.lr / 2 * (1 + math.cos(math.pi * step / iterations))
        shift = torch.randint(cfg.roll + 1, (2,)).tolist()
        seen = torch.roll(view(x), shift, dims=(2, 3))
        class_loss, matching_loss = reference_losses(
            net, distances, seen, labels, cfg.first_bn_multiplier
        )
        optimizer.zero_grad()
        (class_loss + cfg.alpha * matching_loss).backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
        history.append((class_loss.item(), matching_loss.item()))
        advance("")
