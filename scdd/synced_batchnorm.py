"""BatchNorm over the batch of all processes, on any device (torch's own runs on GPUs alone)."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scdd.distributed import rank_and_size, total_with_gradient
from scdd.errors import ConfigError


class SyncedBatchNorm(_BatchNorm):
    """In train mode, normalises [B, C, ...] by mean and variance over the rows of all processes.

    Processes may bring different numbers of rows, even none. Parameters, buffers and the result in
    eval mode are those of nn.BatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape with a channel axis."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        own = x.new_full((1,), x.numel() // x.shape[1])
        sums = total_with_gradient(torch.cat([x.sum(dim=axes), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = total_with_gradient(centred.square().sum(dim=axes)) / count
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        out = centred * scale.view(shape)
        if self.affine:
            out = out + self.bias.view(shape)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        return out.to(input.dtype)


PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SyncedBatchNorm)
"""Layers that normalise and nothing else."""


def synced(module: nn.Module) -> nn.Module:
    """Return `module` with every BatchNorm over all processes; unchanged where there is one.

    The names, values and order of the state dict stay.

    Raises:
        ConfigError: if a BatchNorm does more than normalise, which would be left out.
    """
    if rank_and_size()[1] == 1:
        return module
    if isinstance(module, _BatchNorm):
        if type(module) not in PLAIN:
            raise ConfigError(
                f"layers of type {type(module).__name__} do more than BatchNorm and cannot work "
                "over several processes; use one, or choose a network with plain BatchNorm"
            )
        twin = SyncedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine
        ).train(module.training)
        # The tensors themselves: they bring their device, and whether they learn.
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            setattr(twin, name, tensor)
        return twin
    for name, child in module.named_children():
        setattr(module, name, synced(child))
    return module
