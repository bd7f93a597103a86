"""Files are whole or absent, whatever happens while they are written."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdd.errors import RunError
from scdd.files import replacing, sha256_of, sync_folder, write_json

ROOT = Path(__file__).resolve().parent.parent

# A limit on the size of files stands in for a full disk: both end a write with an OSError.
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"


def run_python(code: str, *args: Path | str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own that can import scdd."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_what_is_written_takes_the_place_of_the_old_file_and_leaves_nothing_else(tmp_path: Path):
    target = tmp_path / "deep" / "folder" / "x.txt"
    for text in ("first", "second"):
        with replacing(target) as temporary:
            assert temporary.parent == target.parent and temporary != target
            temporary.write_text(text)
        assert target.read_text() == text
        assert os.listdir(target.parent) == ["x.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("written", [True, False])
def test_an_error_while_writing_leaves_the_target_as_it_was(
    error: type[BaseException], existed: bool, written: bool, tmp_path: Path
):
    target = tmp_path / "x.txt"
    if existed:
        target.write_text("old")
    with pytest.raises(error):
        with replacing(target) as temporary:
            if written:
                temporary.write_text("half")
            raise error
    assert os.listdir(tmp_path) == (["x.txt"] if existed else [])
    assert not existed or target.read_text() == "old"


def test_an_ordinary_io_error_is_passed_on_as_it_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        with replacing(tmp_path / "x"):
            (tmp_path / "nowhere").read_text()


def test_the_new_file_appears_only_when_it_is_whole(tmp_path: Path):
    target = tmp_path / "x.txt"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path: Path):
    target = tmp_path / "x.json"
    write_json(target, "old")
    code = LIMIT + (
        "import sys\n"
        "from pathlib import Path\n"
        "from scdd.errors import RunError\n"
        "from scdd.files import write_json\n"
        "try:\n"
        "    write_json(Path(sys.argv[1]), ['x' * 100] * 100)\n"
        "except RunError as error:\n"
        "    print(error)\n"
    )
    child = run_python(code, target)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == (
        f"{target}: no space left to write it; free some and run the same command again"
    )
    assert json.loads(target.read_text()) == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_full_disk_raises_the_same_in_this_process(tmp_path: Path):
    with pytest.raises(RunError, match="no space left"):
        with replacing(tmp_path / "x"):
            raise OSError(28, os.strerror(28))
    assert os.listdir(tmp_path) == []


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from scdd.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run_python(code, target).returncode == -signal.SIGKILL
    assert target.read_text() == "old"


def test_others_may_read_the_file_as_the_umask_says_whatever_its_writer_thinks(tmp_path: Path):
    with replacing(tmp_path / "x") as temporary:
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_json_comes_back_as_it_was(value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        write_json(path, value)
        assert json.loads(path.read_text(encoding="utf-8")) == value


def test_what_json_cannot_hold_leaves_no_file(tmp_path: Path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert os.listdir(tmp_path) == []


@given(st.binary(max_size=1000))
def test_the_digest_is_sha256(data: bytes):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        assert sha256_of(Path(file.name)) == hashlib.sha256(data).hexdigest()


def test_syncing_a_folder_needs_a_folder(tmp_path: Path):
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "none")
