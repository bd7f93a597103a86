"""Rows of `scdd-apps crossarch` on two processes, and after a process was killed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scdd.config.posttrain import PosttrainConfig
from scdd.distributed import World, rank_and_size
from scdd_apps.crossarch import labelled
from scdd_apps.crossarch.options import Options
from scdd_apps.crossarch.training import train_missing
from scdd_apps.files import find_inputs
from tests.apps.conftest import write_file
from tests.apps.test_apps_commands import cells
from tests.conftest import Outcome, child_environment
from tests.killed_rank import LAUNCHER
from tests.two_processes import TwoProcesses

Run = Callable[..., Outcome]

RATES = {"resnet8": 0.01, "resnet14": 1e30, "resnet20": 0.01}
"""One of them no net survives; its rows fall to the second of two processes."""


def train_rows(file: str, out: str) -> dict[str, Any]:
    """Train three architectures as one of the processes that there are."""
    inputs = find_inputs(Path(file), None, None, False, Path(out), "crossarch")
    cpu, (rank, size) = torch.device("cpu"), rank_and_size()
    options = Options(list(RATES), epochs=3, overrides=["batch=12"])
    compared = labelled.compared_students(inputs, options, cpu)
    students = [
        replace(student, cfg=student.cfg.model_copy(update={"lr": RATES[student.arch]}))
        for student in compared.learners
    ]
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        train = labelled.train_student

        def noted(cfg: PosttrainConfig, *args: Any, **named: Any) -> Any:
            trained.append(cfg.arch)
            return train(cfg, *args, **named)

        patch.setattr(labelled, "train_student", noted)
        rows, failures = train_missing(
            inputs.out, replace(compared, learners=students), World(rank, size)
        )
    for row in rows.values():
        del row["seconds"]
    return {
        "rows": {student.arch: json.dumps(row) for student, row in rows.items()},
        "failures": failures,
        "trained": trained,
    }


def test_two_processes_share_rows_and_the_leading_one_knows_what_failed(
    small_file: Path, two_processes: TwoProcesses, tmp_path: Path
):
    lead, other = two_processes(train_rows, str(small_file), str(tmp_path / "shared"))
    assert (lead["trained"], other["trained"]) == (["resnet8", "resnet20"], ["resnet14"])
    assert list(lead["rows"]) == ["resnet8", "resnet20"]
    assert "nan" in lead["failures"]["resnet14"]
    alone = train_rows(str(small_file), str(tmp_path / "alone"))
    assert alone["trained"] == list(RATES)
    assert (alone["rows"], alone["failures"]) == (lead["rows"], lead["failures"])
    # What failed is tried again, and nothing else.
    lead, other = two_processes(train_rows, str(small_file), str(tmp_path / "shared"))
    assert (lead["trained"], other["trained"]) == (["resnet14"], [])
    assert list(lead["failures"]) == ["resnet14"]


@pytest.mark.slow  # Three processes import torch.
def test_torchrun_makes_the_table_that_one_process_makes(
    apps: Run, real_folder: Path, tmp_path: Path
):
    file = write_file(tmp_path / "prime.h5", size=17)  # which vit_tiny cannot use
    arguments = ["crossarch", file, "--data", real_folder, "--epochs", "2", "--seeds", "2"]
    arguments += ["--arch", "resnet8", "--arch", "vit_tiny", "--arch", "resnet14"]
    arguments += ["--set", "batch=12", "--out"]
    done = subprocess.run(
        [sys.executable, *LAUNCHER, "-m", "scdd_apps", *map(str, arguments), "shared"],
        env=child_environment(),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "shared by 2 processes" in done.stdout
    alone = apps(*arguments, "alone")
    assert cells(done.stdout) == cells(alone.stdout) and len(cells(alone.stdout)) == 3
    assert cells(done.stdout)[1][4] == "error"
    for name in ("report.md", "results.json", "results.csv", "crossarch.png"):
        assert (tmp_path / "shared" / name).is_file()


def test_after_a_kill_the_command_goes_on_at_the_next_row(
    apps: Run, small_file: Path, tmp_path: Path
):
    arguments = ["crossarch", small_file, "--arch", "resnet8", "--seeds", "2"]
    arguments += ["--epochs", "150", "--set", "batch=12", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scdd_apps", *map(str, arguments)],
        env=child_environment(),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows, deadline = tmp_path / "out" / "rows", time.monotonic() + 200
    while not list(rows.glob("*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    (first,) = rows.glob("*.json")
    written = first.stat().st_mtime_ns
    again = apps(*arguments)
    assert again.returncode == 0, again.stderr
    assert "1 of 2 students were trained before" in again.stdout
    assert "2 seeds" in again.stdout and len(list(rows.glob("*.json"))) == 2
    assert first.stat().st_mtime_ns == written
