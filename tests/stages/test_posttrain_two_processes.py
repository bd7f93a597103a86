"""Two real processes that share every batch of a student, against one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.posttrain import PosttrainConfig
from scdd.config.relabel import RelabelConfig
from scdd.distilled import DistilledDataset
from scdd.distributed import rank_and_size
from scdd.stages.posttrain import new_student, train_student
from tests.stages.conftest import CPU
from tests.two_processes import TwoProcesses

MakeDistilled = Callable[..., DistilledDataset]

CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # 12 images: 5 + 5 + 2, so that parts are unequal.
    ({"views": 2}, {"batch": 5, "ema": 0.8}, "soft"),
    ({"views": 2, "mix": "mixup"}, {"batch": 8, "micro_batches": 2, "loss": "mse"}, "soft"),
    ({"views": 2, "teacher_bn": "batch", "group": 3}, {"batch": 3, "optimizer": "adamw"}, "hard"),
]


class Killed(Exception):
    """Stands for a kill."""


def settings(**changes: Any) -> PosttrainConfig:
    base = {"epochs": 3, "optimizer": "sgd", "lr": 0.01, "temperature": 4.0}
    return PosttrainConfig(**(base | changes))


def state(student: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def train_together(
    path: str, changes: dict[str, Any], labels: Any, checkpoint: str = "", kill_at: int = 0
) -> dict[str, Any]:
    """What a process of several ends with, and what it was given to score after each epoch."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            raise Killed

    data, scored = DistilledDataset.open(path), []
    minutes = 0 if rank_and_size()[0] == 0 else 1e9  # One saves, all load.
    student = new_student("resnet8", data, 1)
    try:
        train_student(
            settings(**changes),
            student,
            data,
            labels,
            2,
            CPU,
            Checkpoint(Path(checkpoint), minutes) if checkpoint else NO_CHECKPOINT,
            after_backward=count,
            after_epoch=lambda epoch, net: scored.append(state(net)),
            together=True,
        )
    except Killed:
        return {"steps": done}
    return {"steps": done, "state": state(student), "scored": scored}


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, truth in wanted.items():
        gap = (found[name] - truth).double().norm()
        assert gap <= 1e-3 * truth.double().norm() + 1e-6, name


@pytest.mark.slow  # Three processes import torch.
@pytest.mark.parametrize(("relabel", "changes", "labels"), CASES)
def test_two_processes_make_the_student_that_one_makes(
    relabel: dict[str, Any],
    changes: dict[str, Any],
    labels: Any,
    make_distilled: MakeDistilled,
    two_processes: TwoProcesses,
):
    data = make_distilled(RelabelConfig(**relabel))
    scored: list[dict[str, Tensor]] = []
    alone = train_student(
        settings(**changes),
        new_student("resnet8", data, 1),
        data,
        labels,
        2,
        CPU,
        after_epoch=lambda epoch, net: scored.append(state(net)),
    )
    first, second = two_processes(train_together, str(data.path), changes, labels)
    assert_near(first["state"], alone.state_dict())
    for mine, wanted in zip(first["scored"], scored, strict=True):
        assert_near(mine, wanted)
    # Equal in every bit, or the processes would drift apart.
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_to_the_same_student_bit_for_bit(
    make_distilled: MakeDistilled, two_processes: TwoProcesses, tmp_path: Path
):
    data = make_distilled(RelabelConfig(views=2))
    case = (str(data.path), {"batch": 5, "ema": 0.8}, "soft")
    whole = two_processes(train_together, *case)
    killed = two_processes(train_together, *case, str(tmp_path / "c"), 5)
    assert [found["steps"] for found in killed] == [5, 5] and (tmp_path / "c").exists()
    resumed = two_processes(train_together, *case, str(tmp_path / "c"))
    for mine, wanted in zip(resumed, whole, strict=True):
        assert mine["steps"] == 9 - 4
        for name, tensor in wanted["state"].items():
            assert torch.equal(mine["state"][name], tensor), name
