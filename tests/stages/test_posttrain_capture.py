"""The recorded step, with a plain call in place of the graph: the same bits as the eager one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.config.posttrain import PosttrainConfig
from scdd.config.relabel import RelabelConfig
from scdd.distilled import DistilledDataset
from scdd.errors import ConfigError, RunError
from scdd.models import create_model
from scdd.posttraining import Step, step_batches, student_step
from scdd.posttraining.capture import (
    GRAPHS,
    WARM_UP,
    can_capture,
    captured,
    draws_numbers,
    make_capturable,
)
from scdd.stages.posttrain import new_student, train_student
from scdd.training import make_optimizer, set_lr
from tests.stages.conftest import CPU, SIZE

MakeDistilled = Callable[..., DistilledDataset]
Work = Callable[[], Tensor]


def settings(**changes: Any) -> PosttrainConfig:
    base = {"epochs": 6, "batch": 4, "lr": 0.01, "temperature": 4.0}
    return PosttrainConfig(**(base | changes))


def call(work: Work) -> Tensor:
    return work()


def trained(
    cfg: PosttrainConfig,
    data: DistilledDataset,
    labels: Any,
    change: Callable[[Step], Step],
    rates: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None,
) -> tuple[nn.Module, list[float]]:
    """The student after some epochs of `change(step)` at falling rates, and its losses."""
    student = new_student("resnet8", data, 0).train()
    optimizer = make_optimizer(student, cfg, decay_all=False)
    rates(optimizer)
    step = change(student_step(cfg, student, optimizer, labels))
    losses = []
    for epoch in range(cfg.epochs):
        order = torch.Generator().manual_seed(epoch)
        for batches in step_batches(cfg, data, "soft", epoch, order):
            set_lr(optimizer, cfg.lr / (1 + len(losses)))
            losses.append(step(batches).item())
    return student, losses


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        ({}, [4]),
        ({"optimizer": "sgd", "batch": 5}, [5, 2]),
        ({"micro_batches": 2, "batch": 10, "loss": "mse", "hard_weight": 0.1}, [10, 2]),
    ],
)
def test_fixed_tensors_give_the_bits_of_the_eager_step(
    change: dict[str, Any], shapes: list[int], labels: Any, make_distilled: MakeDistilled
):
    data, cfg = make_distilled(RelabelConfig(views=3, mix="cutmix")), settings(**change)
    warmed, recorded = [], []

    def warm_up(work: Work) -> Tensor:
        warmed.append(work)
        return work()

    def record(work: Work) -> Work:
        recorded.append(work)
        return work

    eager, losses = trained(cfg, data, labels, lambda step: step)
    fixed, others = trained(
        cfg, data, labels, lambda step: captured(step, warm_up=warm_up, record=record)
    )
    assert losses == others
    for name, tensor in eager.state_dict().items():
        assert torch.equal(fixed.state_dict()[name], tensor), name
    assert len(recorded) == len(shapes) and len(warmed) == WARM_UP * len(shapes)


def test_what_is_recorded_reads_tensors_that_stay_and_runs_nothing_but_replays(
    make_distilled: MakeDistilled,
):
    data, cfg = make_distilled(RelabelConfig(views=1)), settings(batch=12)
    seen: list[int] = []

    def step(batches: Any) -> Tensor:
        seen.append(batches[0].images.data_ptr())
        return batches[0].images.sum()

    ran = captured(step, warm_up=call, record=lambda work: work)
    wanted, found = [], []
    for epoch in range(WARM_UP + 3):
        (batches,) = step_batches(cfg, data, "soft", epoch, torch.Generator().manual_seed(epoch))
        wanted.append(batches[0].images.sum().item())
        found.append(ran(batches).item())
    assert found == wanted and len(set(seen)) == 1


def test_shapes_beyond_a_few_are_run_as_they_are(make_distilled: MakeDistilled):
    data = make_distilled(RelabelConfig(views=1))
    recorded = []

    def record(work: Work) -> Work:
        recorded.append(work)
        return work

    ran = captured(lambda batches: batches[0].images.mean(), warm_up=call, record=record)
    for _ in range(WARM_UP + 2):
        for batch in range(2, 2 + GRAPHS + 2):
            cfg = settings(batch=batch)
            batches = next(step_batches(cfg, data, "soft", 0, torch.Generator().manual_seed(0)))
            assert ran(batches).item() == batches[0].images.mean().item()
    assert len(recorded) == GRAPHS


def test_where_recording_fails_training_goes_on_without_or_stops_as_asked(
    make_distilled: MakeDistilled, capsys: pytest.CaptureFixture[str]
):
    data, cfg = make_distilled(RelabelConfig(views=3)), settings()
    attempts = []

    def record(work: Work) -> Work:
        attempts.append(work)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    eager, _ = trained(cfg, data, "soft", lambda step: step)
    other, _ = trained(cfg, data, "soft", lambda step: captured(step, False, call, record))
    for name, tensor in eager.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert len(attempts) == 1
    sentence = "the step cannot be recorded as a CUDA graph (operation not permitted)"
    assert capsys.readouterr().out == f"  {sentence}\n"
    with pytest.raises(RunError) as caught:
        trained(cfg, data, "soft", lambda step: captured(step, True, call, record))
    assert str(caught.value) == f"posttrain: {sentence}; set posttrain.capture=off to go on without"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_rates_in_tensors_train_as_numbers_do(kind: Any, make_distilled: MakeDistilled):
    data, cfg = make_distilled(RelabelConfig(views=3)), settings(optimizer=kind, epochs=2)
    _, losses = trained(cfg, data, "soft", lambda step: step)
    _, others = trained(
        cfg, data, "soft", lambda step: step, lambda optimizer: make_capturable(optimizer, CPU)
    )
    assert others == pytest.approx(losses, rel=1e-4)
    assert losses[0] != pytest.approx(losses[-1], rel=0.01)


def test_a_rate_in_a_tensor_is_set_in_place():
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=1.0)
    make_capturable(optimizer, CPU)
    (group,) = optimizer.param_groups
    rate = group["lr"]
    set_lr(optimizer, 0.25)
    assert group["lr"] is rate and rate.item() == 0.25


@pytest.mark.parametrize(
    ("arch", "draws"), [("resnet8", False), ("mobilenet_v3_large", True), ("vgg11", False)]
)
def test_nets_with_dropout_are_told_from_others_and_left_as_they_were(arch: str, draws: bool):
    net = create_model(arch, 4, 32).train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert draws_numbers(net, torch.zeros(2, 3, 32, 32)) is draws
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and net.training


def test_dropout_that_is_off_draws_nothing():
    images = torch.zeros(2, 3, SIZE, SIZE)
    assert not draws_numbers(nn.Dropout(0.0), images) and draws_numbers(nn.Dropout(0.5), images)


def test_without_a_gpu_nothing_is_recorded_and_to_insist_is_refused(make_distilled: MakeDistilled):
    images, net = torch.zeros(2, 3, SIZE, SIZE), create_model("resnet8", 4, SIZE)
    for wanted in ("auto", "off"):
        assert not can_capture(settings(capture=wanted), net, images, changed=False)
    data = make_distilled(RelabelConfig(views=1))
    with pytest.raises(ConfigError) as caught:
        train_student(settings(capture="on"), net, data, "soft", 0, CPU)
    assert str(caught.value) == (
        "posttrain.capture is on, but the step of resnet8 cannot be a CUDA graph: there is none on "
        "the device 'cpu'; set posttrain.capture=auto"
    )
