"""The measurement of recovery: it compares one algorithm, and counts what one counts by hand."""

import copy
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import recover_throughput as benchmark
from benchmarks.tables import TABLES
from scdd.config.recover import RecoverConfig
from tests.stages import reference_recover

CLASSES, SIZE, COUNT = 5, 8, 6
CPU = torch.device("cpu")


def case(**changes: Any) -> benchmark.Case:
    teacher = benchmark.make_teacher("resnet8", CLASSES, SIZE, CPU)
    cfg = RecoverConfig(**({"batch": COUNT, "roll": 1, "compile": "on"} | changes))
    return benchmark.Case(cfg, teacher, torch.arange(COUNT) % CLASSES, SIZE, CPU, False)


def measured(path: Path, *options: str) -> dict[str, Any]:
    """Run the script as a process; return what it wrote."""
    script = Path(benchmark.__file__)
    command = [sys.executable, str(script), "--device", "cpu", "--result", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return shown(path, done.stdout)


def shown(path: Path, printed: str) -> dict[str, Any]:
    """The result in a file, whose table was printed."""
    result = json.loads(path.read_text())
    assert TABLES[result["schema"]](result) in printed
    return result


def test_the_reference_loop_has_the_losses_of_the_float64_one_and_of_the_product():
    torch.manual_seed(0)
    facts = case(first_bn_multiplier=7)
    x = 2 * torch.randn(COUNT, 3, SIZE, SIZE)
    net, distances = benchmark.watched(facts.teacher)
    for _ in range(2):
        found = benchmark.reference_losses(net, distances, x, facts.labels, 7)
    double = copy.deepcopy(facts.teacher).double()
    truth = reference_recover.losses(double, x.double(), facts.labels, 7)
    for one, other in zip(found, truth, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
    assert benchmark.check(facts) < 1e-5


def test_losses_that_differ_are_not_measured(monkeypatch: pytest.MonkeyPatch):
    facts = case()
    other = case(first_bn_multiplier=9)
    loss = benchmark.make_loss(other, 1, fast=False)
    monkeypatch.setattr(benchmark, "make_loss", lambda case, group, fast: loss)
    with pytest.raises(SystemExit, match="differ from the reference's"):
        benchmark.check(facts)


def test_work_and_traffic_of_an_image_are_those_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    net.eval().requires_grad_(False)
    multiplications = 4 * 4 * 4 * 3 * 9 + 4 * 5
    assert benchmark.flops_of(net, 8) == 2 * 2 * multiplications  # and as many additions; twice
    image, features, pooled, logits = 3 * 8 * 8, 4 * 4 * 4, 4, 5
    layers = (image + features) + 2 * features + (features + pooled) + (pooled + logits)
    assert benchmark.values_of(net, 8) == 2 * layers


def test_all_ways_are_measured_in_each_round_and_the_table_finds_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "result.json"
    net = ["--archs", "resnet8", "--sizes", "8", "--batch", "4", "--group", "2"]
    short = ["--rounds", "3", "--seconds", "0.02", "--no-compile"]
    benchmark.main(["--device", "cpu", "--result", str(path), *net, *short])
    result = shown(path, capsys.readouterr().out)
    assert {"schema", "commit", "environment", "n", "config"} <= result.keys()
    (row,) = result["rows"]
    reference, eager = row["ways"]["reference"], row["ways"]["eager"]
    assert [row["image_size"], reference["images"], eager["images"]] == [8, 4, 8]
    rates = [eager["images_per_second"], reference["images_per_second"]]
    assert [len(each) for each in rates] == [3, 3] and min(map(min, rates)) > 0
    ratios = [one / other for one, other in zip(*rates, strict=True)]
    assert eager["ratio"] == pytest.approx(statistics.median(ratios))
    assert row["hours"] is None and row["config"]["batch"] == 4


@pytest.mark.slow
def test_hours_of_the_papers_table_follow_from_the_rate(tmp_path: Path):
    result = measured(
        tmp_path / "result.json",
        *["--archs", "resnet18", "--sizes", "224", "--batch", "2"],
        *["--rounds", "1", "--seconds", "0.02", "--no-compile"],
    )
    (row,) = result["rows"]
    for name, hours in row["hours"].items():
        images = row["ways"][name]["median"] * 3600 * hours
        assert images == pytest.approx(1000 * 50 * 1000)  # classes, ipc, iterations
    assert row["paper_hours"] == 7.78
    # 1.8 GFLOPs multiplied and added (arXiv:1512.03385, Table 1), forward and back.
    assert row["flops"] == pytest.approx(2 * 2 * 1.8e9, rel=0.05)


@pytest.mark.slow
def test_the_compiled_loop_is_measured_too(tmp_path: Path):
    result = measured(
        tmp_path / "result.json",
        *["--archs", "resnet8", "--sizes", "8", "--batch", "4", "--rounds", "1"],
        *["--seconds", "0.02"],
    )
    way = result["rows"][0]["ways"]["compiled"]
    assert way["making_seconds"] > 0 and len(way["images_per_second"]) == 1
