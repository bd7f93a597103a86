"""GPU hours: short runs are the preset's own, bad input is one sentence, what is done is kept."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_hours, short_runs, timed_run
from benchmarks.tables import build_table
from scdd.config.load import check, load_config, preset_names
from scdd.datasets import load_dataset
from scdd.errors import ConfigError, RunError, UserError
from tests import tiny_run
from tests.conftest import FinishedRun, child_environment

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SCRIPT = Path(gpu_hours.__file__)


def script(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        env=child_environment(),
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "folder"
    return tiny_run.write_image_folder(root, train=60, size=8)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize(
    "preset", [name for name in preset_names() if load_config(name).pairs_from is None]
)
def test_short_runs_of_every_preset_can_be_checked_and_change_no_network_and_no_batch(
    preset: str, device: torch.device, folder: Path
):
    data = ["dataset.name=image_folder", f"dataset.root={folder}", "dataset.image_size=8"]
    cfg = load_config(preset, ["dataset.storage=resident", *data] if preset != "digits" else [])
    # Networks for 224 px do not run at 8 px; only their numbers matter here.
    dataset = load_dataset(cfg.dataset)
    full = short_runs.Sizes(100_000, 1000, len(dataset.classes), 100_000)
    for name in short_runs.POINTS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(short_runs, "_compiled", lambda *_: False)
            found, most = short_runs.short_settings(cfg, dataset, None, full, device, 1, name)
        short = check(found, name)
        assert most is not None and most <= int(dataset.train.labels.bincount().min())
        assert short.squeeze.model_dump().keys() == cfg.squeeze.model_dump().keys()
        for one, other in zip(short.squeezes.values(), cfg.squeezes.values(), strict=True):
            assert (one.arch, one.batch, one.objective.name, one.views) == (
                *(other.arch, other.batch, other.objective.name, other.views),
            )
            assert one.epochs <= other.epochs
        for step, section in short.recoveries.items():
            own = cfg.recoveries[step]
            assert (section.batch, section.start, section.teachers) == (
                *(own.batch, own.start, own.teachers),
            )
            assert section.iterations <= own.iterations
        assert short.posttrain.batch == cfg.posttrain.batch
        assert short.posttrain.micro_batches == cfg.posttrain.micro_batches
        assert short.relabel.teacher_bn == cfg.relabel.teacher_bn and short.ipc <= cfg.ipc


@pytest.mark.parametrize("scale", [0.1, 1, 3])
def test_the_three_runs_differ_in_every_unit_in_which_the_whole_run_does(scale: float):
    cfg = load_config("digits", ["posttrain.seeds=3", "posttrain.evaluate_every=100"])
    dataset = load_dataset(cfg.dataset)
    full = short_runs.sizes_of(dataset, None, None)
    runs = short_runs.short_runs(cfg, dataset, None, full, CPU, scale)
    whole = short_runs.work(cfg, full)
    for step, units in whole.items():
        for name, count in units.items():
            seen = {own[step][name] for _, own in runs.values()}
            assert len(seen) > 1 or seen == {count}, f"{step}: {name}"


def test_all_of_a_small_training_set_is_used_and_part_of_one_that_stands_for_more():
    cfg = load_config("digits")
    dataset = load_dataset(cfg.dataset)
    full = short_runs.sizes_of(dataset, None, None)
    settings, most = short_runs.short_settings(cfg, dataset, None, full, CPU, 1, "short")
    assert most is None and settings["dataset"]["train_per_class"] is None
    larger = full._replace(train=50_000)
    _, most = short_runs.short_settings(cfg, dataset, None, larger, CPU, 1, "short")
    _, twice = short_runs.short_settings(cfg, dataset, None, larger, CPU, 1, "wider")
    assert most is not None and twice == 2 * most


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digit"], "unknown preset 'digit', did you mean 'digits'?"),
        (["digits", "--set", "recover.iteration=5"], "unknown key 'iteration'"),
        (["digits", "--data", "/no/such/folder"], "/no/such/folder"),
        (["digits", "--device", "cuda:77"], "--device cuda:77: cannot be used"),
        (["digits", "--out", __file__], "is no result file; choose another name"),
        (["digits", "--check", "/no/such/run"], "is not a finished run; finish it with scdd"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_runs(
    words: list[str], said: str, tmp_path: Path
):
    with pytest.raises(UserError) as caught:
        gpu_hours.main(["--device", "cpu", *words, "--scratch", str(tmp_path)])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_a_scale_that_is_none_is_refused(scale: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        gpu_hours.main(["digits", "--scale", scale])
    assert f"argument --scale: {scale} is not above 0" in capsys.readouterr().err


def test_a_run_with_other_settings_is_not_compared(finished_run: FinishedRun):
    cfg = load_config("digits", tiny_run.overrides(recover__iterations=5))
    with pytest.raises(ConfigError, match=r"recover\.iterations = 4, but .* 5; give the same"):
        gpu_hours.recorded_seconds(finished_run.path, cfg)
    same = load_config("digits", tiny_run.overrides())
    found = gpu_hours.recorded_seconds(finished_run.path, same)
    for step, seconds in found.items():
        marker = finished_run.path / step / "done.json"
        assert json.loads(marker.read_text())["seconds"] == seconds


def test_errors_of_a_check_are_per_cent_of_what_was_recorded():
    rows = [{"step": name, "seconds": s} for name, s in (("start", 9), ("a", 11), ("b", 18))]
    found = gpu_hours.checked(rows, {"a": 10, "b": 20})
    assert found["a"]["per_cent"] == pytest.approx(10) and found["b"]["per_cent"] == -10
    assert found["all"] == {"foretold": 29, "recorded": 30, "per_cent": pytest.approx(-100 / 30)}


def test_a_measurement_of_something_else_is_not_taken_for_this_one(tmp_path: Path):
    record = {"what": {"settings": {"ipc": 1}, "device": "cpu", "processes": 1}}
    (tmp_path / "measured.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="was measured with other settings; choose another"):
        timed_run.timed_run({"ipc": 2}, tmp_path, "cpu")
    assert timed_run.timed_run({"ipc": 1}, tmp_path, "cpu") == record


def test_a_run_that_fails_says_why_and_leaves_no_measurement(tmp_path: Path):
    settings = {"dataset": {"name": "image_folder", "root": str(tmp_path / "none")}}
    with pytest.raises(RunError, match=r"the run failed \(.*none"):
        timed_run.timed_run(settings, tmp_path / "point", "cpu")
    assert not (tmp_path / "point" / "measured.json").exists()


def test_watts_are_read_from_what_nvidia_smi_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho 101.5\necho "[N/A]"\necho 98.5\nexec sleep 60\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with timed_run.power_samples("cuda") as samples:
        while len(samples) < 2:
            pass
    assert [watts for _, watts in samples] == [101.5, 98.5]
    with timed_run.power_samples("cpu") as samples:
        assert samples == []


@pytest.mark.slow
def test_a_preset_is_measured_by_the_real_command_and_what_is_measured_is_kept(tmp_path: Path):
    small = tiny_run.changes(squeeze__epochs=6, recover__iterations=30, posttrain__epochs=20)
    scratch, out = tmp_path / "scratch", tmp_path / "hours.json"
    words = ["digits", *small, "--device", "cpu", "--rounds", "1", "--scale", "0.2"]
    words += ["--scratch", scratch, "--out", out]
    first = script(*words)
    assert first.returncode == 0, first.stderr
    result = json.loads(out.read_text())
    assert build_table(out) in first.stdout
    assert {"commit", "environment", "n", "config"} <= result.keys()
    assert [row["step"] for row in result["rows"]] == ["start", *tiny_run.STEPS]
    for row in result["rows"][1:]:
        assert row["seconds"] > 0 and row["peak_bytes"]["host"] > 0 and row["watts"] is None
    assert not list(scratch.glob("*/run")), "runs are not kept"

    # One point is lost, and half a run of it lies about.
    lost, kept = scratch / "longer-1", scratch / "short-1" / "measured.json"
    (lost / "measured.json").unlink()
    (lost / "run" / "squeeze").mkdir(parents=True)
    before = kept.stat().st_mtime_ns
    again = script(*words)
    assert again.returncode == 0, again.stderr
    assert kept.stat().st_mtime_ns == before and (lost / "measured.json").exists()
    other = script(*words, "--set", "recover.lr=0.3")
    assert other.returncode == 2 and "was measured with other settings" in other.stderr
    shutil.rmtree(scratch)
