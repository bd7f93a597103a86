"""BatchNorm statistics of a batch, held against those that training left in a network."""

import copy

import torch
from torch import Tensor, nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class MatchedBatchNorm(nn.Module):
    """An eval-mode BatchNorm that also keeps how far its latest input is from its statistics.

    No hook and one pass: the input less the running mean gives both statistics without cancelling.
    """

    running_mean: Tensor
    running_var: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.groups = 1
        """Independent batches in the input, one after the other and of one size."""
        self.distances: Tensor | None = None
        """[2, G] of the latest input: ||mean - running mean||_2 and ||var - running var||_2."""
        self.register_buffer("running_mean", norm.running_mean.detach().float().clone())
        self.register_buffer("running_var", norm.running_var.detach().float().clone())
        scale = torch.rsqrt(self.running_var + norm.eps)
        shift = -self.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight.detach(), shift * norm.weight.detach()
            shift = shift + norm.bias.detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [G * B, C, ...] by the running statistics; compare each batch with them."""
        wide = (1, -1) + (1,) * (x.ndim - 2)
        centred = (x.float() - self.running_mean.view(wide)).unflatten(0, (self.groups, -1))
        axes = (1, *range(3, centred.ndim))
        off = centred.mean(axes)
        variance = centred.square().mean(axes) - off.square()
        self.distances = torch.stack(
            [
                torch.linalg.vector_norm(off, dim=1),
                torch.linalg.vector_norm(variance - self.running_var, dim=1),
            ]
        )
        return x * self.scale.view(wide).to(x.dtype) + self.shift.view(wide).to(x.dtype)


class MatchedTeacher(nn.Module):
    """A frozen copy of a network that also measures how far a batch is from its statistics."""

    def __init__(self, teacher: nn.Module, groups: int = 1) -> None:
        super().__init__()
        self.net = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.layers = _replace_batchnorm(self.net)
        """In the order of registration."""
        for layer in self.layers:
            layer.groups = groups

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [G * B, C] of normalised images and the distances [K, 2, G] of K layers.

        Distances are of the layers' inputs: norms, not squared, of the differences between batch
        statistics (biased variance) and running statistics, mean and then variance (SC-DD, Eq. 8).
        """
        logits = self.net(x)
        distances = torch.stack([layer.distances for layer in self.layers])  # type: ignore[misc]
        for layer in self.layers:
            layer.distances = None
        return logits, distances


def with_matched_statistics(teacher: nn.Module, groups: int = 1) -> MatchedTeacher:
    """Return a copy of `teacher` for `groups` independent batches in one input.

    Raises:
        ValueError: if the network has no BatchNorm with running statistics.
    """
    return MatchedTeacher(teacher, groups)


def count_batchnorm(module: nn.Module) -> int:
    """Number of layers whose statistics can be matched."""
    return sum(
        isinstance(part, BatchNorm) and part.running_mean is not None for part in module.modules()
    )


def _replace_batchnorm(net: nn.Module) -> list[MatchedBatchNorm]:
    layers: list[MatchedBatchNorm] = []
    for name, module in list(net.named_modules()):
        if isinstance(module, BatchNorm) and module.running_mean is not None:
            matched = MatchedBatchNorm(module)
            parent_name, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent_name), child, matched)
            layers.append(matched)
    if not layers:
        raise ValueError(
            f"{type(net).__name__} has no BatchNorm layer, so its statistics cannot be matched; "
            "choose a teacher with BatchNorm"
        )
    return layers
