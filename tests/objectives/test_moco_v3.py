"""MoCo v3 against plain loops in float64 written from Algorithm 1 of arXiv:2104.02057."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.config.objectives import MocoV3Config
from scdd.config.squeeze import SqueezeConfig
from scdd.models import create_model
from scdd.objectives import create_objective
from scdd.objectives.moco_v3 import MocoV3
from scdd.training import make_optimizer
from tests.objectives.cases import (
    Flat,
    assert_equal_but_not_shared,
    layers,
    outputs_of,
    pair,
    unrelated,
)

SIZE, BATCH = 8, 8


def new(**changes: Any) -> MocoV3:
    """A small objective in train mode whose key encoder is already away from the query's."""
    settings = {"dim": 6, "hidden": 12, "momentum": 0.9, "temperature": 0.7} | changes
    torch.manual_seed(0)
    objective = MocoV3(create_model("resnet8", 0, SIZE), MocoV3Config(**settings)).train()
    with torch.no_grad():
        for slow in objective.key_encoder.parameters():
            slow.add_(0.05 * torch.randn_like(slow))
    return objective


def views() -> tuple[Tensor, Tensor]:
    return unrelated(BATCH, SIZE)


def online(objective: MocoV3) -> list[nn.Parameter]:
    """What the key encoder follows."""
    return [*objective.backbone.parameters(), *objective.projector.parameters()]


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum(dim=1, keepdim=True).sqrt()


