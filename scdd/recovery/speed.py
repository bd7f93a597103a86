"""How recovery is computed: batches in one pass, compiled or not. None of it changes the method."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scdd.compiling import compiled_or_plain, is_worth_compiling
from scdd.config.recover import RecoverConfig
from scdd.recovery.loss import RecoveryLoss, Terms
from scdd.recovery.views import draw_views
from scdd.training import evaluating

GAIN = 1.1
"""How much faster twice the group has to be to be worth its memory."""
TRIALS = 3


def worth_compiling(
    cfg: RecoverConfig,
    teachers: Sequence[nn.Module],
    images: int,
    size: int,
    device: torch.device,
) -> bool:
    """Whether recovering so many images of `size` px is to be done with compiled teachers."""
    flops = sum(_flops(teacher, size) for teacher in teachers) / len(teachers)
    # Each is compiled, for its share of the iterations.
    work = flops * images * cfg.iterations / len(teachers)
    return is_worth_compiling(cfg.compile, work, device)


def _flops(teacher: nn.Module, size: int) -> float:
    """Of the forward pass of an image and the one back to it: as much, the weights being frozen."""
    counter = FlopCounterMode(display=False)
    with counter, evaluating(teacher), torch.no_grad():
        teacher(torch.zeros(1, 3, size, size, device=next(teacher.parameters()).device))
    return 2.0 * counter.get_total_flops()


def compiled(
    loss: RecoveryLoss, batch: int, size: int, device: torch.device
) -> Callable[..., Terms]:
    """Compile a loss for groups of batches of `batch` images of `size` px, and try it out.

    Raises:
        RunError: if that fails and the configuration insists on it.
    """

    def attempt(fast: Callable[..., Terms]) -> None:
        iterate(fast, loss, batch, size, device)

    mode = "reduce-overhead" if device.type == "cuda" else None
    return compiled_or_plain(loss, attempt, "recover", loss.cfg.compile == "on", mode)


def iterate(
    function: Callable[..., Terms],
    loss: RecoveryLoss,
    batch: int,
    size: int,
    device: torch.device,
) -> None:
    """One forward and backward pass of `loss`, by `function`, on images that nobody needs."""
    x = torch.randn(loss.groups * batch, 3, size, size, device=device, requires_grad=True)
    labels = torch.zeros(len(x), dtype=torch.int64, device=device)
    draws = [torch.Generator() for _ in range(loss.groups)]
    view = draw_views(loss.cfg, size, batch, 0.0, draws)
    shown = None if view is None else view.to(device)
    terms = function(x, labels, shown, torch.ones((), device=device))
    terms.total.backward()
    if loss.log_scale is not None:
        loss.log_scale.grad = None


def fastest_group(rate: Callable[[int], float], most: int) -> int:
    """Double the group as long as that pays and the memory lasts, from 1 up to `most`.

    `rate` tells how many batches a second a group gets through; out of memory, it raises.
    """
    best, fastest, group = 1, 0.0, 1
    while group <= most:
        try:
            found = rate(group)
        except torch.OutOfMemoryError:
            break
        if found < GAIN * fastest:
            break
        best, fastest, group = group, found, 2 * group
    return best


def batches_a_second(
    cfg: RecoverConfig,
    teachers: Sequence[nn.Module],
    group: int,
    batch: int,
    size: int,
    device: torch.device,
    bf16: bool,
) -> float:
    """Time a group on a GPU, without compiling, which takes more memory than with.

    All teachers in turn: the largest one needs the memory, and each has its share of the time.
    """
    losses = [RecoveryLoss(teacher, cfg, group, bf16).to(device) for teacher in teachers]
    torch.cuda.empty_cache()
    for trial in range(1 + TRIALS):
        if trial == 1:
            torch.cuda.synchronize(device)
            started = time.monotonic()
        for loss in losses:
            iterate(loss, loss, batch, size, device)
    torch.cuda.synchronize(device)
    return TRIALS * len(losses) * group / (time.monotonic() - started)
