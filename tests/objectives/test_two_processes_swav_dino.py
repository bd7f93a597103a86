"""Two processes that share a batch train as one process does that has it all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scdd.config.objectives import DinoConfig, SwavConfig
from scdd.distributed import own_rows, rank_and_size, total
from scdd.objectives import Batch, Objective
from scdd.objectives.dino import Dino
from scdd.objectives.swav import Swav
from tests.conftest import ROOT, child_environment

SIZE, LOCAL, COUNT, STEPS = 16, 8, 12, 4
CASES = ("swav", "dino", "dino_bn")


class SmoothNet(nn.Sequential):
    """With tanh: rounding that switches a ReLU changes gradients by a thousand times itself."""

    feature_dim = 16

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Conv2d(8, self.feature_dim, 3, stride=2),
            nn.BatchNorm2d(self.feature_dim),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def build(case: str) -> Objective:
    torch.manual_seed(0)
    backbone = SmoothNet()
    if case == "swav":
        # Full after two steps, so both ways to assign codes are taken.
        swav = SwavConfig(
            dim=8, hidden=16, prototypes=10, queue=20, queue_from_epoch=0, freeze_epochs=1
        )
        return Swav(backbone, swav).train()
    settings = DinoConfig(
        dim=10,
        hidden=16,
        bottleneck=6,
        head_bn=case == "dino_bn",
        momentum=0.8,
        freeze_epochs=1,
    )
    return Dino(backbone, settings).train()


def share(step: int) -> Batch:
    """The rows of this process of a batch that is the same for all."""
    draw = torch.Generator().manual_seed(100 + step)
    own = own_rows(COUNT // rank_and_size()[1])
    views = tuple(
        torch.randn(COUNT, 3, side, side, generator=draw)[own]
        for side in (SIZE, SIZE, LOCAL, LOCAL)
    )
    return Batch(views, torch.zeros(len(views[0])).long(), torch.arange(COUNT)[own], draw)


def train(case: str) -> dict[str, Any]:
    """Train as squeeze does; losses over all processes, gradients of every step, last state."""
    objective = build(case)
    size = rank_and_size()[1]
    together = (
        DistributedDataParallel(objective, broadcast_buffers=False) if size > 1 else objective
    )
    optimizer = torch.optim.SGD(
        [p for p in objective.parameters() if p.requires_grad], lr=0.05, momentum=0.9
    )
    losses, gradients = [], []
    for step in range(STEPS):
        objective.on_step_begin(step / 2, STEPS // 2)
        loss = together(share(step))
        optimizer.zero_grad()
        loss.value.backward()
        objective.on_backward_end()
        losses.append(total(loss.value.detach()) / size)
        gradients.append(
            {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        )
        optimizer.step()
        objective.on_step_end()
    return {"losses": losses, "gradients": gradients, "state": objective.state_dict()}


def work(rank: int, folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2
    )
    torch.save({case: train(case) for case in CASES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 found."""
    folder = tmp_path_factory.mktemp("pair")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.objectives.test_two_processes_swav_dino", rank, folder],
            cwd=ROOT,
            env=child_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    outcomes = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def assert_near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Of each tensor within the rounding of a few steps in float32."""
    assert found.keys() == wanted.keys()
    rounding = 1e-5 * max(tensor.double().norm() for tensor in wanted.values())
    for name, tensor in wanted.items():
        error = (found[name].double() - tensor.double()).norm()
        assert error <= 1e-4 * tensor.double().norm() + rounding, name


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_states_are_those_of_one_process(
    case: str, pair: list[dict[str, Any]]
):
    alone = train(case)
    for found in (rank[case] for rank in pair):
        torch.testing.assert_close(found["losses"], alone["losses"], rtol=1e-4, atol=0)
        for mine, wanted in zip(found["gradients"], alone["gradients"], strict=True):
            assert_near(mine, wanted)
        assert_near(found["state"], alone["state"])


@pytest.mark.parametrize("case", CASES)
def test_both_processes_end_in_the_same_state_bit_for_bit(case: str, pair: list[dict[str, Any]]):
    first, second = (rank[case]["state"] for rank in pair)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_what_is_remembered_covers_the_rows_of_all_processes(pair: list[dict[str, Any]]):
    queue = pair[0]["swav"]["state"]["queue"]
    torch.testing.assert_close(queue.norm(dim=2), torch.ones(2, 20))
    assert len(queue[0].unique(dim=0)) == 20
    counts = {case: pair[0][case]["state"]["backbone.1.num_batches_tracked"] for case in CASES}
    assert counts == {"swav": 2 * STEPS, "dino": STEPS, "dino_bn": STEPS}


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
