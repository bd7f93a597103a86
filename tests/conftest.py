"""Fixtures shared by all tests: one thread, a cache of their own, the commands, the real data."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

Command = Callable[..., subprocess.CompletedProcess[str]]


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
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "200",
    }
