"""Two processes that share a batch, under DDP over gloo, against one that has all of it."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scdd.distributed import own_rows, rank_and_size
from scdd.objectives import Batch, Objective
from tests.objectives.cases import CASES, IMAGES, batch_of, images, take_step
from tests.two_processes import TwoProcesses

STEPS, BATCH = 3, 12


def train(name: str, steps: int = STEPS, lr: float = 0.1) -> list[dict[str, Any]]:
    """What every step leaves behind, in two processes."""
    objective = CASES[name].new()
    together = DistributedDataParallel(objective, broadcast_buffers=False)
    return [left_by(name, objective, step, steps, lr, together) for step in range(steps)]


def left_by(
    name: str,
    objective: Objective,
    step: int,
    steps: int,
    lr: float = 0.1,
    loss_of: nn.Module | None = None,
) -> dict[str, Any]:
    """What one step with this process's share of the batch leaves behind."""
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(step))
    whole = batch_of(order[:BATCH], images(IMAGES), CASES[name].sizes, step)
    own = own_rows(BATCH // rank_and_size()[1])
    views = tuple(view[own] for view in whole.views)
    batch = Batch(views, whole.labels[own], whole.rows[own], whole.generator)
    # Without momentum, so that the state dict is all that a step depends on.
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr)
    loss = take_step(objective, optimizer, batch, step, steps, loss_of)
    return {
        "loss": loss.value.detach(),
        "embedding": loss.embedding,
        "gradients": {
            key: parameter.grad.clone()
            for key, parameter in objective.named_parameters()
            if parameter.grad is not None
        },
        "state": {key: tensor.clone() for key, tensor in objective.state_dict().items()},
    }


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], far: float, what: str) -> None:
    """Norm by norm; a tensor that should be zero, and is all rounding, by the largest norm."""
    assert found.keys() == wanted.keys()
    floor = max(truth.double().norm() for truth in wanted.values())
    for key, truth in wanted.items():
        if truth.is_floating_point():
            gap = (found[key] - truth).double().norm()
            assert gap <= far * truth.norm() + 1e-5 * floor, f"{what}: {key}: {gap}"
        else:
            assert torch.equal(found[key], truth), f"{what}: {key}"


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does_with_the_whole_batch(
    name: str, two_processes: TwoProcesses
):
    objective = CASES[name].new()
    for step, (mine, other) in enumerate(zip(*two_processes(train, name), strict=True)):
        what = f"{name}, step {step}"
        wanted = left_by(name, objective, step, STEPS)
        mean = (mine["loss"] + other["loss"]) / 2
        torch.testing.assert_close(mean, wanted["loss"], rtol=2e-5, atol=1e-6, msg=what)
        embedding = torch.cat([mine["embedding"], other["embedding"]])
        torch.testing.assert_close(embedding, wanted["embedding"], rtol=0, atol=1e-4, msg=what)
        for share in (mine, other):
            # A ReLU whose input is all rounding may open in one and not in the other.
            assert_near(share["gradients"], wanted["gradients"], 1e-2, what)
            assert_near(shared(name, share["state"]), shared(name, wanted["state"]), 1e-3, what)
        # Equal in every bit, or the processes would drift apart.
        for key, tensor in shared(name, mine["state"]).items():
            assert torch.equal(tensor, other["state"][key]), f"{what}: {key}"
        # Rounding is not to add up over the steps: the next one starts from the same weights.
        objective.load_state_dict(mine["state"])


def shared(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state that is to be the same in all processes."""
    pattern = re.compile(CASES[name].stays_apart)
    return {key: tensor for key, tensor in state.items() if not pattern.fullmatch(key)}


def test_what_one_process_saw_learnt_the_other_may_see_forgotten(two_processes: TwoProcesses):
    shares = two_processes(train, "supervised", 8, 2.0)
    forgotten, learnt, before = [0] * IMAGES, [False] * IMAGES, [False] * IMAGES
    for step, (mine, other) in enumerate(zip(*shares, strict=True)):
        now = mine["state"]["correct"].tolist()
        for i in range(IMAGES):
            forgotten[i] += before[i] and not now[i]
            learnt[i] = learnt[i] or now[i]
        before = now
        for share in (mine, other):
            assert share["state"]["forgotten"].tolist() == forgotten, step
            assert share["state"]["learnt"].tolist() == learnt, step
    assert sum(forgotten) > 2 and sum(learnt) > 2, "nothing happened, so nothing was shown"


def test_the_buffers_of_split_keys_are_those_of_the_groups_that_a_process_encodes(
    two_processes: TwoProcesses,
):
    """One process encodes both groups in turn; from start s, .9 (.9 s + .1 a) + .1 b."""
    name = "moco_v2_split"
    first, second = (steps[0]["state"] for steps in two_processes(train, name, 1))
    objective = CASES[name].new()
    start = {key: tensor.clone() for key, tensor in objective.state_dict().items()}
    alone = left_by(name, objective, 0, 1)["state"]
    names = [key for key in alone if re.fullmatch(CASES[name].stays_apart, key)]
    assert len(names) > 20
    for key in names:
        if key.endswith("num_batches_tracked"):
            assert (first[key], second[key], alone[key]) == (1, 1, 2)
            continue
        wanted = 0.9 * first[key] + second[key] - 0.9 * start[key]
        torch.testing.assert_close(alone[key], wanted, rtol=1e-3, atol=1e-4, msg=key)
        assert not torch.allclose(first[key], second[key], rtol=1e-3, atol=1e-4), key
