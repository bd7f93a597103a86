"""A run stops before its time is over, where nothing is lost, and ends with the same bits."""

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from scdd import deadline as module
from scdd.checkpoint import Checkpoint
from scdd.config.load import load_config
from scdd.deadline import Deadline, Pace
from scdd.errors import OutOfTime
from scdd.pipeline import distill
from tests import tiny_run
from tests.conftest import FinishedRun, Outcome, child_environment
from tests.killed_rank import LAUNCHER

Run = Callable[..., Outcome]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_loop_stops_at_the_last_place_from_which_the_next_could_not_be_saved_in_time(
    clock: Clock,
):
    """Steps of 3 s after a first one of 7, saves of 2 s: the last save ends by 60 s."""
    limit = Deadline(60)
    limit.begin("squeeze")
    clock.pass_(7)
    saves = 0
    with pytest.raises(OutOfTime, match="in the midst of squeeze"):
        while True:
            if limit.near() or saves == 0:
                clock.pass_(2)
                saves += 1
                limit.saved(2)
            clock.pass_(3)
    assert 60 - 3 - 2 < clock.now - 1000 <= 60, "another step and save would have been too much"
    assert limit.paces == {"squeeze": Pace(start=7, gap=3, save=2)} and saves == 2
    assert limit.spent == {"squeeze": clock.now - 1000}


def test_what_is_known_of_a_step_decides_whether_it_is_begun_and_unknown_ones_are(clock: Clock):
    limit = Deadline(30, {"recover": Pace(start=25, save=6)})
    with pytest.raises(OutOfTime, match="too little time is left to begin recover"):
        limit.begin("recover")
    limit.begin("probe")
    clock.pass_(30)
    with pytest.raises(OutOfTime, match="to begin relabel"):
        limit.begin("relabel")


def test_what_follows_is_left_time_for_as_it_grows(clock: Clock):
    wanted = [1.0]
    limit = Deadline(10, {"a": Pace(start=4)}, reserve=lambda: wanted[0])
    limit.begin("a")
    assert limit.left == 9
    wanted[0] = 6.0
    with pytest.raises(OutOfTime, match="too little time is left to begin a"):
        limit.begin("a")


def test_parts_without_a_state_are_stopped_between_by_the_longest_so_far(clock: Clock):
    limit = Deadline(100)
    limit.begin("relabel")
    begun = 0
    with pytest.raises(OutOfTime):
        for seconds in (20, 10, 30, 15, 15, 15):
            limit.between()
            begun += 1
            clock.pass_(seconds)
    assert begun == 4, "25 s are left after four, and a part may take 30"
    assert limit.paces["relabel"] == Pace(start=20, gap=30)


def test_without_a_limit_nothing_stops_and_paces_are_learnt_all_the_same(clock: Clock):
    limit = Deadline(math.inf)
    limit.begin("probe")
    clock.pass_(1e9)
    assert not limit.near()
    limit.end()
    assert limit.paces["probe"].start == 1e9 == limit.spent["probe"]


def test_a_checkpoint_is_saved_and_then_the_loop_is_left(clock: Clock, tmp_path: Path):
    limit = Deadline(10)
    limit.begin("squeeze")
    checkpoint = Checkpoint(tmp_path / "c", 600, limit)
    assert not checkpoint.due
    clock.pass_(4)
    assert not checkpoint.due
    checkpoint.save({"step": 1})
    clock.pass_(4)
    assert checkpoint.due, "2 s are left, and a step takes 4"
    with pytest.raises(OutOfTime):
        checkpoint.save({"step": 2})
    assert Checkpoint(tmp_path / "c", 600).load() == {"step": 2}


class Questions(Deadline):
    """Over after so many questions how much is left."""

    def __init__(self, questions: int) -> None:
        super().__init__(math.inf)
        self.questions = questions

    @property
    def left(self) -> float:
        self.questions -= 1
        return 0.0 if self.questions < 0 else math.inf


def test_stopped_again_and_again_in_every_step_a_run_ends_with_the_same_bits(
    finished_run: FinishedRun, tmp_path: Path
):
    cfg, out, draw = load_config("digits", tiny_run.overrides()), tmp_path / "run", random.Random(3)
    stops: list[str] = []
    while len(stops) < 100:
        try:
            distill(cfg, out, deadline=Questions(draw.randrange(6, 40) if stops else 9))
            break
        except OutOfTime as stop:
            stops.append(str(stop))
            tiny_run.assert_done_steps_are_whole(out)
    tiny_run.assert_same_results(out, finished_run.path)
    said = " ".join(stops)
    assert len(stops) >= 5 and "the same command goes on from there" in stops[0]
    for step in ("squeeze", "posttrain"):
        assert f"in the midst of {step}" in said
    assert "done: squeeze, probe" in said


def test_the_command_stops_with_exit_code_3_and_goes_on_until_it_is_done(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    out, seconds, codes = tmp_path / "run", 0.5, []
    command = ["distill", "digits", "--out", str(out), *tiny_run.changes()]
    while not codes or codes[-1] == 3:
        outcome = warm_command(*command, "--minutes", str(seconds / 60))
        codes.append(outcome.returncode)
        if outcome.returncode == 3:
            assert outcome.stderr.startswith(f"stopped: {out}: ")
            assert outcome.stderr.endswith("the same command goes on from there (without --redo)\n")
        seconds *= 2.5  # However slow the machine is.
    assert codes[-1] == 0, outcome.stderr
    assert len(codes) > 1, "the first time is too short for all of it"
    tiny_run.assert_same_results(out, finished_run.path)


@pytest.mark.parametrize("minutes", ["0", "-3", "nan"])
def test_minutes_that_are_none_are_refused(minutes: str, warm_command: Run, tmp_path: Path):
    outcome = warm_command("distill", "--minutes", minutes, "--out", str(tmp_path / "run"))
    assert outcome.returncode == 2 and not (tmp_path / "run").exists()
    assert outcome.stderr == f"error: --minutes {float(minutes):g}: wants more than 0\n"


@pytest.mark.slow
def test_ranks_have_no_minutes_and_say_so(tmp_path: Path):
    command = ["-m", "scdd", "distill", "digits", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, *LAUNCHER, *command, "--minutes", "5", *tiny_run.changes()],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "--minutes: is for one process" in done.stderr
    assert "squeeze" not in os.listdir(tmp_path / "run")
