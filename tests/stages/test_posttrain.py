"""Students: the loop against a plain one, and resuming bit for bit."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.checkpoint import Checkpoint
from scdd.config.posttrain import PosttrainConfig
from scdd.config.relabel import RelabelConfig
from scdd.distilled import DistilledDataset
from scdd.errors import RunError
from scdd.seeding import generator
from scdd.stages.posttrain import new_student, train_student
from tests.stages.conftest import CPU, SIZE

MakeDistilled = Callable[..., DistilledDataset]


class Killed(Exception):
    """Stands for a kill."""


def settings(**changes: Any) -> PosttrainConfig:
    base: dict[str, Any] = {
        "epochs": 3,
        "batch": 5,
        "optimizer": "sgd",
        "lr": 0.05,
        "temperature": 4.0,
    }
    return PosttrainConfig(**(base | changes))


def plain_training(
    cfg: PosttrainConfig, student: nn.Module, data: DistilledDataset, soft: bool, seed: int
) -> nn.Module:
    """SGD by hand: momentum, coupled weight decay, the rate from its formula, averaged weights."""
    student.train()
    average: list[Tensor] = []
    momenta = [torch.zeros_like(p) for p in student.parameters()]
    orders = [generator(seed, "posttrain.order", epoch) for epoch in range(cfg.epochs)]
    epochs = [list(data.epoch(e, cfg.batch, order)) for e, order in enumerate(orders)]
    for epoch, batches in enumerate(epochs):
        for number, batch in enumerate(batches):
            time = epoch + (number / len(batches) if cfg.schedule == "step" else 0)
            if time < cfg.warmup_epochs:
                rate = cfg.lr * time / cfg.warmup_epochs
            else:
                share = (time - cfg.warmup_epochs) / (cfg.epochs - cfg.warmup_epochs)
                rate = cfg.lr * (1 + math.cos(math.pi * share / cfg.stretch)) / 2
            logs = torch.log_softmax(student(batch.images) / (cfg.temperature if soft else 1), 1)
            if soft:
                assert batch.logits is not None
                wanted = torch.softmax(batch.logits / cfg.temperature, dim=1)
                loss = (wanted * (wanted.log() - logs)).sum() / len(logs)
            else:
                loss = -logs[torch.arange(len(logs)), batch.labels].mean()
            gradients = torch.autograd.grad(loss, list(student.parameters()))
            with torch.no_grad():
                for p, g, m in zip(student.parameters(), gradients, momenta, strict=True):
                    decay = cfg.weight_decay if cfg.decay == "all" or p.ndim > 1 else 0
                    m.mul_(cfg.momentum).add_(g + decay * p)
                    p.sub_(rate * m)
                now = [p.clone() for p in student.parameters()]
                average = average or now
                average = [
                    cfg.ema * old + (1 - cfg.ema) * new
                    for old, new in zip(average, now, strict=True)
                ]
    with torch.no_grad():
        for p, mean in zip(student.parameters(), average, strict=True):
            p.copy_(mean)
    return student


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"schedule": "epoch", "decay": "all", "weight_decay": 0.1},
        {"stretch": 2.0, "weight_decay": 0.1},
        {"schedule": "epoch", "warmup_epochs": 1, "stretch": 1.5},
        {"warmup_epochs": 2, "momentum": 0.0},
        {"ema": 0.8},
    ],
)
def test_the_loop_is_plain_sgd_under_the_written_schedule(
    change: dict[str, Any], soft: bool, make_distilled: MakeDistilled
):
    data, cfg = make_distilled(RelabelConfig(views=2)), settings(**change)
    torch.manual_seed(1)
    # Smooth, so that rounding stays small: where a ReLU turns over, runs drift apart.
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 16), nn.Tanh(), nn.Linear(16, 4))
    truth = plain_training(cfg, copy.deepcopy(student), data, soft, seed=2)
    start = copy.deepcopy(student)
    train_student(cfg, student, data, "soft" if soft else "hard", 2, CPU)
    for (name, mine), wanted, old in zip(
        student.named_parameters(), truth.parameters(), start.parameters(), strict=True
    ):
        moved = (wanted - old).norm()
        assert moved > 0 and (mine - wanted).norm() <= 1e-4 * moved, name


@pytest.mark.parametrize(
    ("relabel", "batch", "steps"),
    [
        (RelabelConfig(views=2), 5, 3),  # 12 images: 5 + 5 + 2
        (RelabelConfig(views=2), 4, 3),
        (RelabelConfig(views=2), 11, 1),  # one image alone joins the batch before it
        (RelabelConfig(views=2, teacher_bn="batch", group=4), 4, 3),
        (RelabelConfig(views=2, teacher_bn="batch", group=4), 9, 2),
    ],
)
def test_gradients_may_be_changed_once_a_step_and_epochs_are_counted_from_one(
    relabel: RelabelConfig, batch: int, steps: int, make_distilled: MakeDistilled
):
    data = make_distilled(relabel)
    student = new_student("resnet8", data, seed=0)
    events: list[str] = []

    def after_backward() -> None:
        assert all(p.grad is not None for p in student.parameters())
        events.append("backward")

    train_student(
        settings(batch=batch),
        student,
        data,
        "soft",
        0,
        CPU,
        advance=lambda note: events.append(note),
        after_backward=after_backward,
        after_epoch=lambda epoch, scored: events.append(f"epoch {epoch}"),
    )
    wanted: list[str] = []
    for epoch in range(1, 4):
        wanted += ["backward"] * steps + ["resnet8 soft", f"epoch {epoch}"]
    assert events == wanted and data.steps(batch) == steps


def test_what_is_added_to_the_gradients_reaches_the_weights(make_distilled: MakeDistilled):
    data = make_distilled(RelabelConfig(views=1))
    student = new_student("resnet8", data, seed=0)
    before = copy.deepcopy(student)

    def silence() -> None:
        for p in student.parameters():
            assert p.grad is not None
            p.grad.zero_()

    cfg = settings(weight_decay=0.0)
    train_student(cfg, student, data, "soft", 0, CPU, after_backward=silence)
    for mine, old in zip(student.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, old)


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("kill_at", [2, 4, 6])
@pytest.mark.parametrize(
    ("arch", "optimizer", "labels", "ema"),
    [("resnet8", "sgd", "hard", 0.9), ("mobilenet_v3_large", "adamw", "soft", 0.0)],
)
def test_killed_at_any_step_it_goes_on_to_the_same_student_bit_for_bit(
    kill_at: int,
    arch: str,
    optimizer: str,
    labels: Any,
    ema: float,
    make_distilled: MakeDistilled,
    tmp_path: Path,
):
    data = make_distilled(RelabelConfig(views=2, mix="mixup"))
    cfg = settings(arch=arch, optimizer=optimizer, batch=4, epochs=2, lr=0.01, ema=ema)

    def train(checkpoint: Checkpoint, kill_at: int = 0) -> nn.Module:
        done = 0

        def after_backward() -> None:
            nonlocal done
            done += 1
            if done == kill_at:
                raise Killed

        torch.manual_seed(torch.seed())  # dropout must not depend on the global generator
        student = new_student(arch, data, seed=1)
        return train_student(
            cfg, student, data, labels, 1, CPU, checkpoint, after_backward=after_backward
        )

    whole = train(Checkpoint(None, 0))
    checkpoint = Checkpoint(tmp_path / "c.pt", 0)
    with pytest.raises(Killed):
        train(checkpoint, kill_at)
    assert same(train(checkpoint), whole)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_is_scored_after_the_last_epoch_is_what_is_returned(
    ema: float, make_distilled: MakeDistilled
):
    scored: list[dict[str, Tensor]] = []
    student = train_student(
        settings(ema=ema),
        new_student("resnet8", make_distilled(RelabelConfig(views=1)), 0),
        make_distilled(RelabelConfig(views=1)),
        "soft",
        0,
        CPU,
        after_epoch=lambda epoch, net: scored.append(copy.deepcopy(net.state_dict())),
    )
    assert len(scored) == 3
    assert all(torch.equal(scored[-1][name], t) for name, t in student.state_dict().items())


def test_dropout_is_on_while_a_student_is_trained(make_distilled: MakeDistilled):
    data = make_distilled(RelabelConfig(views=1))
    cfg = settings(arch="mobilenet_v3_large", epochs=1, batch=4, lr=0.01)
    trained = []
    for chance in (0.0, 0.9):
        student = new_student(cfg.arch, data, seed=1)
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = chance
        trained.append(train_student(cfg, student, data, "soft", 1, CPU))
    assert not same(*trained)


def test_seeds_decide_the_weights_and_the_order(make_distilled: MakeDistilled):
    data, cfg = make_distilled(RelabelConfig(views=1)), settings(epochs=1)
    assert same(new_student("resnet8", data, 3), new_student("resnet8", data, 3))
    assert not same(new_student("resnet8", data, 3), new_student("resnet8", data, 4))

    def trained(seed: int) -> nn.Module:
        return train_student(cfg, new_student("resnet8", data, 0), data, "hard", seed, CPU)

    assert same(trained(5), trained(5)) and not same(trained(5), trained(6))


def test_a_new_student_fits_the_file(make_distilled: MakeDistilled):
    student = new_student("resnet8", make_distilled(RelabelConfig(views=1)), 0)
    assert student.num_classes == 4 and student.image_size == SIZE


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_a_student_learns_the_labels(labels: Any, make_distilled: MakeDistilled):
    # Without crops every epoch shows the same images, so they can be learnt by heart.
    data = make_distilled(RelabelConfig(views=1, crop="none", flip=False), scale=6.0)
    cfg = settings(epochs=40, batch=12, lr=0.01, optimizer="adamw", temperature=1.0)
    student = train_student(cfg, new_student("resnet8", data, 0), data, labels, 0, CPU)
    (batch,) = data.epoch(0, 12, torch.Generator().manual_seed(0))
    assert batch.logits is not None
    wanted = batch.labels if labels == "hard" else batch.logits.argmax(dim=1)
    with torch.no_grad():
        answers = student(batch.images).argmax(dim=1)  # train mode: batch statistics
    assert (answers == wanted).double().mean() >= 0.9


def test_divergence_is_one_sentence_saying_what_to_lower(make_distilled: MakeDistilled):
    data, cfg = make_distilled(RelabelConfig(views=1)), settings(lr=1e30)
    with pytest.raises(RunError) as caught:
        train_student(cfg, new_student("resnet8", data, 0), data, "soft", 0, CPU)
    assert str(caught.value).startswith("posttrain: the loss of resnet8 is nan in epoch ")
    assert str(caught.value).endswith("lower its learning rate (now 1e+30)")
