"""kill -9 at any moment loses no finished file and changes no bit of the result."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny_run
from tests.conftest import FinishedRun, Outcome, child_environment

Run = Callable[..., Outcome]


def distill(out: Path, **settings: object) -> list[str]:
    return ["distill", "digits", "--out", str(out), *tiny_run.changes(**settings)]


def test_killed_once_before_every_change_of_the_folder_a_run_ends_with_the_same_bits(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    """Checkpoints after every batch; each attempt dies at the first change it is the first to make.

    What is on the disk between two changes (renames, links, removals) is thereby met after a kill,
    for all of them, with half-written files lying about.
    """
    out = tmp_path / "run"
    command = distill(out, checkpoint_minutes=0)
    survived: list[str] = []
    read: set[str] = set()
    while True:
        outcome = warm_command(*command, root=out, survive=survived)
        read |= set(outcome.checkpoints_read)
        if outcome.killed_at is None:
            break
        assert outcome.returncode == -signal.SIGKILL
        survived.append(outcome.killed_at)
        tiny_run.assert_done_steps_are_whole(out)
    assert outcome.returncode == 0, outcome.stderr
    tiny_run.assert_same_results(out, finished_run.path)

    places = {change.split()[1].split("/")[0] for change in survived}
    assert places >= {*tiny_run.STEPS, *tiny_run.FILES, "report.md", "gallery.png"}
    students = {
        f"{arm}-{labels}-0.checkpoint"
        for arm in ("relabel", "relabel_real", "baseline")
        for labels in ("soft", "hard")
    }
    batches = {"batch-00000.checkpoint", "batch-00001.checkpoint"}
    assert read == {"squeeze.checkpoint", *batches, *students}, "all of them were gone on from"
    assert litter(out) == []


def litter(run: Path) -> list[Path]:
    """What only a run in progress should hold."""
    names = ("*.tmp", "*.link", "*.checkpoint", "shards")
    return [path for name in names for path in run.rglob(name)]


def test_what_is_made_before_the_marker_is_not_made_again(warm_command: Run, tmp_path: Path):
    """Killed before done.json, when hours of squeeze or recover may lie behind."""
    out = tmp_path / "run"
    survived: list[str] = []
    for step in ("squeeze", "recover"):
        marker = f"os.rename {step}/done.json"
        while not survived or survived[-1] != marker:
            outcome = warm_command(*distill(out), "--until", step, root=out, survive=survived)
            assert outcome.killed_at is not None, f"{marker} never came"
            survived.append(outcome.killed_at)
        before = logged(out, step)
        assert warm_command(*distill(out), "--until", step).returncode == 0
        assert logged(out, step) == before > 0


def logged(run: Path, stage: str) -> int:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["stage"] == stage for line in lines)


@pytest.mark.slow  # Forked processes are killed above; here each start imports torch.
def test_the_real_command_killed_twice_ends_with_the_same_bits(
    finished_run: FinishedRun, tmp_path: Path
):
    rng = random.Random(7)
    out = tmp_path / "run"
    for step in ("squeeze", "posttrain"):
        assert kill_during(step, distill(out), out, rng.uniform(0, 0.3))
        tiny_run.assert_done_steps_are_whole(out)
    finish(distill(out))
    tiny_run.assert_same_results(out, finished_run.path)


LONGER = {
    "dataset__train_per_class": 60,
    "squeeze__epochs": 3,
    "ipc": 3,
    "recover__iterations": 30,
    "recover_real__iterations": 30,
    "relabel__views": 20,
    "posttrain__epochs": 15,
}


@pytest.fixture(scope="module")
def longer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("longer") / "run"
    finish(distill(out, **LONGER))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, 5])
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_a_random_moment_of_every_step_a_run_ends_with_the_same_bits(
    minutes: float, seed: int, longer_run: Path, tmp_path: Path
):
    rng = random.Random(seed)
    out = tmp_path / "run"
    command = distill(out, checkpoint_minutes=minutes, **LONGER)
    kills = 0
    for step in tiny_run.STEPS:
        seconds = json.loads((longer_run / step / "done.json").read_text())["seconds"]
        kills += kill_during(step, command, out, rng.uniform(0, max(seconds, 0.1)))
        tiny_run.assert_done_steps_are_whole(out)
    assert kills >= 5
    finish(command)
    tiny_run.assert_same_results(out, longer_run)
    assert litter(out) == []


def kill_during(step: str, arguments: list[str], out: Path, delay: float) -> bool:
    """Start the command and kill it with SIGKILL some time after it has begun `step`.

    False, and nothing is started, if an earlier kill came so late that the step was done by then.
    """
    if (out / step / "done.json").exists():
        return False
    (out / step / "settings.json").unlink(missing_ok=True)  # Written anew when the step begins.
    process = start(arguments)
    deadline = time.monotonic() + 300
    while not (out / step / "settings.json").exists():
        assert process.poll() is None, f"the command ended before {step}"
        assert time.monotonic() < deadline, f"{step} was never reached"
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return True


def finish(arguments: list[str]) -> None:
    process = start(arguments)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scdd", *arguments],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
