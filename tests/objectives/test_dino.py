"""DINO against loops in float64 from arXiv:2104.14294, and against lightly."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.config.objectives import DinoConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.models import create_model
from scdd.objectives import Batch, create_objective
from scdd.objectives.dino import Dino
from scdd.training import make_optimizer
from tests.objectives.multicrop_training import (
    SIZE,
    assert_close_gradients,
    assert_goes_on_from_its_state_dict,
    batch,
    sixty_steps,
    train,
)


def new(**changes: Any) -> Dino:
    """A small objective in train mode, whose teacher and centre are away from where they start."""
    settings: dict[str, Any] = {"dim": 10, "hidden": 16, "bottleneck": 6} | changes
    torch.manual_seed(0)
    objective = Dino(create_model("resnet8", 0, SIZE), DinoConfig(**settings)).train()
    with torch.no_grad():
        for slow in [*objective.backbone.parameters(), *objective.head.parameters()]:
            slow.add_(0.05 * torch.randn_like(slow))
        objective.centre.copy_(0.1 * torch.randn(10))
    return objective


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum(dim=1, keepdim=True).sqrt()


def outputs(backbone: nn.Module, head: nn.Module, views: tuple[Tensor, ...]):
    """Bottlenecks and logits of every view, [B, bottleneck] and [B, dim], in float64."""
    double = [view.double() for view in views]
    features = [*backbone(torch.cat(double[:2])).chunk(2)]
    if double[2:]:
        features += backbone(torch.cat(double[2:])).chunk(len(double) - 2)
    z = unit(head.mlp(torch.cat(features)))
    logits = z @ unit(head.last_layer.weight).T
    return z.chunk(len(views)), logits.chunk(len(views))


def both(twin: Dino, of: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Logits of the teacher on the global views and of the student on all, by a copy in float64."""
    with torch.no_grad():
        _, teacher = outputs(twin.backbone, twin.head, of.views[:2])
    _, student = outputs(twin.student_backbone, twin.student_head, of.views)
    return teacher, student


def paper_loss(teacher: Any, student: Any, centre: Tensor, hot: float, cold: float) -> Tensor:
    """Algorithm 1 with multi-crop (Eq. 3), image by image."""
    total, terms = torch.zeros((), dtype=torch.float64), 0
    for g, t in enumerate(teacher):
        for v, s in enumerate(student):
            if v == g:
                continue
            for image in range(len(t)):
                p = torch.exp((t[image] - centre) / cold)
                q = torch.exp(s[image] / hot)
                total = total - (p / p.sum() * torch.log(q / q.sum())).sum()
                terms += 1
    return total / terms


@pytest.mark.parametrize("local", [0, 1, 3])
@pytest.mark.parametrize("head_bn", [False, True])
def test_loss_and_gradients_are_those_of_the_paper(local: int, head_bn: bool):
    objective = new(head_bn=head_bn, student_temperature=0.12, teacher_temperature=0.06)
    twin = copy.deepcopy(objective).double()
    truth = paper_loss(*both(twin, batch(5, local)), twin.centre, 0.12, 0.06)
    truth.backward()
    loss = objective(batch(5, local))
    loss.value.backward()
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)
    assert_close_gradients(objective, twin)


