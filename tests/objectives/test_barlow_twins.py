"""Barlow Twins against loops in float64 written from arXiv:2103.03230, and against lightly."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.config.objectives import BarlowTwinsConfig
from scdd.models import create_model
from scdd.objectives.barlow_twins import BarlowTwins
from tests.objectives.cases import Flat, layers, outputs_of, pair, unrelated

SIZE, BATCH, DIM = 8, 10, 5


def new(**changes: Any) -> BarlowTwins:
    settings = {"dim": DIM, "hidden": 12, "off_diagonal": 0.02} | changes
    torch.manual_seed(0)
    objective = BarlowTwins(create_model("resnet8", 0, SIZE), BarlowTwinsConfig(**settings)).train()
    with torch.no_grad():
        objective.projector[-1].weight.mul_(100)  # so that BatchNorm's epsilon is nothing beside
    return objective


def correlation_loss(z1: Tensor, z2: Tensor, weight: float) -> Tensor:
    """Eq. 1 and 2, entry by entry; z are [B, D] in float64."""
    total = torch.zeros((), dtype=torch.float64)
    z1, z2 = z1 - z1.mean(dim=0), z2 - z2.mean(dim=0)
    for i in range(z1.shape[1]):
        for j in range(z2.shape[1]):
            lengths = (z1[:, i] ** 2).sum().sqrt() * (z2[:, j] ** 2).sum().sqrt()
            c = (z1[:, i] * z2[:, j]).sum() / lengths
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


def twin_of(objective: BarlowTwins) -> nn.Module:
    return copy.deepcopy(nn.Sequential(objective.backbone, objective.projector)).double()


def assert_same_gradients(objective: BarlowTwins, twin: nn.Module) -> None:
    trained = list(objective.parameters())
    floor = max(p.grad.norm() for p in twin.parameters())
    for mine, reference in zip(trained, twin.parameters(), strict=True):
        assert (mine.grad - reference.grad).norm() <= 1e-3 * reference.grad.norm() + 1e-6 * floor


@pytest.mark.parametrize("scale", [1.0, 0.048])
def test_loss_and_gradients_are_those_of_the_equations(scale: float):
    objective, (view1, view2) = new(scale=scale), unrelated(BATCH, SIZE)
    twin = twin_of(objective)
    loss = objective(pair(view1, view2))
    loss.value.backward()
    z1, z2 = twin(view1.double()), twin(view2.double())
    truth = scale * correlation_loss(z1, z2, 0.02)
    truth.backward()
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)
    assert_same_gradients(objective, twin)
    unit = z1.detach() / z1.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(loss.embedding.double(), unit, rtol=0, atol=1e-4)


def test_loss_and_gradients_are_those_of_lightly():
    lightly = pytest.importorskip("lightly.loss", reason="lightly is an oracle that is not needed")
    objective, (view1, view2) = new(), unrelated(BATCH, SIZE)
    twin = twin_of(objective)
    loss = objective(pair(view1, view2)).value
    loss.backward()
    truth = lightly.BarlowTwinsLoss(lambda_param=0.02)(twin(view1.double()), twin(view2.double()))
    truth.backward()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    assert_same_gradients(objective, twin)


def of_outputs(out1: Tensor, out2: Tensor) -> float:
    """The loss of outputs [B, DIM], as they are, with weight 0.02."""
    objective = BarlowTwins(Flat(DIM), BarlowTwinsConfig(dim=DIM, hidden=4, off_diagonal=0.02))
    objective.projector = nn.Identity()
    views = (out.view(*out.shape, 1, 1) for out in (out1, out2))
    return objective.train()(pair(*views)).value.item()


def test_what_each_correlation_costs_can_be_counted():
    # Columns 1 to 5 of the 8 x 8 Hadamard matrix: mean 0, variance 1, orthogonal to one another.
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    z = 50 * torch.kron(two, torch.kron(two, two))[:, 1 : 1 + DIM]
    assert of_outputs(z, z) == pytest.approx(0, abs=1e-6)
    assert of_outputs(z, 7 * z + 3) == pytest.approx(0, abs=1e-6)
    assert of_outputs(z, -z) == pytest.approx(4 * DIM, rel=1e-5)
    assert of_outputs(z, z.roll(1, dims=1)) == pytest.approx(DIM + 0.02 * DIM, rel=1e-5)
    same = z[:, :1].expand(-1, DIM)
    assert of_outputs(same, same) == pytest.approx(0.02 * DIM * (DIM - 1), rel=1e-5)


def test_on_unrelated_views_the_loss_starts_near_the_dimension():
    # Correlations of n unrelated pairs have mean 0 and variance 1 / (n - 1).
    torch.manual_seed(0)
    d, n, weight = 64, 128, 0.0051
    cfg = BarlowTwinsConfig(dim=d, hidden=128, off_diagonal=weight)
    objective = BarlowTwins(Flat(3 * SIZE * SIZE), cfg).train()
    start = d + (d + weight * d * (d - 1)) / (n - 1)
    losses = [objective(pair(*unrelated(n, SIZE, step))).value.item() for step in range(8)]
    assert sum(losses) / 8 == pytest.approx(start, rel=0.02)


def test_the_projector_is_that_of_the_paper():
    objective = new(hidden=12, dim=DIM)
    assert layers(objective.projector) == [
        ("linear", "64-12", "no bias"),
        ("batchnorm", "12", "affine"),
        ("relu",),
        ("linear", "12-12", "no bias"),
        ("batchnorm", "12", "affine"),
        ("relu",),
        ("linear", f"12-{DIM}", "no bias"),
    ]
    assert not list(objective.standardise.parameters())


def test_every_view_has_batch_statistics_of_its_own():
    objective, (view1, view2) = new(), unrelated(BATCH, SIZE)
    backbone = copy.deepcopy(objective.backbone)
    objective(pair(view1, view2))
    backbone(view1)
    backbone(view2)
    for (name, mine), wanted in zip(
        objective.backbone.named_buffers(), backbone.buffers(), strict=True
    ):
        assert torch.equal(mine, wanted), name


def test_under_autocast_the_loss_itself_is_in_float32():
    objective = new()
    outputs = outputs_of(objective.projector)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(pair(*unrelated(BATCH, SIZE)))
    assert outputs[0].dtype == torch.bfloat16, "autocast did nothing, so nothing was shown"
    assert loss.value.dtype == loss.embedding.dtype == torch.float32
    truth = correlation_loss(*(z.double() for z in outputs), 0.02)
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)
