"""Online models: what a step does, how they age, and when they are new."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.bilevel.model_pool import (
    OnlineModel,
    chosen_model,
    first_age,
    grow,
    inner_step,
    new_pool,
)
from scdd.config.condense_pairs import PoolConfig
from tests.bilevel.tiny_pairs import CPU, DIM, SIZE


def config(**changes: Any) -> PoolConfig:
    base = {"models": 3, "arch": "convnet_krr_w32", "age": 4, "lr": 0.05}
    return PoolConfig.model_validate(base | changes)


def pairs(count: int = 6) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, SIZE, SIZE, generator=draw)
    return images, torch.randn(count, DIM, generator=draw)


def pool_of(cfg: PoolConfig, seed: int = 0) -> list[OnlineModel]:
    return new_pool(cfg, SIZE, DIM, seed, CPU)


def weights(model: OnlineModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def test_steps_are_those_of_sgd_with_momentum_and_decay_on_the_squared_error_of_all_pairs():
    cfg, (images, targets) = config(momentum=0.7, weight_decay=0.02), pairs()
    model = pool_of(cfg)[0]
    twin: Any = copy.deepcopy(model.net).train()
    speed = [torch.zeros_like(p) for p in twin.parameters()]
    for _ in range(3):
        inner_step(cfg, model, images, targets)
        loss = (twin(images) - targets).square().sum() / targets.numel()
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for p, v, g in zip(twin.parameters(), speed, gradients, strict=True):
                v.mul_(0.7).add_(g + 0.02 * p)
                p.sub_(0.05 * v)
    assert model.age == 3
    for name, found in model.net.state_dict().items():
        torch.testing.assert_close(found, twin.state_dict()[name])


def test_a_step_is_in_train_mode_and_gives_the_pairs_no_gradient():
    cfg, (images, targets) = config(), pairs()
    model = pool_of(cfg)[0]
    model.net.eval()
    leaves = images.requires_grad_(), targets.requires_grad_()
    inner_step(cfg, model, *leaves)
    assert leaves[0].grad is None and leaves[1].grad is None
    norms: list[Any] = [m for m in model.net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(int(norm.num_batches_tracked) == 1 for norm in norms)


def test_more_pairs_than_a_step_takes_are_seen_in_turns_of_a_fixed_order():
    cfg, (images, targets) = config(batch=2), pairs(6)
    model, twin = pool_of(cfg)[0], pool_of(cfg)[0]
    for _ in range(4):
        inner_step(cfg, model, images, targets)
    for rows in ([0, 3], [1, 4], [2, 5], [0, 3]):
        inner_step(config(batch=100), twin, images[rows], targets[rows])
    assert torch.equal(weights(model), weights(twin))


def test_models_differ_from_each_other_and_are_the_same_for_the_same_seed():
    first, again, other = pool_of(config()), pool_of(config()), pool_of(config(), seed=1)
    assert torch.equal(weights(first[0]), weights(again[0]))
    assert not torch.equal(weights(first[0]), weights(first[1]))
    assert not torch.equal(weights(first[0]), weights(other[0]))


def test_first_ages_are_spread_over_the_life_of_a_model():
    cfg = config(age=5)
    ages = [first_age(cfg, index, seed=0) for index in range(400)]
    assert set(ages) == {1, 2, 3, 4}
    assert min(ages.count(age) for age in set(ages)) > 60
    assert first_age(config(age=1), 0, seed=0) == 1


def test_every_model_has_its_turns():
    turns = [chosen_model(config(), step, seed=0) for step in range(300)]
    assert min(turns.count(index) for index in range(3)) > 70
    assert turns[:20] != [chosen_model(config(), step, seed=1) for step in range(20)]


def test_an_old_model_is_replaced_and_ages_again():
    cfg, (images, targets) = config(age=4), pairs()
    model = pool_of(cfg)[1]
    ages, born = [], []
    for step in range(1, 12):
        before = weights(model)
        grow(cfg, model, images, targets, step, seed=0)
        ages.append(model.age)
        born.append(model.born)
        assert not torch.equal(weights(model), before)
    assert ages == [1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert born == [0] * 4 + [5] * 5 + [10] * 2


def test_as_released_a_model_that_is_old_once_is_replaced_at_every_turn():
    cfg, (images, targets) = config(age=4, reset_counter=False), pairs()
    model = pool_of(cfg)[1]
    seen = []
    for step in range(1, 9):
        grow(cfg, model, images, targets, step, seed=0)
        seen.append((model.age, model.born))
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 0), (4, 5), (4, 6), (4, 7), (4, 8)]
    assert not model.optimizer.state, "the optimiser starts anew with the weights"


def test_a_restored_model_goes_on_as_the_one_that_was_saved():
    cfg, (images, targets) = config(), pairs()
    model, other = pool_of(cfg)[0], pool_of(cfg)[1]
    inner_step(cfg, model, images, targets)
    other.restore(copy.deepcopy(model.state()))
    for one in (model, other):
        inner_step(cfg, one, images, targets)
    assert torch.equal(weights(model), weights(other)) and other.age == 2


@pytest.mark.parametrize("step", [1, 2])
def test_a_new_model_depends_on_its_place_and_step_alone(step: int):
    cfg, (images, targets) = config(age=1), pairs()
    found = []
    for history in (0, 2):
        model = pool_of(cfg)[2]
        for _ in range(history):
            inner_step(cfg, model, images, targets)
        model.age = 1
        grow(cfg, model, images, targets, step, seed=0)
        found.append(weights(model))
    assert torch.equal(*found)