@pytest.mark.parametrize("local", [0, 3])
def test_loss_and_centre_are_those_of_lightly(local: int):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    objective = new(centre_momentum=0.8)
    theirs = lightly.DINOLoss(
        10, teacher_temp=0.04, student_temp=0.1, center_momentum=0.8, warmup_teacher_temp_epochs=0
    ).double()
    theirs.center.copy_(objective.centre.double())
    for step in range(3):
        teacher, student = both(copy.deepcopy(objective).double(), batch(step, local))
        truth = theirs(list(teacher), list(student), teacher_temp=0.04)
        assert objective(batch(step, local)).value.item() == pytest.approx(truth.item(), rel=1e-5)
        centre = theirs.center.flatten()
        torch.testing.assert_close(objective.centre.double(), centre, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head_bn", [False, True])
def test_the_head_is_that_of_lightly(head_bn: bool):
    heads = pytest.importorskip("lightly.models.modules.heads", reason="lightly is not installed")
    mine = new(head_bn=head_bn).student_head
    with pytest.warns(FutureWarning, match="weight_norm"):
        theirs = heads.DINOProjectionHead(64, 16, 6, 10, batch_norm=head_bn)
    assert [type(m) for m in mine.mlp] == [type(m) for m in theirs.layers]
    theirs.layers.load_state_dict(
        {name: t for name, t in mine.mlp.state_dict().items() if name in theirs.layers.state_dict()}
    )
    theirs.last_layer.weight_v.data.copy_(mine.last_layer.weight.data)
    x = torch.randn(5, 64)
    z, logits = mine(x)
    torch.testing.assert_close(logits, theirs(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))


def test_the_hidden_layers_start_with_small_weights_and_no_bias():
    torch.manual_seed(0)
    cfg = DinoConfig(dim=10, hidden=256, bottleneck=64)
    head = Dino(create_model("resnet8", 0, SIZE), cfg).student_head
    linear = [m for m in head.mlp if isinstance(m, nn.Linear)]
    assert len(linear) == 3 and head.last_layer.bias is None
    for module in linear:
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not module.bias.any()


def test_the_length_of_a_last_layer_row_is_not_seen_in_the_logits():
    objective = new()
    _, before = objective.student_head(torch.ones(2, 64))
    with torch.no_grad():
        objective.student_head.last_layer.weight.mul_(7)
    _, after = objective.student_head(torch.ones(2, 64))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)


def test_the_centre_moves_after_the_loss_and_by_the_teacher_alone():
    objective = new(centre_momentum=0.2)
    teacher, student = both(copy.deepcopy(objective).double(), batch())
    old = objective.centre.double().clone()
    loss = objective(batch()).value.item()
    assert loss == pytest.approx(paper_loss(teacher, student, old, 0.1, 0.04).item(), rel=1e-5)
    moved = 0.2 * old + 0.8 * torch.cat(teacher).mean(dim=0)
    torch.testing.assert_close(objective.centre.double(), moved, rtol=0, atol=1e-6)
    late = paper_loss(teacher, student, moved, 0.1, 0.04).item()
    assert abs(late - loss) > 1e-3, "the order makes no difference, so nothing was shown"


def test_the_teacher_is_the_moving_average_of_parameters_and_no_buffer():
    objective = new(momentum=0.75)
    slow = [*objective.backbone.parameters(), *objective.head.parameters()]
    online = [*objective.student_backbone.parameters(), *objective.student_head.parameters()]
    objective.on_step_begin(0, 10)
    wanted = [0.75 * k.detach() + 0.25 * q.detach() for k, q in zip(slow, online, strict=True)]
    buffers = {name: b.clone() for name, b in objective.named_buffers()}
    objective.on_step_end()
    for mine, average in zip(slow, wanted, strict=True):
        torch.testing.assert_close(mine.detach(), average, rtol=1e-5, atol=1e-7)
    for name, buffer in objective.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize(
    ("epoch", "momentum"),
    [(0, 0.9), (5, 0.95), (10 / 3, 0.925), (20 / 3, 0.975), (9.9999, 1.0)],
)
def test_the_momentum_grows_to_one_along_half_a_cosine(epoch: float, momentum: float):
    objective = new(momentum=0.9)
    with torch.no_grad():
        for p in objective.backbone.parameters():
            p.zero_()
        for p in objective.student_backbone.parameters():
            p.fill_(1)
    objective.on_step_begin(epoch, 10)
    objective.on_step_end()
    for p in objective.backbone.parameters():
        torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - momentum), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("warmup", "epoch", "temperature"),
    [(0, 0, 0.07), (4, 0, 0.04), (4, 1, 0.0475), (4, 3.5, 0.06625), (4, 4, 0.07), (4, 9, 0.07)],
)
def test_the_temperature_of_the_teacher_rises_linearly(
    warmup: float, epoch: float, temperature: float
):
    objective = new(
        teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_warmup_epochs=warmup
    )
    twin = copy.deepcopy(objective).double()
    truth = paper_loss(*both(twin, batch()), twin.centre, 0.1, temperature)
    objective.on_step_begin(epoch, 10)
    assert objective(batch()).value.item() == pytest.approx(truth.item(), rel=1e-5)


