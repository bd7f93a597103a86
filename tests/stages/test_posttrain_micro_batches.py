"""Micro-batches and bf16: the step against an eager loop written here."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from scdd.config.posttrain import PosttrainConfig
from scdd.config.relabel import RelabelConfig
from scdd.distilled import DistilledDataset
from scdd.errors import ConfigError
from scdd.posttraining import learning_rate, step_batches, steps_per_epoch
from scdd.seeding import generator
from scdd.stages.posttrain import new_student, open_for_training, train_student
from tests.stages.conftest import CPU, SIZE

MakeDistilled = Callable[..., DistilledDataset]


def settings(**changes: Any) -> PosttrainConfig:
    base = {"epochs": 2, "batch": 6, "optimizer": "sgd", "lr": 0.05, "temperature": 4.0}
    return PosttrainConfig(**(base | changes))


def drawn(epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(epoch)


def without_norm() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 16), nn.Tanh(), nn.Linear(16, 4))


def with_norm() -> nn.Module:
    torch.manual_seed(1)
    middle = (nn.BatchNorm2d(6), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 6, 3), *middle, nn.Linear(24, 4))


def moved(student: nn.Module, start: nn.Module) -> Tensor:
    pairs = zip(student.parameters(), start.parameters(), strict=True)
    return torch.cat([(p - q).detach().flatten() for p, q in pairs])


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("parts", [2, 3])
def test_without_batchnorm_micro_batches_change_nothing(
    labels: Any, parts: int, make_distilled: MakeDistilled
):
    data, start = make_distilled(RelabelConfig(views=2, mix="mixup")), without_norm()
    plain, micro = copy.deepcopy(start), copy.deepcopy(start)
    train_student(settings(), plain, data, labels, 2, CPU)
    train_student(settings(micro_batches=parts), micro, data, labels, 2, CPU)
    wanted = moved(plain, start)
    assert (moved(micro, start) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize(
    ("relabel", "batch", "sizes"),
    [
        (RelabelConfig(views=1), 8, [[4, 4], [4]]),
        (RelabelConfig(views=1), 10, [[5, 5], [2]]),
        (RelabelConfig(views=1), 22, [[12]]),  # one image alone joins the others
        (RelabelConfig(views=1, teacher_bn="batch", group=3), 6, [[3, 3], [3, 3]]),
        (RelabelConfig(views=1, teacher_bn="batch", group=3), 14, [[6, 6]]),
        (RelabelConfig(views=1, teacher_bn="batch", group=8), 16, [[6, 6]]),
    ],
)
def test_a_micro_batch_is_a_whole_number_of_groups_and_every_image_is_seen_once(
    relabel: RelabelConfig, batch: int, sizes: list[list[int]], make_distilled: MakeDistilled
):
    data, cfg = make_distilled(relabel), settings(batch=batch, micro_batches=2)
    steps = list(step_batches(cfg, data, "soft", 0, drawn(0)))
    assert [[len(b.images) for b in step] for step in steps] == sizes
    assert steps_per_epoch(cfg, data) == len(sizes)
    seen = torch.cat([b.logits for step in steps for b in step])
    stored = data.soft_labels(0)
    where = (seen[:, None] == stored[None]).all(dim=2)
    assert (where.sum(dim=0) == 1).all()
    if relabel.teacher_bn == "batch":
        assert data.records is not None
        group = data.records.parameters["group"][0].long()[where.float().argmax(dim=1)]
        for part in group.split([size for step in sizes for size in step]):
            for number in part.unique():
                assert (part == number).sum() == (group == number).sum()
    skipped = list(step_batches(cfg, data, "soft", 0, drawn(0), skip=1))
    assert len(skipped) == len(steps) - 1
    for mine, whole in zip(skipped, steps[1:], strict=True):
        assert all(torch.equal(a.images, b.images) for a, b in zip(mine, whole, strict=True))


def test_each_micro_batch_has_statistics_of_its_own_and_counts_by_its_images(
    make_distilled: MakeDistilled,
):
    """16 images in groups of 6, 5 and 5: a step sees two of them, and the last step one."""
    data = make_distilled(RelabelConfig(views=2, teacher_bn="batch", group=6), ipc=4)
    cfg = settings(batch=12, micro_batches=2, weight_decay=0.0, momentum=0.0)
    truth, start = with_norm().double(), with_norm()
    sizes = set()
    each = steps_per_epoch(cfg, data)
    for epoch in range(cfg.epochs):
        order = generator(2, "posttrain.order", epoch)
        for number, step in enumerate(step_batches(cfg, data, "soft", epoch, order)):
            gradients = [torch.zeros_like(p) for p in truth.parameters()]
            images = sum(len(batch.images) for batch in step)
            sizes.add(tuple(len(batch.images) for batch in step))
            for batch in step:
                assert batch.logits is not None
                wanted = F.softmax(batch.logits.double() / cfg.temperature, dim=1)
                logs = F.log_softmax(truth(batch.images.double()) / cfg.temperature, dim=1)
                loss = (wanted * (wanted.log() - logs)).sum() / images
                own = torch.autograd.grad(loss, list(truth.parameters()))
                gradients = [a + b for a, b in zip(gradients, own, strict=True)]
            rate = learning_rate(cfg, epoch * each + number, each)
            with torch.no_grad():
                for p, gradient in zip(truth.parameters(), gradients, strict=True):
                    p.sub_(rate * gradient)
    assert (6, 5) in sizes or (5, 6) in sizes
    student = copy.deepcopy(start)
    train_student(cfg, student, data, "soft", 2, CPU)
    far = (moved(student, start).double() - moved(truth, start.double())).norm()
    assert far < 1e-4 * moved(truth, start.double()).norm()
    for mine, wanted in zip(student.buffers(), truth.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), wanted.double(), rtol=1e-4, atol=1e-5)


def test_bf16_is_the_arithmetic_of_the_student_alone(make_distilled: MakeDistilled):
    data = make_distilled(RelabelConfig(views=1))
    start = with_norm()
    students = {kind: copy.deepcopy(start) for kind in ("fp32", "bf16", "auto")}
    for kind, student in students.items():
        cfg = settings(precision=kind, epochs=1, batch=12, momentum=0.0, weight_decay=0.0)
        train_student(cfg, student, data, "soft", 0, CPU)
        assert all(p.dtype == torch.float32 for p in student.parameters())
    assert torch.equal(moved(students["auto"], start), moved(students["fp32"], start))
    (batch,) = data.epoch(0, 12, drawn(0))
    assert batch.logits is not None
    truth = copy.deepcopy(start)
    with torch.autocast("cpu", torch.bfloat16):
        logits = truth(batch.images)
    assert logits.dtype == torch.bfloat16
    wanted = F.softmax(batch.logits.double() / 4, dim=1)
    loss = F.kl_div(F.log_softmax(logits.double() / 4, dim=1), wanted, reduction="batchmean")
    gradients = torch.autograd.grad(loss, list(truth.parameters()))
    step = torch.cat([-0.05 * gradient.flatten() for gradient in gradients])
    found = moved(students["bf16"], start)
    # The order of the images differs, and with it what is rounded where.
    assert (found - step).norm() < 0.02 * step.norm()
    assert not torch.equal(found, moved(students["fp32"], start))


@pytest.mark.parametrize(("batch", "parts"), [(16, 3), (16, 16), (6, 4)])
def test_micro_batches_that_are_unequal_or_single_images_are_refused(batch: int, parts: int):
    with pytest.raises(ValidationError, match=r"micro_batches is .* cannot share .* images"):
        settings(batch=batch, micro_batches=parts)


def test_a_micro_batch_that_holds_no_group_is_refused_with_both_numbers(
    make_distilled: MakeDistilled,
):
    data = make_distilled(RelabelConfig(views=1, teacher_bn="batch", group=6))
    cfg = settings(batch=8, micro_batches=2)
    with pytest.raises(ConfigError) as caught:
        open_for_training(data.path, ("soft",), cfg, CPU)
    assert str(caught.value) == (
        f"{data.path}: labels were made in groups of 6 images; a batch of 4 holds none; make it "
        "at least 6 in each of 2 micro-batches; use --set batch=N"
    )
    assert new_student("resnet8", open_for_training(data.path, ("soft",), settings(), CPU), 0)
