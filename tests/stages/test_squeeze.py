"""Pre-training: the plain algorithm, learning, and the same weights however it is computed."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.augment import colour, draw_views, resized_crop
from scdd.config.objectives import MocoV2Config
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.objectives import Batch, create_objective
from scdd.seeding import generator, seeded
from tests.stages.conftest import CLASSES, SIZE
from tests.stages.small_squeeze import MakeSource, assert_equal, copied, run, settings


def move(weight: nn.Parameter, memory: Tensor, cfg: SqueezeConfig, lr: float) -> None:
    """One step of SGD or LARS (arXiv:1708.03888, Algorithm 1) on one tensor, by the formula."""
    gradient, matrix = weight.grad, weight.ndim > 1
    assert gradient is not None
    if cfg.clip and gradient.norm() > cfg.clip:
        gradient = gradient * (cfg.clip / gradient.norm())
    decays = matrix or (cfg.decay == "all" and cfg.optimizer != "lars")
    decay = cfg.weight_decay if decays else 0.0
    trust: Tensor | float = 1.0
    if cfg.optimizer == "lars" and matrix:
        trust = 0.001 * weight.norm() / (gradient.norm() + decay * weight.norm())
    memory.mul_(cfg.momentum).add_(trust * (gradient + decay * weight))
    weight.sub_(lr * memory)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"warmup_epochs": 1, "final_lr": 0.01},
        {"final_lr": 0.02, "momentum": 0.5, "clip": 0.02},
        {"weight_decay": 0.3, "decay": "matrices"},
        {"optimizer": "lars", "lr": 3.0, "weight_decay": 0.3, "collapse_below": 0.0},
        {"optimizer": "lars", "lr": 3.0, "weight_decay": 0.0, "collapse_below": 0.0},
    ],
    ids=str,
)
def test_the_loop_is_the_plain_algorithm_with_new_views_at_every_step(
    changes: dict[str, Any], make_source: MakeSource
):
    train, seed = make_source(34), 3
    cfg = settings(**({"weight_decay": 0.1} | changes))
    found, _ = run(cfg, train, make_source(8, seed=1), seed)

    with seeded(seed, "squeeze.init"):
        objective = create_objective(cfg, SIZE, CLASSES, 34).train()
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    memories = [torch.zeros_like(weight) for weight in trained]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (train.mean, train.std))
    before = copied(objective.backbone.state_dict())
    for step in range(cfg.epochs * 4):
        if step % 4 == 0:
            order = torch.randperm(34, generator=generator(seed, "squeeze.order", step // 4))
        rows = order[8 * (step % 4) :][:8]
        views = []
        for drawn in draw_views(cfg.views, 8, SIZE, generator(seed, "squeeze.views", step)):
            boxes = drawn.crop.boxes(torch.tensor([[SIZE, SIZE]]))
            crops = resized_crop(train.images[rows] / 255, boxes, SIZE, drawn.crop.flip)
            views.append((colour(crops, drawn.colour) - mean) / std)
        draw = generator(seed, "squeeze.objective", step)
        objective.zero_grad()
        objective(Batch(tuple(views), train.labels[rows], rows, draw)).value.backward()
        share = (step / 4 - cfg.warmup_epochs) / (cfg.epochs - cfg.warmup_epochs)
        factor = step / 4 / cfg.warmup_epochs if share < 0 else (1 + math.cos(math.pi * share)) / 2
        lr = cfg.final_lr + factor * (cfg.lr - cfg.final_lr)
        with torch.no_grad():
            for weight, memory in zip(trained, memories, strict=True):
                move(weight, memory, cfg, lr)
    wanted = objective.backbone.state_dict()
    for name, mine in found.backbone.state_dict().items():
        torch.testing.assert_close(mine, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
    moved = (before["conv1.weight"] - wanted["conv1.weight"]).norm()
    assert moved > 0.01 * before["conv1.weight"].norm(), "the weights hardly moved"


def test_the_same_seed_gives_the_same_weights_and_another_others(make_source: MakeSource):
    train, val, cfg = make_source(32), make_source(8, seed=1), settings(epochs=1)
    torch.manual_seed(1)
    first, _ = run(cfg, train, val, seed=4)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, _ = run(cfg, train, val, seed=4)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not ours to move"
    assert_equal(first.state_dict(), second.state_dict())
    other, _ = run(cfg, train, val, seed=5)
    assert not torch.equal(*(net.get_parameter("backbone.conv1.weight") for net in (first, other)))


def test_the_loss_falls_once_the_queue_holds_real_keys(make_source: MakeSource):
    cfg = settings(
        epochs=6,
        batch=16,
        optimizer="adamw",
        lr=0.003,
        objective=MocoV2Config(dim=16, queue=64, momentum=0.9),
        views=[ViewConfig(count=2, crop_scale=(0.8, 1.0), flip=0.0)],
    )
    _, lines = run(cfg, make_source(64), make_source(8, seed=1))
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    # In the first epoch the queue still holds random keys, which are easy to tell apart.
    assert lines[-1]["loss"] < lines[1]["loss"] - 0.4


def test_the_backbone_has_features_and_no_head(make_source: MakeSource):
    backbone = run(settings(epochs=1), make_source(32), make_source(8, seed=1))[0].backbone
    assert backbone.num_classes == 0 and backbone.arch == "resnet8"
    assert backbone(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, backbone.feature_dim)


def relative_change(one: nn.Module, other: nn.Module) -> float:
    mine, wanted = (torch.cat([w.flatten() for w in net.parameters()]) for net in (one, other))
    return ((mine - wanted).norm() / wanted.norm()).item()


def test_bf16_on_a_cpu_differs_but_little(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    whole, lines = run(settings(epochs=1), train, val)
    half, rounded = run(settings(epochs=1, precision="bf16"), train, val)
    assert all(tensor.dtype != torch.bfloat16 for tensor in half.state_dict().values())
    assert 1e-6 < relative_change(half.backbone, whole.backbone) < 0.02
    assert rounded[0]["loss"] == pytest.approx(lines[0]["loss"], rel=0.01)


def test_precision_auto_is_full_on_a_cpu(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    one, other = (run(settings(epochs=1, precision=p), train, val)[0] for p in ("auto", "fp32"))
    assert_equal(one.state_dict(), other.state_dict())


@pytest.mark.slow
def test_a_compiled_backbone_learns_the_same_and_has_the_same_names(make_source: MakeSource):
    train, val = make_source(34), make_source(34, seed=1)
    cfg = settings(epochs=2, knn_every=1)
    eager, lines = run(cfg, train, val)
    compiled, fast = run(cfg.model_copy(update={"compile": True}), train, val)
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    assert relative_change(compiled.backbone, eager.backbone) < 1e-3
    for mine, wanted in zip(fast, lines, strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
