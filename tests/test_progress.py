"""What a log shows of a long piece of work, and what a terminal shows."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import scdd
from scdd import progress
from scdd.progress import Bar, duration, track


@pytest.fixture(autouse=True)
def no_forced_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what makes rich see a terminal in every file."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hand = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=hand.monotonic))
    return hand


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (8, "8 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (60, "1 min 00 s"),
        (200, "3 min 20 s"),
        (61, "1 min 01 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86400 + 59, "24 h 00 min"),
        (360000, "100 h 00 min"),
        (float("inf"), "unknown"),
    ],
)
def test_durations_are_written_for_people(seconds, words):
    assert duration(seconds) == words


def test_a_log_stays_silent_before_the_interval_has_passed(clock, capsys):
    with Bar("recover", 100) as bar:
        for _ in range(50):
            clock.now += (progress.SECONDS_BETWEEN_LINES - 0.1) / 50
            bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_with_the_time_left_once_the_interval_has_passed(clock, capsys):
    with Bar("recover", 100) as bar:
        clock.now += 20
        bar.advance(10, note="loss 0.51")
    # 10 units took 20 s, so the other 90 take 180 s.
    assert capsys.readouterr() == ("", "  recover: 10/100, ETA 3 min 00 s, loss 0.51\n")


def test_the_interval_starts_anew_with_each_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 5.0)
    with Bar("squeeze", 12) as bar:
        for _ in range(12):
            clock.now += 2
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    # Lines at 6 s and 12 s and 18 s; the 12th unit ends the work and needs no ETA.
    assert lines == [
        "  squeeze: 3/12, ETA 18 s",
        "  squeeze: 6/12, ETA 12 s",
        "  squeeze: 9/12, ETA 6 s",
    ]


def test_work_done_by_an_earlier_run_does_not_count_as_speed(clock, capsys):
    with Bar("relabel", 100, done=40) as bar:
        clock.now += 20
        bar.advance(10)
    assert capsys.readouterr().err == "  relabel: 50/100, ETA 1 min 40 s\n"


def test_without_any_progress_the_time_left_is_unknown(clock, capsys):
    with Bar("relabel", 100) as bar:
        clock.now += 20
        bar.advance(0)
    assert capsys.readouterr().err == "  relabel: 0/100, ETA unknown\n"


def test_track_yields_every_item_in_order_and_reports_in_between(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.001)
    seen = []
    for item in track(iter("abc"), 3, "decode"):
        time.sleep(0.002)
        seen.append(item)
    assert seen == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["  decode: 1/3", "  decode: 2/3"]


def test_an_error_inside_a_bar_passes_through(capsys):
    with pytest.raises(ValueError, match="broken"), Bar("decode", 3):
        raise ValueError("broken")
    assert capsys.readouterr() == ("", "")


SCRIPT = """
import time
from scdd import progress
progress.SECONDS_BETWEEN_LINES = 0.001
with progress.Bar("recover", 4) as bar:
    for _ in range(4):
        time.sleep(0.002)
        bar.advance(note="loss 0.5")
"""


def run_script(stderr: int) -> None:
    forced = {"FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"}
    env = {name: value for name, value in os.environ.items() if name not in forced}
    root = str(Path(scdd.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=env | {"PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": "120"},
        stderr=stderr,
        check=True,
    )


def test_a_log_file_holds_plain_lines_only(tmp_path):
    log = tmp_path / "run.log"
    with log.open("w") as file:
        run_script(file.fileno())
    text = log.read_text()
    assert text.isascii() and not any(mark in text for mark in ("\x1b", "\r", "\b"))
    assert [line.split(",")[0] for line in text.splitlines()] == [
        "  recover: 1/4",
        "  recover: 2/4",
        "  recover: 3/4",
    ]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_terminal_shows_a_bar_with_the_time_left():
    ours, theirs = os.openpty()
    run_script(theirs)
    text = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert "\x1b[" in text and "recover" in text and "ETA" in text and "4/4" in text
    assert "loss 0.5" in text and "recover: 1/4" not in text