def test_a_new_teacher_equals_the_student_and_shares_nothing_with_it():
    objective = Dino(create_model("resnet8", 0, SIZE), DinoConfig(dim=10, hidden=16, bottleneck=6))
    for student, teacher in (
        (objective.student_backbone, objective.backbone),
        (objective.student_head, objective.head),
    ):
        online = student.state_dict()
        for name, tensor in teacher.state_dict().items():
            assert torch.equal(tensor, online[name])
            assert tensor.data_ptr() != online[name].data_ptr()


def test_the_teacher_sees_no_local_view():
    objective, local_free = new(), new()
    bn = "bn1.num_batches_tracked"
    of = batch()
    objective(of)
    # The student's first BatchNorm meets a batch for each size, the teacher's one.
    assert int(objective.backbone.get_buffer(bn)) == 1
    assert int(objective.student_backbone.get_buffer(bn)) == 2
    # Numbers that no image holds reach the student and not the teacher.
    wild = [torch.full_like(view, 1e3 * (place + 1)) for place, view in enumerate(of.views[2:])]
    local_free(of._replace(views=(*of.views[:2], *wild)))
    for name, buffer in objective.backbone.named_buffers():
        assert torch.equal(buffer, local_free.backbone.get_buffer(name)), name
    assert torch.equal(objective.centre, local_free.centre)
    assert not torch.equal(
        objective.student_backbone.get_buffer("bn1.running_mean"),
        local_free.student_backbone.get_buffer("bn1.running_mean"),
    )


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_the_teacher_gets_no_gradient_and_is_not_optimised(kind: Any):
    objective = new()
    optimizer = make_optimizer(objective, SqueezeConfig(optimizer=kind, lr=0.5), decay_all=True)
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    slow = [*objective.backbone.parameters(), *objective.head.parameters()]
    online = [*objective.student_backbone.parameters(), *objective.student_head.parameters()]
    assert optimised == {id(p) for p in online}
    before, centre = [p.clone() for p in slow], objective.centre.clone()
    objective(batch()).value.backward()
    optimizer.step()
    assert all(p.grad is None for p in slow) and all(p.grad is not None for p in online)
    assert all(torch.equal(p, old) for p, old in zip(slow, before, strict=True))
    assert not objective.centre.requires_grad and not torch.equal(objective.centre, centre)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_a_frozen_last_layer_stays_bit_for_bit_and_then_learns(kind: Any):
    objective = new(freeze_epochs=1.5)
    cfg = SqueezeConfig(optimizer=kind, lr=0.5, weight_decay=0.1, momentum=0.9)
    optimizer = make_optimizer(objective, cfg, decay_all=True)
    last, first = objective.student_head.last_layer.weight, objective.student_head.mlp[0].weight
    before, moving = last.clone(), first.clone()
    train(objective, optimizer, [0.0, 0.5, 1.0, 1.4])
    assert torch.equal(last, before) and not torch.equal(first, moving)
    train(objective, optimizer, [1.5])
    assert not torch.equal(last, before)


