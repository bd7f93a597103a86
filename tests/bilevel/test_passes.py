"""Compiled or not, the pairs are the same, and one graph serves every network of the pool."""

from typing import Any

import pytest
import torch

from scdd.bilevel.passes import PLAIN, passes_of
from scdd.bilevel.regressor import new_regressor, trunk_of
from scdd.config.condense_pairs import CondensePairsConfig

CPU = torch.device("cpu")
SIZE, DIM, PAIRS, BATCH = 8, 5, 6, 4


def settings(**changes: Any) -> CondensePairsConfig:
    pool = {"arch": "convnet_krr_w32", "batch": 4}
    return CondensePairsConfig.model_validate({"batch": BATCH, "pool": pool, **changes})


def test_small_work_is_not_compiled_and_large_work_is_unless_the_switch_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
):
    compiled: list[Any] = []

    def compiling(function: Any, **how: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiling)
    small, large = settings(steps=10), settings(steps=10**12)
    for cfg, wanted in (
        (small, False),
        (large, True),
        (settings(steps=10, compile="on"), True),
        (settings(steps=10**12, compile="off"), False),
    ):
        compiled.clear()
        assert passes_of(cfg, PAIRS, PAIRS, SIZE, DIM, CPU) == PLAIN
        assert bool(compiled) is wanted


@pytest.mark.slow
def test_compiled_passes_give_the_same_losses_and_gradients_for_networks_made_later():
    torch._dynamo.reset()
    passes = passes_of(settings(compile="on"), PAIRS, PAIRS, SIZE, DIM, CPU)
    assert passes != PLAIN
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(PAIRS, 3, SIZE, SIZE, generator=draw)
    targets = torch.randn(PAIRS, DIM, generator=draw)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in range(3):
            torch.manual_seed(seed)
            net = new_regressor("convnet_krr_w32", SIZE, DIM)
            start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            found = []
            for each in (PLAIN, passes):
                net.load_state_dict(start)
                net.train().requires_grad_(True).zero_grad()
                rows = slice(seed % 2, None, 2)  # As where pairs take turns.
                loss = each.inner_loss(net, images[rows], targets[rows])
                loss.backward()
                learnt = images.clone().requires_grad_()
                kept = [weight.grad.clone() for weight in net.parameters()]
                each.features(
                    trunk_of(net.eval().requires_grad_(False)), learnt
                ).square().sum().backward()
                found.append([loss.detach(), *kept, learnt.grad, *net.state_dict().values()])
            for one, other in zip(*found, strict=True):
                assert (one - other).double().norm() <= 1e-4 * one.double().norm() + 1e-6