def contrast(q: Tensor, k: Tensor, t: float) -> Tensor:
    """`ctr` of the pseudo-code, pair by pair."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(q)):
        candidates = [torch.exp((q[i] * k[j]).sum() / t) for j in range(len(k))]
        total = total - torch.log(candidates[i] / sum(candidates))
    return 2 * t * total / len(q)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss_and_gradients_are_those_of_the_pseudo_code(temperature: float):
    objective = new(temperature=temperature)
    view1, view2 = views()
    query, key = (
        copy.deepcopy(module).double()
        for module in (
            nn.Sequential(objective.backbone, objective.projector, objective.predictor),
            objective.key_encoder,
        )
    )
    loss = objective(pair(view1, view2))
    loss.value.backward()

    q1, q2 = unit(query(view1.double())), unit(query(view2.double()))
    with torch.no_grad():
        for slow, fast in zip(key.parameters(), query[:2].parameters(), strict=True):
            slow.copy_(0.9 * slow + 0.1 * fast)
        k1, k2 = unit(key(view1.double())), unit(key(view2.double()))
    truth = contrast(q1, k2, temperature) + contrast(q2, k1, temperature)
    truth.backward()
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)
    torch.testing.assert_close(loss.embedding.double(), q1.detach(), rtol=0, atol=1e-4)
    trained = [p for p in objective.parameters() if p.requires_grad]
    floor = max(p.grad.norm() for p in query.parameters())
    for mine, reference in zip(trained, query.parameters(), strict=True):
        assert (mine.grad - reference.grad).norm() <= 1e-3 * reference.grad.norm() + 1e-6 * floor


def test_the_heads_are_those_of_the_paper_for_resnets():
    objective = new(dim=6, hidden=12)
    middle = [("batchnorm", "12", "affine"), ("relu",), ("linear", "12-6", "no bias")]
    assert layers(objective.projector) == [
        ("linear", "64-12", "no bias"),
        *middle,
        ("batchnorm", "6", "not affine"),
    ]
    assert layers(objective.predictor) == [("linear", "6-12", "no bias"), *middle]


def test_the_predictor_sees_queries_alone():
    objective = new()
    learning = []
    objective.predictor.register_forward_hook(
        lambda module, args, out: learning.append(args[0].requires_grad)
    )
    objective(pair(*views()))
    assert learning == [True, True]  # keys come without gradient
    assert objective.key_encoder[1].state_dict().keys() == objective.projector.state_dict().keys()
    assert len(objective.key_encoder) == 2


@pytest.mark.parametrize(
    ("epoch", "momentum"), [(0.0, 0.9), (10 / 3, 0.925), (5.0, 0.95), (20 / 3, 0.975), (10.0, 1.0)]
)
def test_the_key_encoder_is_the_moving_average_whose_momentum_grows_to_one(
    epoch: float, momentum: float
):
    # Half a cosine from .9 to 1: at thirds of the way it has gone 1/4 and 3/4.
    objective = new()
    wanted = [
        momentum * slow + (1 - momentum) * fast
        for slow, fast in zip(objective.key_encoder.parameters(), online(objective), strict=True)
    ]
    objective.on_step_begin(epoch, 10)
    objective(pair(*views()))
    for slow, average in zip(objective.key_encoder.parameters(), wanted, strict=True):
        torch.testing.assert_close(slow, average.detach(), rtol=1e-6, atol=1e-7)


def test_the_key_encoder_has_buffers_of_its_own_and_every_view_its_own_statistics():
    objective = new()
    key, (view1, view2) = copy.deepcopy(objective.key_encoder), views()
    objective(pair(view1, view2))
    with torch.no_grad():
        for slow, current in zip(key.parameters(), objective.key_encoder.parameters(), strict=True):
            slow.copy_(current)
        key(view2)
        key(view1)
    own, other = dict(key.named_buffers()), dict(objective.backbone.named_buffers())
    for name, buffer in objective.key_encoder.named_buffers():
        assert torch.equal(buffer, own[name]), name
        if name.startswith("0.") and name.endswith("running_mean"):
            assert not torch.equal(buffer, other[name.removeprefix("0.")]), name
    passes = [b for n, b in objective.named_buffers() if n.endswith("num_batches_tracked")]
    assert all(count == 2 for count in passes)


def test_a_new_key_encoder_equals_the_query_encoder_and_shares_nothing_with_it():
    objective = MocoV3(create_model("resnet8", 0, SIZE), MocoV3Config(dim=6, hidden=12))
    fast = nn.Sequential(objective.backbone, objective.projector)
    assert_equal_but_not_shared(objective.key_encoder, fast)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_the_key_encoder_gets_no_gradient_and_is_not_optimised(kind: Any):
    objective = new()
    optimizer = make_optimizer(objective, SqueezeConfig(optimizer=kind, lr=0.5), decay_all=True)
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    learning = [*online(objective), *objective.predictor.parameters()]
    assert optimised == {id(p) for p in learning}
    objective(pair(*views())).value.backward()
    assert all(p.grad is not None and p.grad.any() for p in learning)
    before = [p.clone() for p in objective.key_encoder.parameters()]
    optimizer.step()
    for slow, old in zip(objective.key_encoder.parameters(), before, strict=True):
        assert slow.grad is None and torch.equal(slow, old)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_on_unrelated_views_the_loss_starts_at_the_logarithm_of_the_batch(temperature: float):
    # 2 * 2T * ln B, and little more: cosines in d dimensions have a variance of 1/d.
    torch.manual_seed(0)
    cfg = MocoV3Config(dim=256, hidden=256, temperature=temperature)
    objective = MocoV3(Flat(3 * SIZE * SIZE), cfg).train()
    loss = objective(pair(*unrelated(256, SIZE))).value.item()
    extra = 1 / (2 * temperature**2 * 256)
    assert loss == pytest.approx(4 * temperature * (math.log(256) + extra), abs=0.05)


def test_under_autocast_the_loss_itself_is_in_float32():
    objective = new(temperature=0.05)  # where a rounded logit would be off by a lot
    queries, keys = outputs_of(objective.predictor), outputs_of(objective.key_encoder)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(pair(*views()))
    (q1, q2), (k2, k1) = ([unit(x.double()) for x in found] for found in (queries, keys))
    assert queries[0].dtype == torch.bfloat16, "autocast did nothing, so nothing was shown"
    assert loss.value.dtype == loss.embedding.dtype == torch.float32
    truth = contrast(q1, k2, 0.05) + contrast(q2, k1, 0.05)
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)


@pytest.mark.parametrize("zero", [False, True])
def test_the_factory_starts_residual_branches_at_zero_if_asked(zero: bool):
    cfg = SqueezeConfig(
        arch="resnet8x2", objective=MocoV3Config(dim=6, hidden=12), zero_init_residual=zero
    )
    objective = create_objective(cfg, SIZE, num_classes=4, num_images=32)
    assert isinstance(objective, MocoV3) and objective.backbone.arch == "resnet8x2"
    for encoder in (objective.backbone, objective.key_encoder[0]):
        assert bool(encoder.layer1[0].bn2.weight.any()) is not zero
        assert bool(encoder.layer1[0].bn1.weight.all())
