"""The objective of recovery (SC-DD, Eq. 8 and 9) for groups of independent batches."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.bn_statistics import MatchedBatchNorm, with_matched_statistics
from scdd.config.recover import RecoverConfig
from scdd.errors import ConfigError
from scdd.recovery.views import View, render


class Terms(NamedTuple):
    """The loss of G batches and what it is made of."""

    total: Tensor
    """[]: the sum over the batches, so that every image gets the gradient it would get alone."""
    class_loss: Tensor
    """[G]."""
    matching_loss: Tensor
    """[G]: the sum of the distances by the weights of the settings, without alpha and what
    `learn_weights` has learnt."""
    distances: Tensor
    """[K, 2, G] of K layers, mean and variance, as the network measures them."""


class RecoveryLoss(nn.Module):
    """A teacher as a loss on images: no hooks, so all of it can be compiled.

    Args:
        teacher: classifier of normalised images.
        cfg: the terms and their weights.
        groups: G, independent batches in one forward pass.
        bf16: whether the teacher computes in bf16; all else is in fp32.

    Raises:
        ConfigError: if a weight is given for a layer that the teacher lacks.
        ValueError: if the teacher has no BatchNorm.
    """

    weights: Tensor
    """[K, 2, 1]: beta_k and gamma_k, with the scale of the distances."""

    def __init__(self, teacher: nn.Module, cfg: RecoverConfig, groups: int, bf16: bool) -> None:
        super().__init__()
        self.cfg, self.groups, self.bf16 = cfg, groups, bf16
        self.matched = with_matched_statistics(teacher, groups)
        self.register_buffer("weights", _weights(cfg, self.matched.layers)[..., None])
        shape = (*self.weights.shape[:2], groups)
        self.log_scale = nn.Parameter(torch.zeros(shape)) if cfg.learn_weights else None
        """s of `learn_weights`, of every batch its own."""

    def forward(self, images: Tensor, labels: Tensor, view: View | None, alpha: Tensor) -> Terms:
        """Return the loss of normalised images [G * B, 3, S, S] with labels int64 [G * B].

        `alpha` [] is the weight of the matching loss.
        """
        cfg = self.cfg
        seen = render(images, view).to(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            logits, distances = self.matched(seen)
        with torch.autocast(images.device.type, enabled=False):
            each = F.cross_entropy(
                logits.float() / cfg.temperature,
                labels,
                reduction="none",
                label_smoothing=cfg.label_smoothing,
            )
            class_loss = each.unflatten(0, (self.groups, -1)).mean(dim=1)
            weighted = self.weights * distances
            matching_loss = weighted.sum(dim=(0, 1))
            if self.log_scale is not None:
                weighted = weighted * torch.exp(-self.log_scale) + self.log_scale
            total = (class_loss + alpha * weighted.sum(dim=(0, 1))).sum()
            if cfg.tv or cfg.l2:
                batches = seen.unflatten(0, (self.groups, -1))
                total = total + cfg.tv * total_variation(batches) + cfg.l2 * _norms(batches)
        return Terms(total, class_loss.detach(), matching_loss.detach(), distances.detach())


def total_variation(batches: Tensor) -> Tensor:
    """Sum of the norms of the differences between neighbours in batches [G, B, C, H, W].

    Four norms a batch: to the right, down, and along both diagonals (the prior of DeepInversion,
    arXiv:1912.08795).
    """
    pairs = (
        (batches[..., :, :-1], batches[..., :, 1:]),
        (batches[..., :-1, :], batches[..., 1:, :]),
        (batches[..., :-1, :-1], batches[..., 1:, 1:]),
        (batches[..., 1:, :-1], batches[..., :-1, 1:]),
    )
    return torch.stack([_norms(one - other) for one, other in pairs]).sum()


def _norms(batches: Tensor) -> Tensor:
    return torch.linalg.vector_norm(batches.flatten(1), dim=1).sum()


def _weights(cfg: RecoverConfig, layers: list[MatchedBatchNorm]) -> Tensor:
    """beta_k and gamma_k [K, 2], divided by what relative distances are relative to."""
    weights = torch.ones(len(layers), 2)
    weights[0] = cfg.first_bn_multiplier
    for number, pair in cfg.layer_weights.items():
        if number >= len(layers):
            raise ConfigError(
                f"recover.layer_weights: there is no layer {number}; the teacher has "
                f"{len(layers)} BatchNorm layers, counted from 0"
            )
        weights[number] = torch.tensor(pair)
    if cfg.matching == "relative":
        norms = [
            torch.stack([layer.running_var.sum().sqrt(), layer.running_var.norm()])
            for layer in layers
        ]
        weights = weights / torch.stack(norms).clamp(min=1e-12) / weights.sum(dim=0)
    return weights
