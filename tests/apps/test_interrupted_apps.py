"""An app that is stopped in mid-training goes on from there and ends as if nothing had been."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from scdd.progress import Bar
from scdd_apps.crossarch import training
from scdd_apps.prune import place
from tests.conftest import Outcome, child_environment

Run = Callable[..., Outcome]


def stop_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM after so many epochs of training, and keep every step till then."""
    for app in (training, place):
        patch.setattr(app, "CHECKPOINT_MINUTES", 0)
    advance, seen = Bar.advance, []

    def counted(self: Bar, units: int = 1, note: str = "") -> None:
        advance(self, units, note)
        seen.append(note)
        if len(seen) == epochs:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(Bar, "advance", counted)


def rows(out: Path) -> list[dict]:
    found = json.loads((out / "results.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


# Two epochs of sparsity training, two of fine-tuning at ratio 0, then per row two or, from scratch,
# four. With two iterations every fine-tuning is two trainings of one epoch.
@pytest.mark.parametrize(
    ("epochs", "more"),
    [(1, ()), (3, ()), (5, ()), (7, ()), (10, ()), (6, ("--iterations", "2"))],
    ids=str,
)
def test_prune_goes_on_where_it_was_stopped(
    epochs: int,
    more: tuple[str, ...],
    apps: Run,
    small_file: Path,
    real_folder: Path,
    tmp_path: Path,
):
    arguments = ["prune", small_file, "--arch", "resnet8", "--data", real_folder, *more]
    arguments += ["--epochs", "2", "--set", "batch=6"]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(epochs, patch)
        stopped = apps(*arguments, "--out", "stopped")
    assert stopped.returncode == 143 and "the same command goes on" in stopped.stderr
    assert len(list((tmp_path / "stopped" / "rows").glob("*.pt"))) == 1
    assert apps(*arguments, "--out", "stopped").returncode == 0
    assert apps(*arguments, "--out", "whole").returncode == 0
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert not list((tmp_path / "stopped").rglob("*.pt"))
    assert not list((tmp_path / "stopped").rglob("*.step*"))
    for path in (tmp_path / "whole").glob("*.safetensors"):
        whole, other = load_file(path), load_file(tmp_path / "stopped" / path.name)
        assert all(bool((whole[name] == other[name]).all()) for name in whole)


@pytest.mark.slow
def test_prune_goes_on_at_the_next_row_after_a_kill(
    small_file: Path, real_folder: Path, tmp_path: Path
):
    command = [sys.executable, "-m", "scdd_apps", "prune", str(small_file), "--arch", "resnet8"]
    command += ["--data", str(real_folder), "--epochs", "40", "--set", "batch=6", "--out"]

    def start(out: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*command, out],
            cwd=tmp_path,
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    killed = start("killed")
    while killed.poll() is None and len(list(tmp_path.glob("killed/rows/*.json"))) < 2:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    said, _ = start("killed").communicate()
    assert re.search("[23] rows were finished before", said), said
    start("whole").communicate()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_crossarch_goes_on_where_it_was_stopped(
    apps: Run, small_file: Path, real_folder: Path, tmp_path: Path
):
    arguments = ["crossarch", small_file, "--arch", "resnet8", "--seeds", "2"]
    arguments += ["--data", real_folder, "--epochs", "4", "--set", "batch=6"]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(6, patch)
        assert apps(*arguments, "--out", "stopped").returncode == 143
    again = apps(*arguments, "--out", "stopped")
    assert "1 of 2 students were trained before" in again.stdout
    assert apps(*arguments, "--out", "whole").returncode == 0
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
