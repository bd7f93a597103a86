"""What a network costs: parameters, multiply-accumulates, seconds per training step."""

import copy
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset
from scdd.posttraining import Labels, step_batches, student_step
from scdd.seeding import generator
from scdd.training import evaluating, make_optimizer


def parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image [1, 3, S, S]."""
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), counter:
        model(torch.zeros(1, 3, image_size, image_size, device=device))
    return counter.get_total_flops() // 2


def step_seconds(
    cfg: PosttrainConfig, student: nn.Module, data: DistilledDataset, labels: Labels
) -> float:
    """Time one training step of a copy of `student`: rendering, both passes and the update."""
    student = copy.deepcopy(student).to(data.images.device).train()
    optimizer = make_optimizer(student, cfg, decay_all=cfg.decay == "all")
    step, seconds = student_step(cfg, student, optimizer, labels), 0.0
    for _ in range(2):  # the first step pays for what is made once
        started = time.monotonic()
        step(next(step_batches(cfg, data, labels, 0, generator(0, "apps.estimate")))).item()
        seconds = time.monotonic() - started
    return seconds
