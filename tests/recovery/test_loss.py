"""The loss and its gradient against float64 written from the formulas, term by term."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.recover import RecoverConfig
from scdd.errors import ConfigError
from scdd.recovery import RecoveryLoss, draw_views
from tests.stages import reference_recover as reference
from tests.stages.conftest import CLASSES, SIZE, trained_teacher
from tests.stages.small_recovery import VIEWS

COUNT = 6


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A net whose BatchNorm has statistics and weights."""
    return trained_teacher()


def settings(**changes: Any) -> RecoverConfig:
    return RecoverConfig(**({"crop": "none"} | changes))


def images(count: int = COUNT, seed: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor | None, truth: Tensor) -> float:
    assert found is not None
    return ((found.double() - truth).norm() / truth.norm()).item()


def measured(
    loss: nn.Module, cfg: RecoverConfig, x: Tensor, alpha: float, groups: int = 1
) -> tuple[Any, Tensor | None]:
    """Terms, and the gradient of the images; batch g draws from seed g."""
    x = x.clone().requires_grad_(True)
    labels = torch.arange(len(x) // groups).repeat(groups) % CLASSES
    draws = [torch.Generator().manual_seed(seed) for seed in range(groups)]
    view = draw_views(cfg, SIZE, len(x) // groups, 0.0, draws)
    terms = loss(x, labels, view, torch.tensor(alpha))
    terms.total.backward()
    return terms, x.grad


def gradient(teacher: nn.Module, x: Tensor, alpha: float, **changes: Any) -> tuple[Any, Tensor]:
    cfg = settings(**changes)
    terms, found = measured(RecoveryLoss(teacher, cfg, 1, False), cfg, x, alpha)
    assert found is not None
    return terms, found


def double_distances(teacher: nn.Module, x: Tensor) -> Tensor:
    """Distances [K, 2] in float64, differentiable."""
    found: list[Tensor] = []

    def look(norm: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        values = args[0].transpose(0, 1).flatten(1)
        assert norm.running_mean is not None and norm.running_var is not None
        off = values.mean(dim=1) - norm.running_mean
        spread = values.var(dim=1, correction=0) - norm.running_var
        found.append(torch.stack([off.norm(), spread.norm()]))

    net = copy.deepcopy(teacher).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(look)
    net(x)
    return torch.stack(found)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("groups", [1, 3])
def test_losses_and_image_gradient_are_those_of_the_float64_reference(
    view: dict[str, Any], groups: int, teacher: nn.Module
):
    cfg, x = settings(**view), images(COUNT * groups)
    terms, found = measured(RecoveryLoss(teacher, cfg, groups, False), cfg, x, 0.3, groups)
    net, truths = copy.deepcopy(teacher).double(), []
    for number, part in enumerate(x.double().chunk(groups)):
        drawn = draw_views(cfg, SIZE, COUNT, 0.0, [torch.Generator().manual_seed(number)])
        shown = reference.View([], [], (0, 0))
        if drawn is not None:
            boxes = drawn.boxes.tolist() if cfg.crop != "none" else []
            roll = tuple(drawn.shift[0].tolist())
            shown = reference.View(boxes, drawn.flip.tolist(), roll)
        part = part.requires_grad_(True)
        labels = torch.arange(COUNT) % CLASSES
        one, other = reference.losses(net, reference.render(part, shown), labels, 10)
        truths.append(torch.autograd.grad(one + 0.3 * other, part)[0])
        assert terms.class_loss[number].item() == pytest.approx(one.item(), rel=1e-5)
        assert terms.matching_loss[number].item() == pytest.approx(other.item(), rel=1e-5)
    assert error(found, torch.cat(truths)) < 1e-5


def test_temperature_and_smoothing_are_those_of_the_softmax(teacher: nn.Module):
    x = images().double().requires_grad_(True)
    logits = copy.deepcopy(teacher).double()(x)
    labels = torch.arange(COUNT) % CLASSES
    soft = torch.full((COUNT, CLASSES), 0.2 / CLASSES, dtype=torch.float64)
    soft[torch.arange(COUNT), labels] += 0.8
    loss = -(soft * F.log_softmax(logits / 3, dim=1)).sum(dim=1).mean()
    (truth,) = torch.autograd.grad(loss, x)
    terms, found = gradient(teacher, images(), 0.0, temperature=3, label_smoothing=0.2)
    assert terms.total.item() == pytest.approx(loss.item(), rel=1e-5)
    assert error(found, truth) < 1e-5


def test_every_layer_can_have_its_own_weights(teacher: nn.Module):
    x = images().double().requires_grad_(True)
    distances = double_distances(teacher, x)
    weights = torch.ones_like(distances)
    weights[0], weights[2], weights[5, 1] = 7, torch.tensor([0.5, 4.0]), 0
    matching = (weights * distances).sum()
    (truth,) = torch.autograd.grad(matching, x)
    changes = {"first_bn_multiplier": 7, "layer_weights": {2: (0.5, 4.0), 5: (1.0, 0.0)}}
    terms, _ = gradient(teacher, images(), 1e4, **changes)
    assert terms.matching_loss.item() == pytest.approx(matching.item(), rel=1e-5)
    _, found = gradient(teacher, images(), 1e6, **changes)
    assert error(found / 1e6, truth) < 1e-4  # The class loss is still in it.
    with pytest.raises(ConfigError, match="there is no layer 99; the teacher has"):
        gradient(teacher, images(), 1.0, layer_weights={99: (1.0, 1.0)})


def test_relative_matching_does_not_see_how_convolutions_are_scaled(teacher: nn.Module):
    scaled = copy.deepcopy(teacher)
    convs = [m for m in scaled.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in scaled.modules() if isinstance(m, nn.BatchNorm2d)]
    factors = [0.1 * 3**number for number in range(len(convs))]
    assert len(convs) == len(norms)
    for conv, norm, factor in zip(convs, norms, factors, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        conv.weight.mul_(factor)
        norm.running_mean.mul_(factor)
        norm.running_var.mul_(factor**2)
        norm.eps *= factor**2
    x = images()
    torch.testing.assert_close(scaled(x), teacher(x), rtol=1e-3, atol=1e-4)
    one, gradient_one = gradient(teacher, x, 1.0, matching="relative")
    two, gradient_two = gradient(scaled, x, 1.0, matching="relative")
    assert two.matching_loss.item() == pytest.approx(one.matching_loss.item(), rel=1e-4)
    assert error(gradient_two, gradient_one.double()) < 1e-3
    raw = [gradient(net, x, 1.0)[0].matching_loss.item() for net in (teacher, scaled)]
    assert raw[1] > 3 * raw[0]


def test_relative_distances_are_shares_of_the_running_statistics(teacher: nn.Module):
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    variances = [norm.running_var.double() for norm in norms if norm.running_var is not None]
    norms_of = [torch.stack([v.sum().sqrt(), (v**2).sum().sqrt()]) for v in variances]
    shares = double_distances(teacher, images().double()) / torch.stack(norms_of)
    weights = torch.ones(len(norms), 1, dtype=torch.float64)
    weights[0] = 10
    truth = (weights * shares).sum() / weights.sum()
    terms, _ = gradient(teacher, images(), 1.0, matching="relative")
    assert terms.matching_loss.item() == pytest.approx(truth.item(), rel=1e-5)


def test_learnt_weights_start_as_given_and_end_where_each_distance_is_what_it_costs(
    teacher: nn.Module,
):
    cfg = settings(learn_weights=True, first_bn_multiplier=10)
    loss = RecoveryLoss(teacher, cfg, 2, False)
    x = images(2 * COUNT)
    terms, _ = measured(loss, cfg, x, 1.0, groups=2)
    plain, _ = measured(RecoveryLoss(teacher, settings(), 2, False), settings(), x, 1.0, 2)
    torch.testing.assert_close(terms.matching_loss, plain.matching_loss)
    # d/ds of w d exp(-s) + s is 0 at s = log(w d), of each batch by itself.
    assert loss.log_scale is not None and loss.log_scale.shape == (len(plain.distances), 2, 2)
    with torch.no_grad():
        loss.log_scale.copy_((loss.weights * plain.distances).log())
    loss.log_scale.grad = None
    measured(loss, cfg, x, 1.0, groups=2)
    assert loss.log_scale.grad is not None and loss.log_scale.grad.abs().max() < 1e-5


def test_priors_are_the_norms_of_differences_and_of_the_image(teacher: nn.Module):
    x = images().double().requires_grad_(True)
    right, down = x[..., 1:] - x[..., :-1], x[:, :, 1:] - x[:, :, :-1]
    falling = x[:, :, 1:, 1:] - x[:, :, :-1, :-1]
    rising = x[:, :, :-1, 1:] - x[:, :, 1:, :-1]
    variation = sum(part.square().sum().sqrt() for part in (right, down, falling, rising))
    prior = 0.3 * variation + 0.7 * x.square().sum().sqrt()
    (truth,) = torch.autograd.grad(prior, x)
    without, plain = gradient(teacher, images(), 0.0)
    terms, found = gradient(teacher, images(), 0.0, tv=0.3, l2=0.7)
    assert (terms.total - without.total).item() == pytest.approx(prior.item(), rel=1e-5)
    assert error(found - plain, truth) < 1e-5


def test_bf16_stays_close_to_float32(teacher: nn.Module):
    cfg = settings()
    exact, truth = measured(RecoveryLoss(teacher, cfg, 1, False), cfg, images(32), 0.1)
    rough, found = measured(RecoveryLoss(teacher, cfg, 1, True), cfg, images(32), 0.1)
    assert rough.distances.dtype == rough.total.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact.total.item(), rel=0.02)
    # Eight bits of mantissa, and ReLUs that decide otherwise near zero.
    assert truth is not None and error(found, truth.double()) < 0.1
