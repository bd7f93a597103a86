"""Rows of a study that are processes of their own: apps, and scripts of benchmarks/."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 5.0
"""Between asking a process to end and ending it."""


class Script(NamedTuple):
    """How a script is told where to write."""

    result: str
    """Option for its result file."""
    keeps: str | None = None
    """Option for the folder in which it keeps what is finished, if it does."""
    of_run: bool = False
    """Whether its first argument is a run directory."""


ScriptName = Literal[
    "augment_throughput",
    "gpu_hours",
    "label_storage",
    "recover_throughput",
    "scaling",
    "squeeze_objectives",
    "squeeze_throughput",
]
SCRIPTS: dict[ScriptName, Script] = {
    "augment_throughput": Script("--result"),
    "gpu_hours": Script("--out", "--scratch"),
    "label_storage": Script("--result", "--out", of_run=True),
    "recover_throughput": Script("--result"),
    "scaling": Script("--out", "--scratch"),
    "squeeze_objectives": Script("--result", "--out"),
    "squeeze_throughput": Script("--result"),
}


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None
    """None: its time was over."""
    seconds: float
    said: str
    """The last line that it has printed."""


def script_command(
    name: ScriptName,
    arguments: Sequence[str],
    folder: Path,
    device: str,
    data: Path | None,
    run: Path | None,
) -> list[str]:
    """The command line of a script whose files lie in `folder`, the result as result.json."""
    script = SCRIPTS[name]
    words = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    words += [] if run is None else [str(run)]
    words += [*arguments, "--device", device, script.result, str(folder / "result.json")]
    words += [] if script.keeps is None else [script.keeps, str(folder / "kept")]
    return words + ([] if data is None else ["--data", str(data)])


def app_command(
    app: str, file: Path, arguments: Sequence[str], folder: Path, device: str
) -> list[str]:
    """The command line of an app, whose result is results.json in `folder`."""
    words = [sys.executable, "-m", "scdd_apps", app, str(file), "--out", str(folder)]
    return [*words, "--device", device, *arguments]


def run_process(words: Sequence[str], log: Path, seconds: float, lock: int | None = None) -> Ended:
    """Run a command, its output to `log`, and end it when its time is over.

    It holds the open file `lock` as well, so that whoever goes on after a kill waits for it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(words),
            env=_environment(os.environ),
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=() if lock is None else (lock,),
        )
        try:
            code: int | None = process.wait(max(0.0, seconds - GRACE_SECONDS))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    lines = log.read_text(errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.strip()), "")
    return Ended(code, time.monotonic() - started, said)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    path = [str(ROOT), str(ROOT / "apps"), own.get("PYTHONPATH", "")]
    return {**own, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
