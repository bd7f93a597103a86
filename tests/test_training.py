"""Optimiser groups, the learning rate over time, and accuracy against a count by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor, nn

from scdd.config.posttrain import PosttrainConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets import ResidentSource
from scdd.training import (
    cosine,
    evaluate,
    evaluating,
    make_optimizer,
    set_lr,
    shuffled_batches,
)

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf


class Table(nn.Module):
    """Answers image i, whose pixels all have the value i, with row i of a table of logits."""

    logits: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[(x[:, 0, 0, 0] * 255).round().long()]


def accuracy_of(logits: Tensor, labels: Tensor, batch: int = 500):
    """Run `evaluate` on a network that gives these logits."""
    count, classes = logits.shape
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    names = tuple(str(i) for i in range(classes))
    source = ResidentSource(images.contiguous(), labels, names, (0.0,) * 3, (1.0,) * 3)
    return evaluate(Table(logits), source, CPU, batch)


def test_batches_go_over_shuffled_rows_and_a_step_depends_on_its_number_alone():
    steps = list(shuffled_batches(11, 3, 9, seed=0, purpose="test"))
    for epoch in range(3):  # Two of eleven rows are left over.
        assert len(set(torch.cat(steps[3 * epoch : 3 * epoch + 3]).tolist())) == 9
    assert not torch.equal(steps[0], steps[3])
    for first in range(9):
        rest = shuffled_batches(11, 3, 9, 0, "test", first)
        assert all(torch.equal(a, b) for a, b in zip(steps[first:], rest, strict=True))


@pytest.mark.parametrize("steps", [1, 7, 30])
@pytest.mark.parametrize("stretch", [1, 2, 3])
def test_the_cosine_is_the_one_of_torch_over_stretched_time(steps: int, stretch: int):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=stretch * steps)
    for step in range(steps):
        assert cosine(step / steps, stretch=stretch) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("done", "warmup", "stretch", "factor"),
    [
        (0.0, 0.0, 1.0, 1.0),
        (0.5, 0.0, 1.0, 0.5),
        (1.0, 0.0, 1.0, 0.0),
        (1.0, 0.0, 2.0, 0.5),
        (1.0, 0.0, 3.0, 0.75),
        (1.0, 0.0, 1.5, 0.25),
        (0.0, 0.2, 1.0, 0.0),
        (0.1, 0.2, 1.0, 0.5),
        (0.2, 0.2, 1.0, 1.0),
        (0.6, 0.2, 1.0, 0.5),
        (1.0, 0.2, 1.0, 0.0),
        (1.0, 0.2, 2.0, 0.5),
        (0.999, 1.0, 1.0, 0.999),
    ],
)
def test_the_learning_rate_factor_at_known_places(done, warmup, stretch, factor):
    assert cosine(done, warmup, stretch) == pytest.approx(factor, abs=1e-12)


@given(st.floats(0, 1), st.floats(0, 0.9), st.floats(1, 10))
def test_the_factor_rises_in_the_warmup_and_falls_after_it(done, warmup, stretch):
    here, later = cosine(done, warmup, stretch), cosine(min(1, done + 0.01), warmup, stretch)
    assert 0 <= here <= 1
    if done + 0.01 < warmup:
        assert later >= here
    if done >= warmup:
        assert later <= here


def settings(optimizer: Any) -> PosttrainConfig:
    return PosttrainConfig(optimizer=optimizer, lr=0.1, momentum=0.8, weight_decay=0.5)


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_biases_and_norms_decay_only_if_all_parameters_shall(kind: str):
    net = small_net()

    def decay(decay_all: bool) -> dict[int, float]:
        groups = make_optimizer(net, settings(kind), decay_all).param_groups
        return {id(p): group["weight_decay"] for group in groups for p in group["params"]}

    assert decay(False) == {id(p): 0.5 if p.ndim > 1 else 0.0 for p in net.parameters()}
    assert decay(True) == {id(p): 0.5 for p in net.parameters()}


def test_frozen_parameters_are_not_in_the_optimiser():
    net = small_net()
    net[0].requires_grad_(False)
    groups = make_optimizer(net, settings("sgd"), decay_all=False).param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in net.parameters() if p.requires_grad}


def test_the_configured_optimiser_gets_the_configured_values():
    sgd = make_optimizer(small_net(), settings("sgd"), decay_all=True)
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.8
    assert not sgd.defaults["nesterov"]
    squeeze = SqueezeConfig(optimizer="adamw", lr=0.02)
    adamw = make_optimizer(small_net(), squeeze, decay_all=True)
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["lr"] == 0.02


def test_one_step_of_adamw_moves_weights_as_torch_without_fusion_does():
    ours, theirs = small_net(), small_net()
    theirs.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(ours, settings("adamw"), decay_all=True)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.5)
    x = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    for net, solver in ((ours, optimizer), (theirs, plain)):
        net(x).square().sum().backward()
        solver.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_setting_the_rate_reaches_every_group():
    optimizer = make_optimizer(small_net(), settings("sgd"), decay_all=False)
    assert len(optimizer.param_groups) == 2
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize("batch", [1, 7, 50, 500])
def test_accuracy_is_that_of_scikit_learn_whatever_the_batch(batch: int):
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(50, 9, generator=draw)
    labels = torch.randint(9, (50,), generator=draw)
    found = accuracy_of(logits, labels, batch)
    for k, value in ((1, found.top1), (5, found.top5)):
        truth = top_k_accuracy_score(labels, logits, k=k, labels=range(9))
        assert value == pytest.approx(100 * truth)


def test_accuracy_counted_by_hand():
    logits = torch.tensor(
        [
            [9.0, 1.0, 2.0, 3.0, 4.0, 5.0],  # right
            [9.0, 1.0, 2.0, 3.0, 4.0, 5.0],  # last of six
            [9.0, 1.0, 2.0, 3.0, 4.0, 5.0],  # fifth of six
            [-INF, -1.0, -2.0, -3.0, -4.0, -5.0],  # right, beside an infinity
        ]
    )
    found = accuracy_of(logits, torch.tensor([0, 1, 2, 1]))
    assert found.top1 == 50 and found.top5 == 75


def test_with_fewer_than_five_classes_every_finite_answer_is_among_the_first_five():
    found = accuracy_of(torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 2, 0, 1]))
    assert found.top1 == 50 and found.top5 == 100


@pytest.mark.parametrize("row", [[NAN, NAN, NAN], [NAN, 1.0, 0.0], [5.0, NAN, 0.0]])
def test_an_answer_with_a_nan_is_wrong(row: list[float]):
    for label in range(3):
        found = accuracy_of(torch.tensor([row]), torch.tensor([label]))
        assert found.top1 == 0 and found.top5 == 0


def test_the_same_answer_for_every_class_is_right_no_more_often_than_by_chance():
    labels = torch.arange(10).repeat(3)
    found = accuracy_of(torch.zeros(30, 10), labels)
    assert found.top1 <= 10 and found.top5 <= 50


def test_of_two_equal_logits_the_first_class_is_the_answer_as_argmax_has_it():
    logits = torch.tensor([[2.0, 2.0, 0.0], [0.0, 2.0, 2.0], [2.0, 2.0, 2.0], [0.0, 1.0, 1.0]])
    labels = torch.tensor([0, 2, 1, 1])
    right = (logits.argmax(dim=1) == labels).double().mean().item()
    assert accuracy_of(logits, labels).top1 == 100 * right


def test_evaluation_runs_in_eval_mode_on_normalised_pixels_and_restores_the_mode():
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, x))
            return x.mean(dim=(2, 3))

    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    source = ResidentSource(images, torch.tensor([0, 1]), ("a", "b"), (0.1, 0.2, 0.3), (0.5,) * 3)
    for training in (True, False):
        net = Spy().train(training)
        evaluate(net, source, CPU)
        assert net.training is training
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    for training, x in seen:
        assert not training
        torch.testing.assert_close(x, (images / 255 - mean) / 0.5)


def test_the_mode_is_restored_after_an_error_too():
    net = small_net().train()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not net.training
        _ = 1 / 0
    assert net.training


def test_evaluation_works_with_any_object_that_reads_images():
    images = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    source = SimpleNamespace(
        labels=torch.tensor([1, 1, 0]),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        read=lambda index: images[index],
    )
    found = evaluate(Table(torch.tensor([[0.0, 1.0]])), source, CPU)
    assert found.top1 == pytest.approx(200 / 3)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_vectors_may_have_a_rate_of_their_own_all_along_the_schedule(kind: Any):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    cfg = SqueezeConfig(optimizer=kind, lr=0.2, vector_lr=0.005)
    optimizer = make_optimizer(model, cfg, decay_all=True, vector_lr=cfg.vector_lr)
    for rate in (0.2, 0.1, 0.0):
        set_lr(optimizer, rate)
        found = {p.ndim: g["lr"] for g in optimizer.param_groups for p in g["params"]}
        assert found == {2: pytest.approx(rate), 1: pytest.approx(rate / 40)}