def test_the_teacher_of_a_frozen_last_layer_stays_bit_for_bit_too():
    torch.manual_seed(0)
    cfg = DinoConfig(dim=10, hidden=16, bottleneck=6, momentum=0.3)
    objective = Dino(create_model("resnet8", 0, SIZE), cfg).train()
    before = objective.head.last_layer.weight.clone()
    optimizer = torch.optim.SGD(
        [p for p in objective.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    train(objective, optimizer, [0.0, 0.3, 0.6])
    assert torch.equal(objective.head.last_layer.weight, before)


def test_what_is_watched_is_the_unit_bottleneck_of_the_student_on_the_first_view():
    objective = new()
    twin = copy.deepcopy(objective).double()
    z, _ = outputs(twin.student_backbone, twin.student_head, batch().views)
    embedding = objective(batch()).embedding
    assert not embedding.requires_grad
    torch.testing.assert_close(embedding.double(), z[0].detach(), rtol=0, atol=1e-5)


def test_a_state_dict_carries_all_that_the_next_steps_depend_on():
    def fresh() -> tuple[Dino, torch.optim.Optimizer]:
        objective = new(freeze_epochs=0.2, teacher_warmup_epochs=0.5, head_bn=True, momentum=0.9)
        return objective, torch.optim.SGD(
            [p for p in objective.parameters() if p.requires_grad], lr=0.1
        )

    assert_goes_on_from_its_state_dict(fresh)


def test_under_autocast_logits_and_loss_are_computed_in_float32():
    objective = new()
    exact = copy.deepcopy(objective)(batch()).value.item()
    with torch.autocast("cpu", torch.bfloat16):
        z, logits = objective.student_head(torch.ones(2, 64))
        loss = objective(batch())
    weight = objective.student_head.last_layer.weight
    torch.testing.assert_close(
        logits.double(), z.double() @ unit(weight.double()).T, atol=1e-6, rtol=0
    )
    assert loss.value.dtype == loss.embedding.dtype == objective.centre.dtype == torch.float32
    assert loss.value.item() != exact and loss.value.item() == pytest.approx(exact, rel=0.1)


def one_code(objective: Dino) -> None:
    """Let the teacher answer the same for all images: far more for one output than for others."""
    with torch.no_grad():
        objective.head.mlp[-1].weight.zero_()
        objective.head.mlp[-1].bias.copy_(objective.head.last_layer.weight[3])


def test_a_teacher_with_one_answer_for_all_is_undone_by_the_centre():
    objective = new(dim=10, centre_momentum=0.0)
    one_code(objective)
    with torch.no_grad():
        objective.centre.zero_()
        _, same = objective.head(torch.ones(1, 64))
    targets = (same / 0.04).softmax(dim=1)
    assert torch.special.entr(targets).sum().item() < 0.1, "sharpening alone: one code"
    objective(batch())
    # Centred by its own mean, the teacher knows nothing: all outputs are equally likely.
    torch.testing.assert_close(objective.centre, same[0])
    uniform = ((same - objective.centre) / 0.04).softmax(dim=1)
    assert torch.special.entr(uniform).sum().item() == pytest.approx(math.log(10), rel=1e-4)


def test_a_student_with_equal_outputs_stays_at_the_logarithm_of_their_number():
    objective = new()
    with torch.no_grad():
        weight = objective.student_head.last_layer.weight
        weight.copy_(weight[:1].expand(10, -1).clone())
    assert objective(batch()).value.item() == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.slow
def test_the_loss_falls_in_sixty_steps_with_local_crops_and_the_teacher_is_kept():
    settings = DinoConfig(dim=32, hidden=64, bottleneck=16, head_bn=True, momentum=0.9)
    objective, lines = sixty_steps(settings)
    assert lines[-1]["step"] == 60
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["loss"] < 0.5 * math.log(32)
    assert lines[-1]["spread"] > 0.6 and lines[-1]["effective_rank"] > 5
    assert int(objective.backbone.get_buffer("bn1.num_batches_tracked")) == 60


def test_the_factory_builds_it_and_publishes_the_teacher():
    cfg = SqueezeConfig(
        arch="resnet8x2", batch=8, objective=DinoConfig(dim=10, hidden=16, bottleneck=6)
    )
    objective = create_objective(cfg, SIZE, num_classes=4, num_images=50)
    assert isinstance(objective, Dino) and objective.backbone.arch == "resnet8x2"
    assert not any(p.requires_grad for p in objective.backbone.parameters())
    assert objective.student_backbone is not objective.backbone
