"""What the tests of the objectives with multi-crop share: small views, and steps of training."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from scdd.checkpoint import NO_CHECKPOINT
from scdd.config.objectives import ObjectiveConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.datasets.sources import ResidentSource
from scdd.objectives import Batch, Objective
from scdd.stages.squeeze import squeeze
from scdd.training import clip_each

SIZE, LOCAL, COUNT = 16, 8, 6


def batch(step: int = 0, local: int = 3) -> Batch:
    """Two global views and some local ones of COUNT images of noise."""
    draw = torch.Generator().manual_seed(100 + step)
    sides = [SIZE] * 2 + [LOCAL] * local
    views = tuple(torch.randn(COUNT, 3, side, side, generator=draw) for side in sides)
    return Batch(views, torch.zeros(COUNT).long(), torch.arange(COUNT), draw)


def train(
    objective: Objective, optimizer: torch.optim.Optimizer, epochs: list[float]
) -> list[float]:
    """Steps at these of ten epochs, as squeeze makes them; the losses."""
    losses = []
    for epoch in epochs:
        objective.on_step_begin(epoch, 10)
        loss = objective(batch(int(10 * epoch))).value
        optimizer.zero_grad()
        loss.backward()
        objective.on_backward_end()
        clip_each(objective, 3.0)
        optimizer.step()
        objective.on_step_end()
        losses.append(loss.item())
    return losses


def assert_goes_on_from_its_state_dict(
    fresh: Callable[[], tuple[Objective, torch.optim.Optimizer]],
) -> None:
    """A fresh objective that is given the state of a trained one takes the same next steps.

    `fresh` makes an objective and an optimizer that remembers nothing.
    """
    whole, optimizer = fresh()
    train(whole, optimizer, [0.0, 0.1, 0.2, 0.3])
    saved = copy.deepcopy(whole.state_dict())
    wanted = train(whole, optimizer, [0.4, 0.5, 0.6])
    resumed, optimizer = fresh()
    train(resumed, optimizer, [2.0])  # elsewhere by now
    resumed.load_state_dict(saved)
    assert train(resumed, optimizer, [0.4, 0.5, 0.6]) == wanted
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def assert_close_gradients(mine: nn.Module, truth: nn.Module) -> None:
    """Of each tensor within rounding; a bias before BatchNorm has nothing but rounding."""
    wanted = {name: p.grad for name, p in truth.named_parameters() if p.grad is not None}
    rounding = 1e-6 * max(gradient.norm() for gradient in wanted.values())
    found = {name: p.grad for name, p in mine.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        error = (found[name] - gradient).norm()
        assert error <= 2e-4 * gradient.norm() + rounding, name


def sixty_steps(settings: ObjectiveConfig) -> tuple[Objective, list[dict[str, Any]]]:
    """Squeeze 256 images that a crop of any size tells apart: a colour each, under noise.

    Returns the objective and what was logged, epoch by epoch.
    """
    draw = torch.Generator().manual_seed(0)
    colour = torch.randint(40, 216, (256, 3, 1, 1), generator=draw)
    images = (colour + torch.randint(-40, 40, (256, 3, SIZE, SIZE), generator=draw)).byte()
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    source = ResidentSource(images, torch.arange(256) % 4, tuple("abcd"), mean, std)
    cfg = SqueezeConfig(
        arch="resnet8",
        objective=settings,
        epochs=10,
        batch=40,
        optimizer="adamw",
        lr=2e-3,
        views=(
            ViewConfig(count=2, crop_scale=(0.3, 1.0), jitter=0, grey=0),
            ViewConfig(count=4, size=LOCAL, crop_scale=(0.1, 0.4), jitter=0, grey=0),
        ),
        knn_every=0,
    )
    lines: list[dict[str, Any]] = []
    objective = squeeze(
        cfg,
        source,
        source,
        SIZE,
        0,
        torch.device("cpu"),
        NO_CHECKPOINT,
        lambda stage, **values: lines.append(values),
    )
    return objective, lines
