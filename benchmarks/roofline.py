"""What a device can do at most, and what an iteration of recovery asks of it."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")

CEILINGS = {"cuda": (8192, (128, 256, 56), 2**30), "cpu": (1024, (16, 128, 32), 2**27)}
"""By kind of device: side of the matrices, (batch, channels, side) of the convolution, bytes of the
copy."""


def by_kind(table: dict[str, T], device: torch.device) -> T:
    """What holds for a device; for other accelerators, what holds for a CPU."""
    return table.get(device.type, table["cpu"])


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of(net: nn.Module, size: int) -> int:
    """Of an image in an iteration: forward, and backward to the image but not to the weights."""
    counter = FlopCounterMode(display=False)
    image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device, requires_grad=True)
    with counter:
        net(image).sum().backward()
    return int(counter.get_total_flops())


def values_of(net: nn.Module, size: int) -> int:
    """How many values an image moves in an iteration, at the least.

    Every layer reads its input and writes its output, and back again; activation functions and
    sums are done on the way, and weights are not counted, as they serve the whole group.
    """
    moved = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += 2 * (inputs[0].numel() + output.numel())

    layers = nn.Conv2d | nn.BatchNorm2d | nn.Linear | nn.MaxPool2d | nn.AdaptiveAvgPool2d
    hooks = [m.register_forward_hook(add) for m in net.modules() if isinstance(m, layers)]
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size, device=next(net.parameters()).device))
    for hook in hooks:
        hook.remove()
    return moved


def ceilings(device: torch.device, dtype: torch.dtype, seconds: float) -> tuple[float, float]:
    """FLOP/s of a large product or 3x3 convolution, whichever has more, and byte/s of a copy."""
    side, (count, channels, width), size = by_kind(CEILINGS, device)
    one, other = torch.randn(2, side, side, device=device, dtype=dtype)
    shape = (count, channels, width, width)
    images = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    kernel = kernel.to(memory_format=torch.channels_last)
    source = torch.arange(size // 8, device=device)
    target = torch.empty_like(source)
    product = fastest(lambda: one @ other, device, seconds)
    convolution = fastest(lambda: F.conv2d(images, kernel, padding=1), device, seconds)
    copying = fastest(lambda: target.copy_(source), device, seconds)
    work = 2 * images.numel() * channels * 9
    return max(2 * side**3 / product, work / convolution), 2 * size / copying


def fastest(function: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Least time of a call, of at least two after the first."""
    function()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        wait(device)
        started = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - started)
    return min(times)
