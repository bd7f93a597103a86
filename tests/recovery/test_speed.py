"""How recovery is computed changes no result: compiling, and choosing how much is done at once."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from scdd.compiling import WORTH_COMPILING
from scdd.config.recover import RecoverConfig
from scdd.errors import RunError
from scdd.models import create_model
from scdd.recovery import RecoveryLoss, draw_views
from scdd.recovery.speed import compiled, fastest_group, worth_compiling

CPU = torch.device("cpu")
SIZE, COUNT = 16, 4


def teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = create_model("resnet8", 10, SIZE).train()
        with torch.no_grad():
            net(torch.randn(16, 3, SIZE, SIZE))
    return net.eval()


def measured(function: Callable[..., Any], loss: RecoveryLoss, seed: int) -> tuple[Any, Any]:
    x = torch.randn(
        loss.groups * COUNT, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_(True)
    draws = [torch.Generator().manual_seed(seed + g) for g in range(loss.groups)]
    view = draw_views(loss.cfg, SIZE, COUNT, 0.0, draws)
    terms = function(x, torch.arange(len(x)) % 10, view, torch.tensor(0.1 * seed))
    terms.total.backward()
    return terms, x.grad


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["none", "batch"])
def test_a_compiled_loss_is_the_same_in_one_graph(crop: str):
    torch._dynamo.reset()
    cfg = RecoverConfig(crop=crop, roll=2, compile="on", tv=0.1)  # "on": a graph break is an error
    loss = RecoveryLoss(teacher(), cfg, 2, False)
    fast = compiled(loss, COUNT, SIZE, CPU)
    assert fast is not loss
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (1, 2):  # other draws, another alpha
            (truth, truth_gradient), (found, gradient) = (
                measured(function, loss, seed) for function in (loss, fast)
            )
            for one, other in zip(found, truth, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            off = (gradient - truth_gradient).norm() / truth_gradient.norm()
            assert off < 1e-5


@pytest.mark.parametrize("wanted", ["auto", "on"])
def test_what_cannot_be_compiled_goes_on_without_unless_it_must_be(
    wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*args: Any, **kwargs: Any) -> Any:
        def raising(*args: Any) -> None:
            raise RuntimeError("no C++ compiler\nand much more")

        return raising

    monkeypatch.setattr(torch, "compile", fail)
    cfg = RecoverConfig(**{"compile": wanted})
    loss = RecoveryLoss(teacher(), cfg, 1, False)
    if wanted == "auto":
        assert compiled(loss, COUNT, SIZE, CPU) is loss
        assert "torch.compile failed (no C++ compiler); going on without" in capsys.readouterr().out
        return
    with pytest.raises(RunError) as caught:
        compiled(loss, COUNT, SIZE, CPU)
    assert str(caught.value) == (
        "recover: torch.compile cannot compile the network (no C++ compiler); set "
        "recover.compile=auto to go on without"
    )


def test_compiling_is_worth_it_from_a_number_of_flops_on_and_asking_changes_nothing():
    net = teacher().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    cfg = RecoverConfig(iterations=1000)
    # resnet8 at 16 px takes a few MFLOP forward: far from it with 10 images, beyond with 10^8.
    assert not worth_compiling(cfg, [net], 10, SIZE, CPU)
    assert worth_compiling(cfg, [net], 10**8, SIZE, CPU)
    for value, answer in (("on", True), ("off", False)):
        fixed = RecoverConfig(**{"compile": value})
        assert worth_compiling(fixed, [net], 10, SIZE, CPU) is answer
    assert not worth_compiling(cfg, [net], 10**8, SIZE, torch.device("meta"))
    assert net.training and WORTH_COMPILING["cuda"] > WORTH_COMPILING["cpu"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_teachers_that_share_the_iterations_need_as_much_work_each():
    cfg, net = RecoverConfig(iterations=1000), teacher()
    answers = [worth_compiling(cfg, [net], 4**power, SIZE, CPU) for power in range(14)]
    shared = [worth_compiling(cfg, [net] * 4, 4**power, SIZE, CPU) for power in range(1, 15)]
    assert shared == answers and {False, True} == set(answers)


def test_as_many_teachers_as_one_likes_are_compiled(monkeypatch: pytest.MonkeyPatch):
    """torch by itself makes eight versions of one code; here ten are wanted."""
    torch._dynamo.reset()
    # The graphs that torch finds are run as they are, as to compile them takes minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    cfg = RecoverConfig(crop="none", compile="on")
    for width in range(1, 11):
        norm, head = nn.BatchNorm2d(width), nn.Linear(width, 10)
        net = nn.Sequential(nn.Conv2d(3, width, 3), norm, nn.AvgPool2d(14), nn.Flatten(), head)
        loss = RecoveryLoss(net, cfg, 1, False)
        assert compiled(loss, COUNT, SIZE, CPU) is not loss


@pytest.mark.parametrize(
    ("rates", "most", "chosen"),
    [
        ({1: 10, 2: 20, 4: 40, 8: 80}, 8, 8),
        ({1: 10, 2: 20, 4: 21, 8: 100}, 8, 2),  # it pays no more
        ({1: 10, 2: 20}, 8, 2),  # out of memory at 4
        ({}, 8, 1),
        ({1: 10, 2: 20, 4: 40}, 3, 2),
        ({1: 10}, 1, 1),
    ],
)
def test_a_group_doubles_while_that_pays_and_memory_lasts(
    rates: dict[int, float], most: int, chosen: int
):
    def rate(group: int) -> float:
        if group not in rates:
            raise torch.OutOfMemoryError
        return rates[group]

    assert fastest_group(rate, most) == chosen
