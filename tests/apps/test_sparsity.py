"""The L1 pull: its gradient, its arithmetic against real SGD, and the rates of our training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset
from scdd.stages.posttrain import learning_rate, train_student
from scdd_apps.prune.channels import Coupled
from scdd_apps.prune.results import warnings_of
from scdd_apps.prune.sparsity import l1_pull, l1_strength, scale_histogram, share_near_zero

SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}


def test_l1_adds_exactly_strength_times_sign_to_the_gradient():
    scale = nn.Parameter(torch.tensor([0.5, -0.25, 0.0, 2.0]))
    scale.grad = torch.tensor([1.0, 2.0, 3.0, -4.0])
    l1_pull([scale], 0.125)()
    assert scale.grad.tolist() == [1.125, 1.875, 3.0, -3.875]
    assert scale.tolist() == [0.5, -0.25, 0.0, 2.0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("pull", [0.5, 1.5])
def test_sgd_on_a_scale_alone_moves_it_by_the_pull(momentum: float, pull: float):
    cfg = PosttrainConfig(**SGD, momentum=momentum, epochs=50)
    strength = l1_strength(pull, cfg, steps_per_epoch=8)
    far, near = nn.Parameter(torch.tensor([10.0, -10.0])), nn.Parameter(torch.tensor([pull / 2]))
    optimizer = torch.optim.SGD([far, near], lr=0.1, momentum=momentum)
    for step in range(50 * 8):
        optimizer.param_groups[0]["lr"] = learning_rate(cfg, step, 8)
        for scale in (far, near):
            scale.grad = torch.zeros_like(scale)
        l1_pull([far, near], strength)()
        optimizer.step()
    moved = 10 - far.abs()
    assert (moved <= pull + 1e-4).all() and (moved >= 0.95 * pull).all()  # the tail of the momentum
    assert near.abs().item() < 0.05 * pull  # what is closer to 0 than the pull gets there


class WithIdleScale(nn.Module):
    """A small network with a scale that no loss depends on, so that L1 alone moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
        self.scale = nn.Parameter(torch.tensor([10.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x) + 0 * self.scale


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"schedule": "epoch"},
        {"warmup_epochs": 2},
        {"stretch": 2.0, "warmup_epochs": 1, "schedule": "epoch"},
    ],
    ids=str,
)
def test_the_rates_are_those_of_the_real_training(schedule: dict[str, Any], small_file: Path):
    cfg = PosttrainConfig(**SGD, momentum=0.0, epochs=5, batch=5, **schedule)
    data = DistilledDataset.open(small_file)
    net = WithIdleScale()
    pull = l1_pull([net.scale], 0.01)
    train_student(cfg, net, data, "soft", 0, torch.device("cpu"), after_backward=pull)
    assert data.steps(5) == 3
    rates = [learning_rate(cfg, step, 3) for step in range(15)]
    assert 10 - net.scale.item() == pytest.approx(0.01 * sum(rates), rel=1e-3)


def test_the_share_of_small_scales_and_their_histogram_count_channels():
    norm = nn.BatchNorm2d(8)
    norm.weight.data = torch.tensor([0.0, 0.009, -0.009, 0.011, 1.0, -1.0, 0.5, 0.02])
    layers = [Coupled("conv", (nn.Conv2d(3, 8, 1),), (norm,))]
    assert share_near_zero(layers) == 3 / 8
    # Below .01, .01 - .03, .03 - .1, .1 - .3, .3 - 1, from 1.
    assert scale_histogram(layers) == [3, 2, 0, 0, 1, 2]


def rows_of(kept: float, new: float) -> list[dict[str, Any]]:
    common = {"arm": "distilled", "share_near_zero": 0.5}
    return [
        {**common, "ratio": 0.0, "channels": "slimming", "top1": {"fine-tuned": kept}},
        {**common, "ratio": 0.5, "channels": "slimming", "top1": {"fine-tuned": kept}},
        {**common, "ratio": 0.5, "channels": "scratch", "top1": {"fine-tuned": new}},
    ]


def test_a_sparsity_training_that_did_harm_is_told_by_the_new_weights():
    plan: Any = SimpleNamespace(has_l1=True, pull=1.5)
    (line,) = filter(None, warnings_of(plan, rows_of(10.0, 55.2)))
    assert "ends at 10.0 %" in line and "new weights at ratio 0.5 at 55.2 %" in line
    assert warnings_of(plan, rows_of(90.0, 94.0)) == []
