"""MoCo v2 against plain loops in float64 written from Algorithm 1 of arXiv:1911.05722."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.objectives import MocoV2Config
from scdd.config.squeeze import SqueezeConfig
from scdd.models import create_model
from scdd.objectives import Batch, Loss, create_objective
from scdd.objectives.moco_v2 import MocoV2
from scdd.training import make_optimizer
from tests.objectives.cases import assert_equal_but_not_shared, outputs_of

SIZE, BATCH = 8, 6


def new(**changes: Any) -> MocoV2:
    """A small objective in train mode whose key encoder is already away from the query's."""
    settings = {"dim": 8, "queue": 24, "momentum": 0.9, "symmetric": False} | changes
    torch.manual_seed(0)
    objective = MocoV2(create_model("resnet8", 0, SIZE), MocoV2Config(**settings)).train()
    with torch.no_grad():
        for slow in objective.key_encoder.parameters():
            slow.add_(0.05 * torch.randn_like(slow))
    return objective


def views(step: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return (
        torch.randn(BATCH, 3, SIZE, SIZE, generator=draw),
        torch.randn(BATCH, 3, SIZE, SIZE, generator=draw),
    )


def dice(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss_of(objective: MocoV2, view1: Tensor, view2: Tensor, seed: int = 7) -> Loss:
    rows = torch.arange(len(view1))
    return objective(Batch((view1, view2), torch.zeros_like(rows), rows, dice(seed)))


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum(dim=1, keepdim=True).sqrt()


def follow(slow: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move parameters by the EMA, one at a time; buffers stay."""
    with torch.no_grad():
        for k, q in zip(slow.parameters(), online.parameters(), strict=True):
            k.copy_(momentum * k + (1 - momentum) * q)


def direction(query: nn.Module, key: nn.Module, queue: Tensor, x_q: Tensor, x_k: Tensor, t: float):
    """The pseudo-code, image by image: the loss [] and the keys [B, dim]."""
    q = unit(query(x_q))
    with torch.no_grad():
        keys = unit(key(x_k))
    total = torch.zeros((), dtype=q.dtype)
    for i in range(len(q)):
        positive = torch.exp((q[i] * keys[i]).sum() / t)
        negatives = sum(torch.exp((q[i] * negative).sum() / t) for negative in queue)
        total = total - torch.log(positive / (positive + negatives))
    return total / len(q), keys


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("mlp", [False, True])
def test_loss_and_gradients_are_those_of_the_pseudo_code(symmetric: bool, mlp: bool):
    objective = new(symmetric=symmetric, mlp=mlp, temperature=0.15)
    view1, view2 = views()
    query = copy.deepcopy(nn.Sequential(objective.backbone, objective.head)).double()
    key, queue = copy.deepcopy(objective.key_encoder).double(), objective.queue.double()
    loss = loss_of(objective, view1, view2)
    loss.value.backward()

    follow(key, query, 0.9)
    truth, _ = direction(query, key, queue, view1.double(), view2.double(), 0.15)
    if symmetric:
        other, _ = direction(query, key, queue, view2.double(), view1.double(), 0.15)
        truth = (truth + other) / 2
    truth.backward()
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)
    torch.testing.assert_close(
        loss.embedding.double(), unit(query(view1.double())).detach(), rtol=0, atol=1e-5
    )
    trained = [*objective.backbone.parameters(), *objective.head.parameters()]
    for mine, reference in zip(trained, query.parameters(), strict=True):
        assert mine.grad is not None and reference.grad is not None
        assert (mine.grad - reference.grad).norm() <= 1e-4 * reference.grad.norm() + 1e-8


def test_the_symmetric_loss_is_the_mean_of_both_directions():
    view1, view2 = views()
    there = loss_of(new(), view1, view2).value.item()
    back = loss_of(new(), view2, view1).value.item()
    both = loss_of(new(symmetric=True), view1, view2).value.item()
    assert both == pytest.approx((there + back) / 2, rel=1e-6)


def encode(objective: MocoV2, view: Tensor) -> Tensor:
    """Keys of a view by a copy of the key encoder, in float64."""
    with torch.no_grad():
        return unit(copy.deepcopy(objective.key_encoder).double()(view.double()))


def test_loss_and_queue_are_those_of_lightly():
    lightly = pytest.importorskip("lightly.loss", reason="lightly is an oracle that is not needed")
    objective = new(temperature=0.15)
    oracle = lightly.NTXentLoss(temperature=0.15, memory_bank_size=(24, 8))
    oracle.memory_bank.bank = objective.queue.clone()
    queries, keys = outputs_of(objective.head), outputs_of(objective.key_encoder)
    for step in range(3):
        loss = loss_of(objective, *views(step), step).value
        truth = oracle(queries[step].requires_grad_(), keys[step])
        assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
        torch.testing.assert_close(objective.queue, oracle.memory_bank.bank)


def test_under_autocast_the_loss_itself_is_in_float32():
    objective = new(temperature=0.02)  # where a rounded logit would be off by a lot
    queue = objective.queue.double()
    queries, keys = outputs_of(objective.head), outputs_of(objective.key_encoder)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(objective, *views())
    assert queries[0].dtype == torch.bfloat16, "autocast did nothing, so nothing was shown"
    assert loss.value.dtype == loss.embedding.dtype == objective.queue.dtype == torch.float32
    same = nn.Identity()
    truth, _ = direction(same, same, queue, queries[0].double(), keys[0].double(), 0.02)
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("length", [24, 20])
def test_keys_enter_the_queue_in_order_and_the_oldest_leave(symmetric: bool, length: int):
    objective = new(symmetric=symmetric, queue=length)
    rows, place = [row.double() for row in objective.queue], 0
    for step in range(7):
        view1, view2 = views(step)
        loss_of(objective, view1, view2, step)
        # In train mode BatchNorm does not see its buffers, so the keys can be made again.
        for view in [view2, view1] if symmetric else [view2]:
            for key in encode(objective, view):
                rows[place % length] = key
                place += 1
        torch.testing.assert_close(objective.queue.double(), torch.stack(rows), rtol=0, atol=1e-5)
        assert int(objective.pointer) == place % length
    torch.testing.assert_close(objective.queue.norm(dim=1), torch.ones(length))


def test_an_image_does_not_meet_its_own_key_among_the_negatives():
    objective = new(momentum=0.0, temperature=0.2)
    objective.queue.zero_()
    view, _ = views()
    # The key encoder is the query's after the EMA: the positive has cosine 1, the negatives 0.
    loss = loss_of(objective, view, view)
    assert loss.value.item() == pytest.approx(math.log(1 + 24 * math.exp(-1 / 0.2)), rel=1e-4)
    assert not torch.equal(objective.queue[:BATCH], torch.zeros(BATCH, 8))


def test_the_key_encoder_is_the_moving_average_and_its_buffers_are_its_own():
    objective = new(momentum=0.75)
    key, (view1, view2) = copy.deepcopy(objective.key_encoder), views()
    online = [*objective.backbone.parameters(), *objective.head.parameters()]
    wanted = [0.75 * k + 0.25 * q for k, q in zip(key.parameters(), online, strict=True)]
    loss_of(objective, view1, view2).value.backward()
    for slow, average in zip(objective.key_encoder.parameters(), wanted, strict=True):
        torch.testing.assert_close(slow, average.detach(), rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        for slow, current in zip(key.parameters(), objective.key_encoder.parameters(), strict=True):
            slow.copy_(current)
        key(view2)
    own, other = dict(key.named_buffers()), dict(objective.backbone.named_buffers())
    for name, buffer in objective.key_encoder.named_buffers():
        assert torch.equal(buffer, own[name]), name
        if name.endswith("running_mean"):
            assert not torch.equal(buffer, other[name.removeprefix("0.")]), name


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_at_its_ends_the_moving_average_copies_or_stands_still(momentum: float):
    objective = new(momentum=momentum)
    before = [p.clone() for p in objective.key_encoder.parameters()]
    loss_of(objective, *views())
    online = [*objective.backbone.parameters(), *objective.head.parameters()]
    for slow, wanted in zip(
        objective.key_encoder.parameters(), online if momentum == 0 else before, strict=True
    ):
        torch.testing.assert_close(slow, wanted, rtol=1e-6, atol=1e-8)


def test_a_new_key_encoder_equals_the_query_encoder_and_shares_nothing_with_it():
    objective = MocoV2(create_model("resnet8", 0, SIZE), MocoV2Config(dim=8, queue=24))
    online = nn.Sequential(objective.backbone, objective.head)
    assert_equal_but_not_shared(objective.key_encoder, online)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_key_encoder_gets_no_gradient_and_is_not_optimised(kind: Any):
    objective = new()
    optimizer = make_optimizer(objective, SqueezeConfig(optimizer=kind, lr=0.5), decay_all=True)
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {
        id(p) for p in [*objective.backbone.parameters(), *objective.head.parameters()]
    }
    loss_of(objective, *views()).value.backward()
    before = [p.clone() for p in objective.key_encoder.parameters()]
    queue = objective.queue.clone()
    optimizer.step()
    assert all(p.grad is None for p in objective.key_encoder.parameters())
    assert not objective.queue.requires_grad and torch.equal(objective.queue, queue)
    for slow, old in zip(objective.key_encoder.parameters(), before, strict=True):
        assert torch.equal(slow, old)


@pytest.mark.parametrize("splits", [2, 3])
def test_split_keys_are_normalised_in_shuffled_groups_of_their_own(splits: int):
    objective = new(key_splits=splits)
    view1, view2 = views()
    seen = objective.key_encoder.get_buffer("0.bn1.num_batches_tracked")
    count = int(seen)
    loss_of(objective, view1, view2)
    assert int(seen) == count + splits
    keys = torch.zeros(BATCH, 8, dtype=torch.float64)
    for group in torch.randperm(BATCH, generator=dice()).tensor_split(splits):
        keys[group] = encode(objective, view2[group])
    torch.testing.assert_close(objective.queue[:BATCH].double(), keys, rtol=0, atol=1e-5)
    together = encode(objective, view2)
    assert (keys - together).norm() > 0.01, "the groups made no difference, so nothing was shown"


def test_a_state_dict_carries_all_that_the_next_steps_depend_on():
    def steps(objective: MocoV2, first: int, last: int, optimizer: torch.optim.Optimizer):
        losses = []
        for step in range(first, last):
            loss = loss_of(objective, *views(step), step).value
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def fresh() -> tuple[MocoV2, torch.optim.Optimizer]:
        objective = new(queue=18, key_splits=2)
        return objective, torch.optim.SGD(
            [p for p in objective.parameters() if p.requires_grad], lr=0.1
        )

    whole, optimizer = fresh()
    steps(whole, 0, 4, optimizer)
    saved = copy.deepcopy(whole.state_dict())
    wanted = steps(whole, 4, 8, optimizer)

    resumed, optimizer = fresh()
    steps(resumed, 10, 12, optimizer)  # elsewhere by now
    resumed.load_state_dict(saved)
    assert steps(resumed, 4, 8, optimizer) == wanted
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


class Project(nn.Module):
    """Random features of random images are random directions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, 64, bias=False)
        self.feature_dim = 64

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def test_on_unrelated_views_the_loss_starts_at_the_logarithm_of_the_number_of_candidates():
    torch.manual_seed(0)
    cfg = MocoV2Config(dim=128, mlp=False, queue=1023, temperature=1.0, symmetric=True)
    objective = MocoV2(Project(), cfg).train()
    for bias in ("head.bias", "key_encoder.1.bias"):
        nn.init.zeros_(objective.get_parameter(bias))  # common to all keys: no random direction
    view1, view2 = (torch.randn(256, 3, SIZE, SIZE) for _ in range(2))
    assert loss_of(objective, view1, view2).value.item() == pytest.approx(math.log(1024), abs=0.03)


@pytest.mark.parametrize("mlp", [True, False])
def test_the_head_has_one_layer_or_two_and_ends_in_the_dimension(mlp: bool):
    objective = new(mlp=mlp, dim=16)
    linear = [m for m in objective.head.modules() if isinstance(m, nn.Linear)]
    width = objective.backbone.feature_dim
    assert [(m.in_features, m.out_features) for m in linear] == (
        [(width, width), (width, 16)] if mlp else [(width, 16)]
    )


def test_the_factory_builds_the_configured_backbone():
    cfg = SqueezeConfig(arch="resnet8x2", batch=8, objective=MocoV2Config(dim=8, queue=16))
    objective = create_objective(cfg, SIZE, num_classes=4, num_images=32)
    assert isinstance(objective, MocoV2) and objective.backbone.arch == "resnet8x2"
    assert objective.queue.shape == (16, 8)
    torch.testing.assert_close(F.normalize(objective.queue, dim=1), objective.queue)
