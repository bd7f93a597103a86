"""What a unit of work takes is told from short runs: closed forms, and counts of a real run."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import gpu_hours
from benchmarks.stage_work import Sizes, fit, knn_checks, steps_of_an_epoch, work
from scdd.config.load import load_config, read_run_config
from scdd.config.posttrain import PosttrainConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.distilled import DistilledDataset
from scdd.posttraining import steps_per_epoch
from tests.conftest import FinishedRun

positive = st.floats(0.01, 100)


@given(positive, positive, positive)
def test_a_line_in_two_units_is_found_exactly(fixed: float, first: float, second: float):
    units = [{"a": 10.0, "b": 3.0}, {"a": 40.0, "b": 3.0}, {"a": 10.0, "b": 9.0}]
    seconds = [fixed + first * own["a"] + second * own["b"] for own in units]
    cost = fit(units, seconds)
    whole = {"a": 5000.0, "b": 77.0}
    truth = fixed + first * 5000 + second * 77
    assert cost.seconds(whole) == pytest.approx(truth, rel=1e-6)
    assert cost.each["a"] == pytest.approx(first, rel=1e-5)


def test_what_is_the_same_in_all_runs_is_part_of_the_fixed_cost():
    cost = fit([{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 5.0}], [4.0, 8.0])
    assert cost.each["b"] == 0
    assert cost.seconds({"a": 10.0, "b": 5.0}) == pytest.approx(2 + 2 * 10)


def test_noise_never_makes_a_unit_cost_less_than_nothing():
    cost = fit([{"a": 1.0}, {"a": 4.0}], [2.0, 1.0])
    assert cost.each["a"] == 0 and 1 <= cost.fixed <= 2
    assert fit([{}, {}], [2.0, 2.0]).seconds({}) == pytest.approx(2)


def test_extrapolation_takes_medians_and_the_error_is_half_the_range_of_rounds():
    units = {"short": {"recover": {"n": 10.0}}, "longer": {"recover": {"n": 40.0}}}

    def one(seconds: float) -> dict:
        return {
            "seconds": {"start": 3.0, "recover": seconds},
            "peak_bytes": {"recover": {"host": int(seconds)}},
            "watts": {"recover": 200.0},
        }

    # a = 2, b = 0.5 but for the second round, in which the longer run takes 3 s more: b = 0.6.
    measured = {"short": [one(7)] * 3, "longer": [one(22), one(25), one(22)]}
    start, row = gpu_hours.extrapolate(units, measured, {"recover": {"n": 1000.0}})
    assert start["seconds"] == pytest.approx(3) and start["kwh"] is None
    assert row["seconds"] == pytest.approx(2 + 500) and row["gpu_hours"] == row["seconds"] / 3600
    assert row["error"] == pytest.approx((1 + 600 - 502) / 2)  # the other line has a = 1
    assert row["peak_bytes"] == {"host": 25}
    assert row["kwh"] == pytest.approx(0.2 * 502 / 3600)


@pytest.mark.parametrize(("epochs", "every", "looks"), [(30, 10, 3), (31, 10, 4), (3, 10, 1)])
def test_neighbours_are_looked_at_every_so_many_epochs_and_at_the_end(
    epochs: int, every: int, looks: int
):
    assert knn_checks(SqueezeConfig(epochs=epochs, knn_every=every)) == looks
    assert knn_checks(SqueezeConfig(epochs=epochs, knn_every=0)) == 0


@pytest.mark.parametrize(("batch", "parts"), [(10, 1), (8, 1), (6, 3), (64, 1)])
def test_steps_of_an_epoch_are_those_of_the_real_training(
    finished_run: FinishedRun, batch: int, parts: int
):
    cfg = PosttrainConfig(batch=batch, micro_batches=parts)
    data = DistilledDataset.open(finished_run.path / "distilled.h5")
    data._group_sizes = None  # Of images alone, as groups are left out of the count.
    assert steps_of_an_epoch(cfg, len(data)) == steps_per_epoch(cfg, data)


def test_the_work_of_a_run_is_what_the_run_has_logged(finished_run: FinishedRun):
    cfg = read_run_config(finished_run.path)
    assert cfg is not None
    done = work(cfg, Sizes(120, 359, 10, 120))
    lines = [
        json.loads(line) for line in (finished_run.path / "metrics.jsonl").read_text().splitlines()
    ]
    last = [line for line in lines if line["stage"] == "squeeze"][-1]
    assert done["squeeze"]["steps"] == last["step"]
    looks = sum("knn_top1" in line for line in lines)
    assert done["squeeze"]["images of kNN"] == looks * (120 + 359)
    students = json.loads((finished_run.path / "results.json").read_text())["rows"]
    assert done["posttrain"]["steps"] == sum(row["steps"] for row in students)
    assert done["posttrain"]["images scored"] == len(students) * 359
    assert done["recover"]["image iterations"] == 20 * 4
    assert done["relabel"] == done["baseline"] == {"image views": 20 * 4}
    assert done.keys() == {folder.parent.name for folder in finished_run.path.glob("*/done.json")}


def test_work_grows_with_what_a_preset_adds():
    plain = load_config("digits")
    more = load_config(
        "digits",
        [
            "squeeze_labellers=[{arch: resnet8, objective: {name: supervised}, epochs: 7, "
            "batch: 100, keep_epochs: [1, 2], views: [{}]}]",
            "posttrain.seeds=4",
            "posttrain.evaluate_every=100",
        ],
    )
    sizes = Sizes(1000, 100, 10, 1000)
    one, other = work(plain, sizes), work(more, sizes)
    assert other["squeeze_labellers"]["steps"] == 7 * 10
    assert other["probe_labellers"]["images"] == 3 * (2 * 1000 + 100)
    assert other["posttrain"]["steps"] == 4 * one["posttrain"]["steps"]
    assert other["posttrain"]["images scored"] == 4 * 7 * one["posttrain"]["images scored"]


def test_the_papers_figures_stand_beside_its_own_settings_alone(tmp_path: Path):
    imagenet = Sizes(1_281_167, 50_000, 1000, 1_281_167)
    cfg = load_config("imagenet_ipc50")
    found = {step: gpu_hours.papers(cfg, imagenet, step) for step in ("squeeze", "probe")}
    assert {step: of["hours"] for step, of in found.items()} == {"squeeze": 0.22, "probe": 0.06}
    assert gpu_hours.papers(cfg, imagenet, "recover")["hours"] == pytest.approx(3 * 25.04)
    assert gpu_hours.papers(cfg, imagenet, "posttrain")["hours"] == 2.53
    other = load_config("imagenet_ipc50", ["ipc=20"])
    assert gpu_hours.papers(other, imagenet, "posttrain") is None
    assert gpu_hours.papers(cfg, imagenet._replace(classes=10), "squeeze") is None
    loaded = load_config("imagenet_moco_v3")
    assert gpu_hours.papers(loaded, imagenet, "squeeze") is None
