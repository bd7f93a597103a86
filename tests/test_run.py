"""The run directory: who may work in it, what counts as done, what a change of settings means."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdd.errors import ConfigError, UserError
from scdd.run import RunDirectory, environment, file_digests, versions

ROOT = Path(__file__).resolve().parent.parent

HOLD = """
import sys, time
from pathlib import Path
from scdd.errors import UserError
from scdd.run import RunDirectory
try:
    with RunDirectory(Path(sys.argv[1])).locked():
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except UserError as error:
    print(error)
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Start a process that locks the directory for a while."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(path: Path, step: str = "probe", name: str = "teacher.bin") -> RunDirectory:
    """A run directory with one complete step that has one file."""
    path.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(path)
    run.begin(step, {"seed": 0, step: {"l2": [0.1, 0.2], "flip": True}}, {"squeeze": "aa"})
    (run.folder(step) / name).write_bytes(b"weights")
    run.finish(step, file_digests(run.folder(step), (name,)), (name,), 1.234, {"host": 5})
    return run


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path: Path):
    first = hold(tmp_path / "run", 60)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        out, _ = hold(tmp_path / "run", 0).communicate(timeout=60)
        assert out.strip() == (
            f"{tmp_path / 'run'}: process {first.pid} is working in this run directory; wait for "
            "it, or choose another --out"
        )
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    out, _ = hold(tmp_path / "run", 0).communicate(timeout=60)
    assert out == "held\n", "a lock must not outlive a process that was killed"


def test_the_lock_is_free_again_after_an_error_inside(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), run.locked():
        raise KeyboardInterrupt
    with run.locked():
        assert (tmp_path / "run" / "run.lock").read_text() == str(os.getpid())
        with pytest.raises(UserError, match="is working in this run directory"):
            with RunDirectory(tmp_path / "run").locked():
                pass


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be used as a run directory") as caught:
            with RunDirectory(path).locked():
                pass
        assert str(caught.value).startswith(f"{path}: ")


def test_a_step_is_done_only_after_finish(tmp_path: Path):
    run = RunDirectory(tmp_path)
    assert run.done("probe") is None
    run.begin("probe", {"seed": 0}, {})
    (run.folder("probe") / "teacher.bin").write_bytes(b"w")
    assert run.done("probe") is None
    assert not (tmp_path / "teacher.bin").exists()
    run.finish("probe", {"teacher.bin": "d1"}, ("teacher.bin",), 61.239, {"host": 7})
    done = run.done("probe")
    assert done is not None
    assert done["outputs"] == {"teacher.bin": "d1"} and done["seconds"] == 61.24
    assert done["peak_bytes"] == {"host": 7} and done["scdd"] == versions()["scdd"]
    assert time.strptime(done["finished"], "%Y-%m-%dT%H:%M:%S%z")


def test_outputs_appear_at_the_top_without_taking_room_twice(tmp_path: Path):
    finished(tmp_path)
    shown, made = tmp_path / "teacher.bin", tmp_path / "probe" / "teacher.bin"
    assert shown.samefile(made)
    made.unlink()
    made.write_bytes(b"other")
    RunDirectory(tmp_path).finish("probe", {"teacher.bin": "d2"}, ("teacher.bin",), 0, {})
    assert shown.read_bytes() == b"other"
    RunDirectory(tmp_path).finish("probe", {"teacher.bin": "d2"}, ("teacher.bin",), 0, {})
    assert sorted(os.listdir(tmp_path)) == ["probe", "teacher.bin"]


