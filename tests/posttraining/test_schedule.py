"""Learning rates against the schedulers of torch, stepped beside them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from scdd.config.posttrain import PosttrainConfig
from scdd.posttraining import learning_rate

EPOCHS, EACH, LR = 20, 3, 0.3


def settings(**changes: Any) -> PosttrainConfig:
    return PosttrainConfig(**({"epochs": EPOCHS, "lr": LR} | changes))


def rates(cfg: PosttrainConfig) -> list[float]:
    return [learning_rate(cfg, step, EACH) for step in range(EPOCHS * EACH)]


def of_torch(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def by_epoch(found: list[float]) -> list[float]:
    return [rate for rate in found for _ in range(EACH)]


@pytest.mark.parametrize("gamma", [0.5, 0.2])
def test_multistep_is_that_of_torch_at_shares_of_the_training(gamma: float):
    cfg = settings(lr_schedule="multistep", gamma=gamma)  # at 80, 90 and 95 %
    steps, epochs = [48, 54, 57], [16, 18, 19]
    wanted = of_torch(lambda o: MultiStepLR(o, steps, gamma), EPOCHS * EACH)
    assert rates(cfg) == pytest.approx(wanted)
    wanted = by_epoch(of_torch(lambda o: MultiStepLR(o, epochs, gamma), EPOCHS))
    assert rates(settings(**(cfg.model_dump() | {"schedule": "epoch"}))) == pytest.approx(wanted)


def test_a_milestone_within_an_epoch_counts_from_the_next_one_where_rates_are_set_by_epoch():
    cfg = settings(lr_schedule="multistep", milestones=(0.51,))
    assert [rate / LR for rate in rates(cfg)] == pytest.approx([1.0] * 31 + [0.5] * 29)
    cfg = settings(lr_schedule="multistep", milestones=(0.51,), schedule="epoch")
    assert [rate / LR for rate in rates(cfg)] == pytest.approx([1.0] * 33 + [0.5] * 27)


def test_ssrs_is_the_smoothed_cosine_and_then_a_line_to_zero():
    cfg = settings(lr_schedule="ssrs", stretch=2.0)
    turn, total = 50, EPOCHS * EACH
    smooth = of_torch(lambda o: CosineAnnealingLR(o, 2 * total), turn + 1)
    assert rates(cfg)[: turn + 1] == pytest.approx(smooth)
    peak = LR * (1 + math.cos(5 * math.pi / 12)) / 2
    line = [peak * (total - step) / (total - turn) for step in range(turn, total)]
    assert rates(cfg)[turn:] == pytest.approx(line)


@pytest.mark.parametrize("start", [0.01, 0.5])
def test_a_warm_up_from_a_share_is_that_of_torchvisions_scripts(start: float):
    def make(optimizer: torch.optim.Optimizer) -> LRScheduler:
        warmup = LinearLR(optimizer, start_factor=start, total_iters=5)
        return SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, EPOCHS - 5)], [5])

    cfg = settings(warmup_epochs=5, warmup_from=start, schedule="epoch")
    assert rates(cfg) == pytest.approx(by_epoch(of_torch(make, EPOCHS)))


def test_a_warm_up_stands_before_every_curve_and_moves_no_milestone():
    plain = settings(lr_schedule="multistep")
    warm = settings(lr_schedule="multistep", warmup_epochs=2)
    assert rates(warm)[:6] == pytest.approx([LR * step / 6 for step in range(6)])
    assert rates(warm)[6:] == rates(plain)[6:]
