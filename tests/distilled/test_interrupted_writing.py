"""A kill, Ctrl-C or full disk leaves the old file or none, and says so without a crash."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scdd.distilled import read_header

ROOT = Path(__file__).resolve().parents[2]

WRITE = """
import resource, sys, time
import torch
from scdd.config.relabel import RelabelConfig
from scdd.distilled import Header, make_codec, sample_views, write_distilled
from scdd.errors import RunError

path, views, pause, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
header = Header(target_kind="logits", target_dim=50, method="scdd", recipe="custom", dataset="d",
    class_names=tuple(map(str, range(50))), mean=(0, 0, 0), std=(1, 1, 1), image_size=8, ipc=4,
    seed=0)

codec = make_codec("full", 50)

def blocks():
    for view in range(views):
        print("block", flush=True)
        time.sleep(pause)
        records = sample_views(RelabelConfig(), 200, 8, 0, view, view + 1)
        yield records, codec.encode(torch.full((1, 200, 50), float(view)))

if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_distilled(path, header, torch.zeros(200, 3, 8, 8, dtype=torch.uint8),
                    torch.arange(200) % 50, blocks(), views, codec)
except RunError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


def start(path: Path, views: int, pause: float = 0, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), str(views), str(pause), str(limit)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(child: subprocess.Popen[str]) -> tuple[int, str]:
    _, error = child.communicate(timeout=120)
    return child.returncode, error.strip()


WRITE_PAIRS = """
import sys, time
import torch
import scdd.distilled.streams as streams
from scdd.distilled import write_pairs
from tests.distilled.random_sets import header_for, random_dense, random_set

path, kind = sys.argv[1:]
whole = streams.Stream.append

def slowly(stream, values):
    print("append", stream.name, flush=True)
    time.sleep(0.05)
    whole(stream, values)

streams.Stream.append = slowly
parts = random_set(count=50, size=8) if kind == "factored" else random_dense(count=50, size=8)
write_pairs(path, header_for(parts), parts)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["factored", "dense"])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_killed_writer_of_representations_leaves_nothing_under_the_name(
    tmp_path: Path, file: Path, replaces: bool, kind: str
):
    path = file if replaces else tmp_path / "new.h5"
    before = path.read_bytes() if replaces else None
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_PAIRS, str(path), kind],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert [child.stdout.readline().split()[1] for _ in range(3)][:2] == ["labels", "views/rot90"]
    child.kill()
    assert finished(child)[0] == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("replaces", [False, True])
def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path, file: Path, replaces: bool):
    path = file if replaces else tmp_path / "new.h5"
    before = path.read_bytes() if replaces else None
    child = start(path, views=1000, pause=0.01)
    assert child.stdout is not None
    for _ in range(5):
        child.stdout.readline()
    child.kill()
    assert finished(child)[0] == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == before


def test_ctrl_c_removes_the_unfinished_file(tmp_path: Path):
    child = start(tmp_path / "new.h5", views=1000, pause=0.01)
    assert child.stdout is not None
    for _ in range(5):
        child.stdout.readline()
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert finished(child) == (1, "interrupted")
    assert list(tmp_path.iterdir()) == []


# The last limits hit what HDF5 writes on closing the file.
@pytest.mark.parametrize(
    "limit",
    [0.02, 0.5, 0.999, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.001, 0.2, 0.9, 0.98))],
)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, whole: Path, limit: float
):
    target = tmp_path / "distilled.h5"
    target.write_bytes(b"old")
    code, error = finished(start(target, 20, limit=int(limit * whole.stat().st_size)))
    assert code == 1, error  # not -11: HDF5 crashes at exit where it saw a write fail
    assert error.startswith(f"{target}: no space left") and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["distilled.h5"]
    assert target.read_bytes() == b"old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_is_one_sentence_and_leaves_what_was_there(small_disk: Path):
    (small_disk / "other").write_bytes(b"kept" * 1000)
    target = small_disk / "distilled.h5"
    code, error = finished(start(target, 20))
    assert code == 1, error
    assert error.startswith(f"{target}: no space left") and "\n" not in error
    assert [path.name for path in small_disk.iterdir()] == ["other"]
    assert (small_disk / "other").read_bytes() == b"kept" * 1000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that there is room for."""
    path = tmp_path_factory.mktemp("whole") / "distilled.h5"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert finished(start(path, 20)) == (0, "")
    assert read_header(path).ipc == 4
    return path
