"""Terminals and shells: output nobody takes, letters they lack, signals and exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests import tiny_run
from tests.cli.conftest import refused
from tests.conftest import Command, FinishedRun, child_environment

STOPPED = (
    "stopped: what is finished is kept, and the same command goes on from there (without --redo)"
)
ANEW = "stopped: the command begins anew next time; files it writes are whole or not there"


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "scdd", "presets"],
            env=child_environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1 and done.stderr == b""


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = line.replace("scdd ", f"{sys.executable} -m scdd ")
    environment = child_environment() | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_nobody_takes_is_no_crash(tmp_path: Path):
    full = shell("scdd presets >/dev/full", tmp_path)
    assert full.returncode == 1 and full.stderr.count("\n") == 1 and "No space" in full.stderr
    assert shell("scdd presets >&-", tmp_path).returncode == 0


def test_a_terminal_that_knows_no_letters_but_ascii_is_no_crash(
    finished_run: FinishedRun, tmp_path: Path
):
    shutil.copy(finished_run.path / "distilled.h5", tmp_path / "gr\u00f6\u00dfe.h5")
    done = shell("scdd inspect *.h5", tmp_path)
    assert done.returncode == 0 and "digits, 10 classes" in done.stdout, done.stderr


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path):
    done = shell("scdd distill --data $'bad\\xff'", tmp_path)
    refused(done, "--data", "not valid UTF-8")


def test_interrupted_terminated_and_refused_to_others_the_same_command_finishes(
    scdd_command: Command, tmp_path: Path
):
    out = tmp_path / "run"
    command = ["distill", "digits", "--out", str(out), *tiny_run.changes(squeeze__epochs=30)]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with started(command, out) as process:
            if number is signal.SIGTERM:
                # It holds the directory while it stands still.
                process.send_signal(signal.SIGSTOP)
                refused(
                    scdd_command(*command),
                    f"{out}: process {process.pid} is working in this run directory",
                    "choose another --out",
                )
                process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == code
        assert stderr.split("\n")[-2:] == [STOPPED, ""] and "Traceback" not in stderr
        assert "squeeze: running" in stdout
        assert not (out / "squeeze" / "done.json").exists()
    done = scdd_command(*command, "--until", "probe")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "squeeze" / "done.json").read_text())["outputs"]


def test_an_interrupted_import_says_that_it_begins_anew_and_leaves_no_file(
    finished_run: FinishedRun, tmp_path: Path
):
    for number in range(10):
        (tmp_path / "new" / str(number)).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "new" / str(number) / "0.png")
    teacher = finished_run.path / "probe" / "teacher.safetensors"
    command = ["import", tmp_path / "new", "--out", tmp_path / "new.h5", "--teacher", teacher]
    with running([*command, "--size", "16", "--set", "relabel.views=100000"]) as process:
        assert process.stdout is not None
        while "soft labels" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.endswith(ANEW + "\n")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def started(arguments: Sequence[str], out: Path) -> subprocess.Popen[str]:
    """Start the command; return once squeeze runs."""
    for marker in out.glob("squeeze/settings.json"):
        marker.unlink()
    process = running(arguments)
    deadline = time.monotonic() + 120
    while not (out / "squeeze" / "settings.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def running(arguments: Sequence[str | Path]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scdd", *arguments],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts tests in the background makes its children deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
