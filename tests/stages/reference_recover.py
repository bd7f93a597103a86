"""The recovery loop of SC-DD in float64, written from its description: slow, plain, no shared code.

Eager, hooks on the inputs of BatchNorm, torchvision for the crops. Only the random numbers come
from outside, as a list of views, so that both loops can see the same ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv


class View(NamedTuple):
    """Of one iteration: boxes (top, left, height, width) and flips, one or one per image."""

    boxes: Sequence[Sequence[int]]
    flips: Sequence[bool]
    roll: tuple[int, int]


def render(x: Tensor, view: View) -> Tensor:
    """Crop and flip each image [B, 3, S, S] by itself, then shift all of them cyclically."""
    size = x.shape[-1]
    if view.boxes:
        shown = []
        for i, image in enumerate(x):
            one_for_all = len(view.boxes) == 1
            top, left, height, width = view.boxes[0 if one_for_all else i]
            crop = tv.resized_crop(
                image[None], top, left, height, width, size=[size, size], antialias=True
            )
            shown.append(tv.hflip(crop) if view.flips[0 if one_for_all else i] else crop)
        x = torch.cat(shown)
    down, right = view.roll
    rows = [(r - down) % size for r in range(size)]
    columns = [(c - right) % size for c in range(size)]
    return x[:, :, rows][:, :, :, columns]


def losses(net: nn.Module, x: Tensor, labels: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy [] and BatchNorm matching loss [] of a float64 network on what it is shown."""
    terms: list[Tensor] = []

    def compare(norm: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        values = args[0].transpose(0, 1).flatten(1)
        mean = values.mean(dim=1)
        var = ((values - mean[:, None]) ** 2).mean(dim=1)
        weight = first if not terms else 1.0
        assert norm.running_mean is not None and norm.running_var is not None
        off_mean, off_var = mean - norm.running_mean, var - norm.running_var
        terms.append(weight * ((off_mean**2).sum().sqrt() + (off_var**2).sum().sqrt()))

    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(compare) for norm in norms]
    logits = net.eval()(x)
    for handle in handles:
        handle.remove()
    return F.cross_entropy(logits, labels), torch.stack(terms).sum()


def recover(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    views: Sequence[View],
    *,
    total: int,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    alpha: float,
    first: float,
    low: Tensor,
    high: Tensor,
    first_step: int = 0,
) -> tuple[Tensor, list[tuple[float, float]]]:
    """Run one iteration per view out of `total`; return the images and the two losses of each.

    The optimiser is new; the schedule begins at `first_step`.
    """
    moment1, moment2, history = torch.zeros_like(x), torch.zeros_like(x), []
    for step, view in enumerate(views):
        x = x.detach().requires_grad_(True)
        class_loss, matching_loss = losses(net, render(x, view), labels, first)
        (gradient,) = torch.autograd.grad(class_loss + alpha * matching_loss, x)
        history.append((class_loss.item(), matching_loss.item()))
        with torch.no_grad():
            gradient = gradient + weight_decay * x
            moment1 = betas[0] * moment1 + (1 - betas[0]) * gradient
            moment2 = betas[1] * moment2 + (1 - betas[1]) * gradient**2
            unbiased1 = moment1 / (1 - betas[0] ** (step + 1))
            unbiased2 = moment2 / (1 - betas[1] ** (step + 1))
            rate = lr / 2 * (1 + math.cos(math.pi * (first_step + step) / total))
            x = x - rate * unbiased1 / (unbiased2.sqrt() + 1e-8)
            x = torch.minimum(torch.maximum(x, low), high)
    return x.detach(), history
