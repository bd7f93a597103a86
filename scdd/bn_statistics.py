"""BatchNorm statistics of a batch, held against those that training left in a network."""

import copy

import torch
from torch import Tensor, nn


class MatchedBatchNorm2d(nn.Module):
    """An eval-mode BatchNorm2d that also keeps `matching_loss` [] of its latest input."""

    running_mean: Tensor
    running_var: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d, weight: float) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.weight = weight
        self.register_buffer("running_mean", norm.running_mean.detach().float().clone())
        self.register_buffer("running_var", norm.running_var.detach().float().clone())
        scale = torch.rsqrt(self.running_var + norm.eps)
        shift = -self.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight.detach(), shift * norm.weight.detach()
            shift = shift + norm.bias.detach()
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))
        self.matching_loss = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W] by the running statistics; compare the batch with them."""
        var, mean = torch.var_mean(x.float(), dim=(0, 2, 3), unbiased=False)
        self.matching_loss = self.weight * (
            torch.linalg.vector_norm(mean - self.running_mean)
            + torch.linalg.vector_norm(var - self.running_var)
        )
        return x * self.scale.to(x.dtype) + self.shift.to(x.dtype)


class MatchedTeacher(nn.Module):
    """A frozen copy of a network whose forward returns (logits [B, C], matching loss [])."""

    def __init__(self, teacher: nn.Module, first_multiplier: float) -> None:
        super().__init__()
        self.net = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.layers = _replace_batchnorm(self.net, first_multiplier)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Classify normalised images [B, 3, H, W] and sum the matching loss over the layers."""
        logits = self.net(x)
        return logits, torch.stack([layer.matching_loss for layer in self.layers]).sum()


def with_matched_statistics(teacher: nn.Module, first_multiplier: float) -> MatchedTeacher:
    """Return a copy of `teacher` that also measures how far a batch is from its statistics.

    The loss is the sum over BatchNorm layers k of
    c_k * (||batch mean - running mean||_2 + ||batch var - running var||_2) on the layer's input,
    biased variance, norms not squared, c_0 = first_multiplier and 1 for the others
    (SC-DD, Eq. 8; the layers are in order of registration).

    Raises:
        ValueError: if the network has no BatchNorm2d with running statistics.
    """
    return MatchedTeacher(teacher, first_multiplier)


def _replace_batchnorm(net: nn.Module, first_multiplier: float) -> list[MatchedBatchNorm2d]:
    layers: list[MatchedBatchNorm2d] = []
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            matched = MatchedBatchNorm2d(module, first_multiplier if not layers else 1.0)
            parent_name, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent_name), child, matched)
            layers.append(matched)
    if not layers:
        raise ValueError(
            f"{type(net).__name__} has no BatchNorm2d layer, so its statistics cannot be matched; "
            "choose a teacher with BatchNorm"
        )
    return layers
