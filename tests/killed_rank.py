"""A command under torchrun, one rank of which is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import child_environment

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def kill_a_rank(command: Sequence[str], shards: Path, pattern: str, count: int) -> None:
    """Run `scdd` on two ranks and kill one with -9 as soon as there are `count` shards."""
    process = subprocess.Popen(
        [sys.executable, *LAUNCHER, "-m", "scdd", *command],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while len(list(shards.glob(pattern))) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    ranks = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
    assert process.wait(120) != 0