def test_only_what_is_meant_for_people_appears_at_the_top(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.begin("x", {}, {})
    for name in ("result.txt", "inner.bin"):
        (run.folder("x") / name).write_text(name)
    run.finish("x", {"result.txt": "d1", "inner.bin": "d2"}, ("result.txt",), 0, {})
    assert sorted(os.listdir(tmp_path)) == ["result.txt", "x"]


def test_the_digest_of_a_step_changes_with_any_of_its_files(tmp_path: Path):
    run = finished(tmp_path)
    before = run.digest_of("probe")
    assert before == finished(tmp_path).digest_of("probe")
    (tmp_path / "probe" / "teacher.bin").write_bytes(b"weights2")
    run.finish("probe", file_digests(tmp_path / "probe", ("teacher.bin",)), (), 0, {})
    assert run.digest_of("probe") != before


def test_a_missing_output_of_a_finished_step_is_named(tmp_path: Path):
    run = finished(tmp_path)
    done = run.done("probe")
    assert done is not None
    run.check_outputs("probe", done)
    (tmp_path / "probe" / "teacher.bin").unlink()
    with pytest.raises(UserError) as caught:
        run.check_outputs("probe", done)
    assert str(caught.value) == (
        f"{tmp_path / 'probe' / 'teacher.bin'}: is gone, though step 'probe' was finished; make it "
        "again with --redo probe"
    )


SETTINGS: dict[str, Any] = {
    "seed": 0,
    "recover": {"lr": 0.1, "betas": [0.5, 0.9], "start": "noise", "ipc": None},
}


def with_recover(**changes: object) -> dict[str, object]:
    return SETTINGS | {"recover": SETTINGS["recover"] | changes}


def test_equal_settings_and_inputs_pass_tuples_or_lists(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.check_settings("recover", SETTINGS)  # nothing there yet
    run.check_inputs("recover", {})
    run.begin("recover", SETTINGS, {"probe": "d1"})
    run.check_inputs("recover", {"probe": "d1"})
    run.check_settings("recover", SETTINGS)
    run.check_settings("recover", with_recover(betas=(0.5, 0.9)))


def half_made(run: RunDirectory, step: str, settings: dict, inputs: dict) -> None:
    """Begin a step and leave a part of its work there."""
    run.begin(step, settings, inputs)
    (run.folder(step) / "shard.h5").touch()


def test_a_step_that_has_made_nothing_may_still_change(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.begin("recover", SETTINGS, {"probe": "d1"})
    run.check_settings("recover", with_recover(lr=0.2))
    run.check_inputs("recover", {"probe": "d2"})


@pytest.mark.parametrize("name", ["config.yaml", "report.md", "results.json"])
def test_a_folder_with_files_of_someone_else_is_refused(name: str, tmp_path: Path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds a {name}"), RunDirectory(tmp_path).locked():
        pass
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("record", ["{}", "[]", '{"outputs": {}}'])
def test_a_marker_without_its_keys_is_damaged(record: str, tmp_path: Path):
    run = RunDirectory(tmp_path)
    (run.folder("probe") / "done.json").write_text(record)
    with pytest.raises(UserError, match=r"done\.json: is damaged .* --redo probe"):
        run.done("probe")


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("lr", 0.2, "recover.lr = 0.1, now it is 0.2"),
        ("betas", [0.5, 0.99], "recover.betas = [0.5, 0.9], now it is [0.5, 0.99]"),
        ("start", "real", 'recover.start = "noise", now it is "real"'),
        ("ipc", 5, "recover.ipc = unset, now it is 5"),
        ("roll", 4, "recover.roll = unset, now it is 4"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_changed_setting_is_refused_with_its_old_and_new_value(
    key: str, value: object, shown: str, whole: bool, tmp_path: Path
):
    run = RunDirectory(tmp_path)
    half_made(run, "recover", SETTINGS, {})
    if whole:
        run.finish("recover", {}, (), 0, {})
    with pytest.raises(ConfigError) as caught:
        run.check_settings("recover", with_recover(**{key: value}))
    assert str(caught.value) == (
        f"{tmp_path}: step 'recover' was made with {shown}; redo it with --redo recover, or "
        "choose another --out"
    )


def test_a_setting_that_is_no_longer_there_is_a_change(tmp_path: Path):
    run = RunDirectory(tmp_path)
    half_made(run, "x", {"a": {"b": 1}}, {})
    with pytest.raises(ConfigError, match=r"a\.b = 1, now it is unset"):
        run.check_settings("x", {"a": {}})


@pytest.mark.parametrize("inputs", [{"probe": "d2"}, {}, {"probe": "d1", "dataset": "x"}])
def test_other_inputs_are_refused_by_name(inputs: dict[str, str], tmp_path: Path):
    run = RunDirectory(tmp_path)
    half_made(run, "recover", SETTINGS, {"probe": "d1"})
    name = "dataset" if "dataset" in inputs else "probe"
    with pytest.raises(ConfigError, match=f"made from another {name} than is there now; redo it"):
        run.check_inputs("recover", inputs)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_any_settings_equal_themselves_after_a_trip_through_the_file(tmp_path_factory, value):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    run.begin("x", {"value": value}, {})
    run.check_settings("x", {"value": value})


@pytest.mark.parametrize("name", ["done.json", "settings.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"outputs": {"tea',
        b"\x00" * 50,
        b"7",
        b"\xff\xfe\x80",
    ],
)
def test_a_damaged_marker_is_one_sentence_naming_the_step_to_redo(
    name: str, content: bytes, tmp_path: Path
):
    run = finished(tmp_path)
    (tmp_path / "probe" / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        run.done("probe") if name == "done.json" else run.check_settings("probe", {})
    assert str(caught.value).startswith(f"{tmp_path / 'probe' / name}: is damaged (")
    assert str(caught.value).endswith("redo the step with --redo probe")


@pytest.mark.parametrize(
    "name",
    [
        "done.json",
        "settings.json",
    ],
)
def test_a_step_with_a_damaged_marker_can_be_redone_as_the_sentence_says(name: str, tmp_path: Path):
    run = finished(tmp_path)
    (tmp_path / "probe" / name).write_text('{"outputs": ')
    aside = run.set_aside(["probe"])
    assert aside is not None and (aside / "probe" / "teacher.bin").exists()
    assert not (tmp_path / "probe").exists()


def test_setting_aside_moves_steps_whole_and_takes_their_files_from_the_top(tmp_path: Path):
    run = finished(tmp_path, "squeeze", "backbone.bin")
    finished(tmp_path, "probe", "teacher.bin")
    run.begin("recover", {}, {})  # half a step
    aside = run.set_aside(["probe", "recover", "relabel"])
    assert aside is not None and aside.parent == tmp_path and aside.name.startswith(".old-")
    assert sorted(os.listdir(aside)) == ["probe", "recover"]
    assert (aside / "probe" / "teacher.bin").read_bytes() == b"weights"
    assert RunDirectory(aside).done("probe") is not None
    assert run.done("probe") is None and run.done("squeeze") is not None
    assert sorted(os.listdir(tmp_path)) == sorted([aside.name, "backbone.bin", "squeeze"])


def test_setting_aside_twice_in_a_second_loses_nothing(tmp_path: Path):
    folders = set()
    for _ in range(3):
        folders.add(finished(tmp_path).set_aside(["probe"]))
    assert len(folders) == 3
    assert all((folder / "probe" / "teacher.bin").exists() for folder in folders if folder)


def test_with_nothing_to_move_nothing_is_made(tmp_path: Path):
    assert RunDirectory(tmp_path).set_aside(["probe"]) is None
    assert os.listdir(tmp_path) == []


def test_metrics_are_appended_as_one_json_object_a_line(tmp_path: Path):
    run = RunDirectory(tmp_path)
    before = time.time()
    run.log("squeeze", epoch=1, loss=0.5)
    RunDirectory(tmp_path).log("recover", batch=0, note='quote " and\nnewline')
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["squeeze", "recover"]
    assert lines[0]["epoch"] == 1 and lines[0]["loss"] == 0.5
    assert lines[1]["note"] == 'quote " and\nnewline'
    assert all(before - 1 <= line["time"] <= time.time() + 1 for line in lines)


PEAK = """
from scdd.run import PeakMemory

size = 150_000_000
memory = PeakMemory()
before = memory.read()
block = bytearray(size)
block[::4096] = b"x" * len(block[::4096])
grown = memory.read() - before
del block
print(before, grown, memory.read() - before, PeakMemory().read())
"""


def test_peak_memory_grows_by_what_is_touched_and_starts_anew():
    # In a young process: the system may reclaim old pages of this one meanwhile.
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, grown, after, anew = map(int, done.stdout.split())
    assert grown > 0.9 * 150_000_000
    assert after > 0.9 * 150_000_000, "a peak does not fall"
    if Path("/proc/self/clear_refs").exists():
        assert anew < before + 0.5 * 150_000_000


def test_the_environment_names_hardware_and_versions():
    found = environment("cpu", 3)
    assert found["cpu_threads"] == 3 and found["device"] == "cpu"
    assert found["versions"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["processor"] and json.loads(json.dumps(found)) == found
