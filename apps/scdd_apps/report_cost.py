"""What a network costs: parameters, multiply-accumulates, latency, seconds per training step."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset
from scdd.posttraining import Labels, step_batches, student_step
from scdd.seeding import generator
from scdd.training import evaluating, make_optimizer

WARM_UP, FEWEST_ROUNDS, MOST_ROUNDS = 10, 20, 300
SECONDS = 2.0
"""Of timing, per network, once the fewest rounds are done."""


class Latency(NamedTuple):
    """Milliseconds for one image: the median, and what nine of ten stay below."""

    p50: float
    p90: float


def parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image [1, 3, S, S]."""
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    # Not all releases of torch count the fused attention of CPUs; plain products all do.
    plain = sdpa_kernel(SDPBackend.MATH)
    with evaluating(model), torch.no_grad(), plain, counter:
        model(torch.zeros(1, 3, image_size, image_size, device=device))
    return counter.get_total_flops() // 2


@torch.inference_mode()
def latencies(networks: Sequence[Callable[[Tensor], object]], image: Tensor) -> list[Latency]:
    """Time `image`, [1, 3, S, S] on the device of all `networks`, through each of them.

    They take turns, so that a moment in which the machine is busy meets all of them.
    """
    times: list[list[float]] = [[] for _ in networks]
    started = time.monotonic()
    for round_ in range(-WARM_UP, MOST_ROUNDS):
        if round_ == 0:
            started = time.monotonic()
        if round_ >= FEWEST_ROUNDS and time.monotonic() - started > SECONDS * len(networks):
            break
        for network, found in zip(networks, times, strict=True):
            seconds = _timed(network, image)
            if round_ >= 0:
                found.append(1000 * seconds)
    quantiles = torch.tensor([0.5, 0.9], dtype=torch.float64)
    return [
        Latency(*torch.tensor(found, dtype=torch.float64).quantile(quantiles).tolist())
        for found in times
    ]


def _timed(network: Callable[[Tensor], object], image: Tensor) -> float:
    """Seconds of one forward pass, until its result is there."""
    _wait(image.device)
    started = time.perf_counter()
    network(image)
    _wait(image.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(
    cfg: PosttrainConfig, student: nn.Module, data: DistilledDataset, labels: Labels
) -> float:
    """Time one training step of a copy of `student`: rendering, both passes and the update."""
    student = copy.deepcopy(student).to(data.images.device).train()
    optimizer = make_optimizer(student, cfg, decay_all=cfg.decay == "all")
    step = student_step(cfg, student, optimizer, labels)
    return _second_time(
        lambda: step(next(step_batches(cfg, data, labels, 0, generator(0, "apps.estimate"))))
    )


def regression_seconds(net: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Time one step of SGD of a copy of `net` on a batch [B, 3, S, S] and targets [B, d]."""
    net = copy.deepcopy(net).to(images.device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        loss = F.mse_loss(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return _second_time(step)


def _second_time(step: Callable[[], Tensor]) -> float:
    """Seconds until what a step returns is there; the first one pays for what is made once."""
    seconds = 0.0
    for _ in range(2):
        started = time.monotonic()
        step().item()
        seconds = time.monotonic() - started
    return seconds
