"""What holds for every objective: it learns, it resumes bit for bit, and it keeps its contract."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from scdd.divergence import spread
from scdd.objectives import Objective
from tests.objectives.cases import CASES, CLASSES, IMAGES, batch_of, images, take_step


def optimizer_of(objective: Objective, lr: float = 0.05) -> Optimizer:
    return torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr, 0.9)


def steps(
    name: str, objective: Objective, optimizer: Optimizer, first: int, last: int
) -> list[float]:
    losses = []
    for step in range(first, last):
        rows = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(step))[:8]
        batch = batch_of(rows, images(IMAGES), CASES[name].sizes, step)
        losses.append(take_step(objective, optimizer, batch, step, 10).value.item())
    return losses


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_carries_all_that_the_next_steps_depend_on(name: str):
    whole = CASES[name].new()
    optimizer = optimizer_of(whole)
    steps(name, whole, optimizer, 0, 3)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    wanted = steps(name, whole, optimizer, 3, 6)

    resumed = CASES[name].new()
    optimizer = optimizer_of(resumed)
    steps(name, resumed, optimizer, 7, 9)  # elsewhere by now
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert steps(name, resumed, optimizer, 3, 6) == wanted
    # Not the state dicts: they would not show a buffer that was left out of them.
    for kind in ("named_parameters", "named_buffers"):
        for (key, tensor), (_, found) in zip(
            getattr(whole, kind)(), getattr(resumed, kind)(), strict=True
        ):
            assert torch.equal(tensor, found), key


@pytest.mark.parametrize("name", CASES)
def test_a_step_yields_a_loss_and_unit_embeddings_without_gradient(name: str):
    objective, rows = CASES[name].new(), torch.arange(8)
    loss = objective(batch_of(rows, images(IMAGES), CASES[name].sizes, 0))
    assert loss.value.shape == () and loss.value.requires_grad
    assert loss.embedding.ndim == 2 and len(loss.embedding) == 8
    assert loss.embedding.dtype == torch.float32 and not loss.embedding.requires_grad
    torch.testing.assert_close(loss.embedding.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("name", CASES)
def test_only_a_supervised_objective_looks_at_labels(name: str):
    case, pictures = CASES[name], images(IMAGES)
    batch = batch_of(torch.arange(8), pictures, case.sizes, 0)
    other = batch_of(torch.arange(8), pictures, case.sizes, 0)
    other = other._replace(labels=(other.labels + 1) % CLASSES, rows=other.rows + 1)
    values = [case.new()(views).value.item() for views in (batch, other)]
    assert (values[0] == values[1]) is (name != "supervised")


@pytest.mark.parametrize("name", CASES)
def test_only_a_supervised_objective_has_a_classifier_and_forgets(name: str):
    objective = CASES[name].new()
    labelled = name == "supervised"
    assert isinstance(objective.classifier, nn.Linear) is labelled
    assert (objective.forgetting is not None) is labelled
    assert (objective.classifier is None) is not labelled


@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls_on_fixed_images_and_the_embeddings_stay_apart(name: str):
    objective, pictures = CASES[name].new(), images(256)
    if name == "supervised":
        objective = type(objective)(objective.backbone, objective.cfg, CLASSES, 256).train()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(60):
        rows = torch.randperm(256, generator=torch.Generator().manual_seed(step))[:24]
        batch = batch_of(rows, pictures, CASES[name].sizes, step)
        loss = take_step(objective, optimizer, batch, step, 60)
        losses.append(loss.value.item())
    # Not the first step: a queue begins with random keys, which are easy to tell apart.
    assert sum(losses[-5:]) / 5 < 0.9 * max(losses[:10])
    assert spread(loss.embedding) > 0.1
