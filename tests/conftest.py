"""Fixtures shared by all tests: one thread, a cache of their own, the commands, the real data."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import tiny_pair_run, tiny_run
from tests.two_processes import TwoProcesses

# A deadline would measure how busy the machine is.
hypothesis.settings.register_profile("scdd", deadline=None)
hypothesis.settings.load_profile("scdd")

ROOT = Path(__file__).resolve().parent.parent

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _children_can_be_interrupted() -> None:
    """A shell starts background jobs, CI among them, with SIGINT ignored; children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give this session, and every process it starts, one thread and its own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("SCDD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_thread(quiet_environment: None) -> None:
    """Set torch back to one thread, so that a test which changes that does not change others."""
    # A test that does not use torch must not pay for importing it.
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """Return the folder of real datasets: $SCDD_TEST_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("SCDD_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set SCDD_TEST_DATA to one")
    return folder


@pytest.fixture
def scdd_command(tmp_path: Path) -> Command:
    """Return `run(*args, cwd=tmp_path, env=None, timeout=300)`, which runs `scdd` as a process."""
    return _command("scdd", tmp_path)


@pytest.fixture
def apps_command(tmp_path: Path) -> Command:
    """Return `run(*args, cwd=tmp_path, env=None, timeout=300)`, which runs `scdd-apps`."""
    return _command("scdd_apps", tmp_path)


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code (negative: the signal that ended it) and output."""

    returncode: int
    stdout: str
    stderr: str
    killed_at: str | None = None
    """The change below the watched folder before which it was killed."""
    checkpoints_read: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def warm_process(quiet_environment: None) -> Iterator[subprocess.Popen[str]]:
    """A process that has imported the suite and forks for each command; see warm_process.py."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "warm_process.py")],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def warm_command(warm_process: subprocess.Popen[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Return `run(*args, cwd=tmp_path, env=None, root=None, survive=())`, as `scdd_command`.

    With `root`, the command is killed (SIGKILL) before the first rename, link or removal below that
    folder which is not in `survive`.
    """

    def run(
        *args: str | Path,
        cwd: Path = tmp_path,
        env: dict[str, str] | None = None,
        root: Path | None = None,
        survive: Sequence[str] = (),
    ) -> Outcome:
        streams = [tmp_path / "stdout.txt", tmp_path / "stderr.txt"]
        request: dict[str, Any] = {
            "args": [str(arg) for arg in args],
            "cwd": str(cwd),
            "env": env or {},
            "stdout": str(streams[0]),
            "stderr": str(streams[1]),
            "root": str(root) if root else None,
            "survive": list(survive),
        }
        assert warm_process.stdin is not None and warm_process.stdout is not None
        warm_process.stdin.write(json.dumps(request) + "\n")
        warm_process.stdin.flush()
        answer = json.loads(warm_process.stdout.readline())
        watched: list[list[str]] = answer["watched"]
        stdout, stderr = (stream.read_text(encoding="utf-8") for stream in streams)
        return Outcome(
            answer["code"],
            stdout,
            stderr,
            killed_at=next((what for kind, what in watched if kind == "killed"), None),
            checkpoints_read=[what for kind, what in watched if kind == "read"],
        )

    return run


@pytest.fixture(scope="session")
def two_processes(quiet_environment: None) -> Iterator[TwoProcesses]:
    """Return `run(function, *args)`, which calls it in two processes; see two_processes.py."""
    pair = TwoProcesses()
    yield pair
    pair.stop()


UMASK = 0o027


@dataclass(frozen=True)
class FinishedRun:
    """A finished tiny run: look, but change only copies."""

    path: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def finished_run(quiet_environment: None, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The tiny run of the digits, made by the real command under an umask of 027."""
    out = tmp_path_factory.mktemp("finished") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "scdd", "distill", "digits", "--out", str(out), *tiny_run.changes()],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        umask=UMASK,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return FinishedRun(out, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def pair_run(quiet_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished tiny run of Boost, two networks an arm; it is not to be changed."""
    from scdd.config.load import load_config
    from scdd.pipeline import distill

    cfg = load_config("digits_boost", [*tiny_pair_run.settings()[1::2], "threads=1"])
    return distill(cfg, tmp_path_factory.mktemp("pairs") / "run")


@pytest.fixture
def copied_run(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished tiny run, to be changed."""
    return tiny_run.copy_of(finished_run.path, tmp_path / "run")


def _command(module: str, folder: Path) -> Command:
    def run(
        *args: str | Path,
        cwd: Path = folder,
        env: dict[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=cwd,
            env=child_environment() | (env or {}),
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def child_environment() -> dict[str, str]:
    """Return the environment of a child process that finds both packages, installed or not."""
    # Colours, and lines broken at 80 columns, would get between a test and the words it looks for.
    forced = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"}
    env = {name: value for name, value in os.environ.items() if name not in forced}
    path = [str(ROOT), str(ROOT / "apps"), env.get("PYTHONPATH", "")]
    return env | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # Runs are compared bit for bit, so all are made on the CPU.
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "200",
    }
