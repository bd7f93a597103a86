"""Two real processes under torchrun that share every batch, against one, and against a kill."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scdd.checkpoint import NO_CHECKPOINT
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets import ResidentSource
from scdd.objectives import Objective
from scdd.stages.squeeze import squeeze
from tests.conftest import child_environment
from tests.killed_rank import LAUNCHER
from tests.stages.conftest import CPU, SIZE

SCRIPT = Path(__file__).with_name("squeeze_process.py")
CONFIG = SqueezeConfig.model_validate(
    {
        "arch": "resnet8",
        "objective": {"name": "moco_v2", "dim": 8, "queue": 32},
        "epochs": 2,
        "batch": 8,
        "lr": 0.05,
        "knn_every": 1,
        "views": [{"count": 2, "blur": 0.5}],
        "keep_epochs": [1],
    }
)


def torchrun(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script in two processes that find each other by themselves."""
    return subprocess.run(
        [sys.executable, *LAUNCHER, str(SCRIPT), *map(str, args)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def answers(folder: Path, name: str) -> list[dict[str, Any]]:
    """What both processes wrote."""
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def source() -> ResidentSource:
    """34 noisy images of four classes of brightness."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(34) % 4
    images = torch.randint(100, (34, 3, SIZE, SIZE), generator=draw)
    images += 50 * labels.view(-1, 1, 1, 1)
    return ResidentSource(images.to(torch.uint8), labels, tuple("abcd"), (0.5,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def folder(source: ResidentSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an uninterrupted run of two processes has left its answers."""
    folder = tmp_path_factory.mktemp("two")
    inputs = {"images": source.images, "labels": source.labels}
    torch.save(inputs | {"config": json.dumps(CONFIG.model_dump())}, folder / "inputs.pt")
    done = torchrun(folder, "whole")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_the_same_batches(
    folder: Path, source: ResidentSource
):
    lines: list[dict[str, Any]] = []
    kept: dict[int, dict[str, Tensor]] = {}

    def keep(epoch: int, objective: Objective) -> None:
        kept[epoch] = {name: tensor.clone() for name, tensor in objective.state_dict().items()}

    def log(stage: str, **values: Any) -> None:
        lines.append(values)

    squeeze(CONFIG, source, source, SIZE, 0, CPU, NO_CHECKPOINT, log, keep)
    first, second = answers(folder, "whole")
    loss = (first["lines"][0]["loss"] + second["lines"][0]["loss"]) / 2
    assert loss == pytest.approx(lines[0]["loss"], rel=1e-4)
    for name, wanted in kept[1].items():
        gap = (first["kept"][1][name] - wanted).double().norm()
        assert gap <= 1e-3 * wanted.double().norm() + 1e-6, name
    assert first["kept"][1].keys() == kept[1].keys()
    # Equal in every bit, or the processes would drift apart.
    assert_equal(first["state"], second["state"])


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_go_on_to_the_same_state_bit_for_bit(folder: Path):
    killed = torchrun(folder, "killed", 5)
    assert killed.returncode != 0 and not (folder / "killed-0.pt").exists()
    left = torch.load(folder / "killed.checkpoint", weights_only=True)
    assert left["step"] == 5
    resumed = torchrun(folder, "killed")
    assert resumed.returncode == 0, resumed.stderr
    for mine, wanted in zip(answers(folder, "killed"), answers(folder, "whole"), strict=True):
        assert_equal(mine["state"], wanted["state"])
        assert [line["epoch"] for line in mine["lines"]] == [2]


@pytest.mark.slow
def test_a_batch_that_the_processes_cannot_share_is_refused_by_each(folder: Path):
    for answer in answers(folder, "whole"):
        assert answer["refusal"] == (
            "squeeze.batch is 7, which 2 processes cannot share equally; choose a multiple of 2"
        )
