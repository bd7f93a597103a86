"""The honest table: report.md, what is printed, and the scores behind them say the same."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from scdd.config.dataset import DatasetConfig
from scdd.config.load import load_config
from scdd.config.posttrain import PosttrainConfig
from scdd.datasets import load_dataset
from scdd.models import create_model
from scdd.report import protocol_line
from tests import tiny_run
from tests.conftest import FinishedRun


@pytest.fixture
def report(finished_run: FinishedRun) -> str:
    return (finished_run.path / "report.md").read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table of a text, as rows of cells, without the rule below the headers."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in block.splitlines()
            if not line.startswith("| --")
        ]
        for block in blocks
    ]


def score(run: Path, arm: str, labels: str) -> str:
    (row,) = (r for r in tiny_run.scores(run) if (r["arm"], r["labels"]) == (arm, labels))
    return f"{row['top1']:.1f}"


def test_rows_are_the_arms_and_columns_set_soft_beside_hard(finished_run: FinishedRun, report: str):
    headers, *rows = tables(report)[0]
    assert headers == ["images", "real pixels", "soft labels", "hard labels", "label bytes"]
    pixels = {"distilled": "no", "distilled, real start": "start only", "random real": "yes"}
    assert [row[:2] for row in rows] == [[arm, real] for arm, real in pixels.items()]
    for arm, _, soft, hard, _ in rows:
        assert soft == score(finished_run.path, arm, "soft")
        assert hard == score(finished_run.path, arm, "hard")


def test_label_bytes_are_those_stored_in_the_file(finished_run: FinishedRun, report: str):
    _, *rows = tables(report)[0]
    for row, name in zip(rows, tiny_run.FILES, strict=True):
        stored = tiny_run.arrays(finished_run.path / name)
        labels = [key for key in stored if key.startswith(("soft_labels/", "views/"))]
        assert row[-1] == f"{sum(stored[key].nbytes for key in labels) / 1000:.1f} kB"


def test_the_protocol_is_stated_in_full(report: str):
    for words in (
        "Top-1 % on 359 real validation images at the last epoch.",
        "Recipe custom; student resnet8, 12 epochs = 24 steps of batch 10",
        "weight decay 0.01, T = 2; 1 seed.",
    ):
        assert words in report
    results = {"val_images": 7, "rows": [{"steps": 30}]}
    line = protocol_line(PosttrainConfig(epochs=3, seeds=5, batch=8), "paper", results)
    assert "on 7 real" in line and "Recipe paper" in line and "5 seeds" in line
    assert "3 epochs = 30 steps of batch 8" in line


def test_the_teachers_accuracy_is_that_of_its_weights(finished_run: FinishedRun, report: str):
    with safe_open(finished_run.path / "teacher.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    teacher = create_model("resnet8", 10, 16)
    teacher.load_state_dict(weights)
    cfg = load_config("digits", tiny_run.overrides()).dataset
    val, plain = load_dataset(cfg).val, load_dataset(DatasetConfig()).val
    rows = torch.arange(len(val))
    assert torch.equal(val.read(rows), plain.read(rows)), "validation images are all of them"
    x = val.read(rows).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (val.mean, val.std))
    with torch.no_grad():
        chosen = teacher.double().eval()((x - mean) / std).argmax(dim=1)
    right = 100 * (chosen == val.labels).double().mean().item()
    assert f"Teacher (resnet8, moco_v2, 2 epochs, linear probe on all labels): {right:.1f} %" in (
        report
    )


def test_every_finished_step_has_its_time_and_memory(finished_run: FinishedRun, report: str):
    headers, *rows = tables(report)[1]
    assert headers == ["step", "time", "peak memory"]
    assert [row[0] for row in rows] == list(tiny_run.STEPS[:-1]), "all but the report itself"
    for step, seconds, memory in rows:
        done = json.loads((finished_run.path / step / "done.json").read_text())
        assert seconds == f"{round(done['seconds'])} s" and memory.endswith(" host")


def test_what_is_printed_is_the_report_without_its_picture(finished_run: FinishedRun, report: str):
    printed = finished_run.stdout[finished_run.stdout.index("# digits") :].splitlines()
    assert printed.pop() == (
        f"Files: {finished_run.path}/distilled.h5, random_real.h5, gallery.png, report.md"
    )
    assert printed == [line for line in report.splitlines() if not line.startswith("![")]
    assert "![one row a class](gallery.png)" in report.splitlines()
