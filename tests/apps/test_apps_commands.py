"""`scdd-apps` as people meet it: help at once, one sentence for bad input, results, reruns."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scdd.distilled import DistilledDataset
from tests.apps.conftest import documented, write_file
from tests.conftest import Outcome, child_environment

Run = Callable[..., Outcome]

SHORT = ("--epochs", "2", "--set", "batch=12")


def refused(outcome: Outcome | subprocess.CompletedProcess[str], *said: str, code: int = 2) -> None:
    """Check that a command ended with one sentence with these words on standard error."""
    assert outcome.returncode == code, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.stderr
    for words in said:
        assert words in lines[0], lines[0]


def cells(text: str) -> list[list[str]]:
    """The body of the first Markdown table in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# Help and bad input


@pytest.mark.parametrize("arguments", [["--help"], ["crossarch", "--help"], ["prune", "--help"]])
def test_help_answers_without_torch(arguments: list[str], tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "scdd_apps", *arguments],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, re.MULTILINE))
    assert "scdd_apps.cli" in imported and done.stdout
    assert {"torch", "timm", "torch_pruning", "h5py"} & imported == set()


def test_the_options_of_the_contract_are_there(apps: Run):
    for command in ("crossarch", "prune"):
        shown = apps(command, "--help").stdout
        for option in ("--arch", "--seeds", "--baselines", "--baseline", "--data", "--out"):
            assert option in shown
    assert "--ratio" in shown


@pytest.mark.parametrize("command", ["crossarch", "prune"])
def test_bad_input_is_refused_in_one_sentence(
    command: str, apps: Run, small_file: Path, tmp_path: Path
):
    refused(apps(command), "no distilled.h5 under runs/", "scdd distill")
    refused(apps(command, "gone.h5"), "gone.h5")
    (tmp_path / "text.h5").write_text("not a distilled file")
    refused(apps(command, "text.h5"), "text.h5")
    refused(apps(command, small_file, "--labels", "both"), "--labels both", "soft or hard")
    refused(apps(command, small_file, "--set", "epoch=3"), "epoch", "epochs")
    refused(apps(command, small_file, "--set", "arch=resnet8"), "give it as the option --arch")
    refused(apps(command, small_file, "--arch", "resnet19"), "resnet19", "resnet18")
    refused(apps(command, small_file, "--device", "tpu9"), "--device tpu9")
    refused(apps(command, small_file, "--baselines"), "random_real.h5", "--baseline FILE")
    refused(apps(command, small_file, "--data", tmp_path / "gone"), "gone")
    assert not list(small_file.parent.glob(f"{command}/rows"))


@pytest.mark.parametrize("command", ["crossarch", "prune"])
def test_companions_of_another_dataset_are_refused(
    command: str, apps: Run, small_file: Path, real_folder: Path, tmp_path: Path
):
    other = write_file(tmp_path / "other.h5", classes=("ant", "bee", "dog"))
    refused(apps(command, small_file, "--baseline", other), "other.h5", "other classes")
    refused(apps(command, other, "--data", real_folder), "class 2 is 'cow' there and 'dog' in")
    larger = write_file(tmp_path / "larger.h5", size=12)
    refused(apps(command, small_file, "--baseline", larger), "larger.h5", "image size")


@pytest.mark.parametrize("command", ["crossarch", "prune"])
def test_a_file_that_cannot_serve_such_training_is_refused(command: str, apps: Run, tmp_path: Path):
    images = write_file(tmp_path / "images.h5", labelled=False)
    refused(apps(command, images), "images.h5", "no soft labels", "--labels hard")
    grouped = write_file(tmp_path / "grouped.h5", group=6)
    refused(apps(command, grouped, "--set", "batch=4"), "groups of 6", "--set batch=")


# crossarch


def test_crossarch_scores_every_architecture_and_skips_finished_rows(
    apps: Run, small_file: Path, real_folder: Path, tmp_path: Path
):
    random_real = write_file(tmp_path / "random_real.h5", seed=7, method="random")
    arguments = [
        *("crossarch", small_file, "--arch", "resnet8", "--arch", "resnet14", "--seeds", "2"),
        *("--labels", "soft", "--labels", "hard", "--data", real_folder, "--out", "out"),
        *("--baseline", random_real, *SHORT),
    ]
    first = apps(*arguments)
    assert first.returncode == 0, first.stderr
    table = cells(first.stdout)
    assert [line[:2] for line in table] == [
        ["resnet8", "distilled"],
        ["resnet8", "random real"],
        ["resnet14", "distilled"],
        ["resnet14", "random real"],
    ]
    for line in table:
        assert all(re.fullmatch(r"\d+\.\d \+- \d+\.\d", cell) for cell in line[4:]), line
    assert "12 real validation images" in first.stdout and "2 seeds" in first.stdout
    assert "2 epochs = 2 steps of batch 12, adamw lr 0.001" in first.stdout
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(result["rows"]) == 16 and result["environment"]["versions"]["torch"]
    assert result["digest"] == DistilledDataset.open(small_file).header.digest
    assert cells((tmp_path / "out" / "report.md").read_text()) == table
    first_lines = cells(documented(tmp_path / "out"))
    assert [line[0] for line in first_lines] == ["resnet8", "resnet14"]
    assert first_lines[0][4::2] == table[0][4:5] + table[1][4:5], "soft labels of both arms"

    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "rows").iterdir()}
    assert len(rows) == 16 and all(path.suffix == ".json" for path in rows)
    second = apps(*arguments)
    assert "16 of 16 students were trained before" in second.stdout
    assert cells(second.stdout) == table
    assert {path: path.stat().st_mtime_ns for path in rows} == rows
    # Other settings are other rows.
    third = apps(*arguments, "--set", "lr=0.01")
    assert "trained before" not in third.stdout and third.returncode == 0


def test_crossarch_takes_the_newest_run_and_trains_without_real_images(apps: Run, tmp_path: Path):
    file = write_file(tmp_path / "runs" / "mine" / "distilled.h5")
    write_file(file.with_name("random_real.h5"), seed=7, method="random")
    done = apps("crossarch", "--arch", "resnet8", "--baselines", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "runs/mine/distilled.h5 is the newest" in done.stdout
    assert [line[-1] for line in cells(done.stdout)] == ["n/a (no --data)"] * 2
    assert (tmp_path / "runs" / "mine" / "crossarch" / "results.json").is_file()


def test_an_architecture_that_fails_is_a_row_that_says_why(
    apps: Run, real_folder: Path, tmp_path: Path
):
    # 17 px does not divide into patches.
    file = write_file(tmp_path / "prime.h5", size=17)
    chosen = ["--arch", "vit_tiny", "--arch", "resnet8", "--data", real_folder]
    done = apps("crossarch", file, *chosen, "--out", "out", *SHORT)
    assert done.returncode == 0, done.stderr
    failed, fine = cells(done.stdout)
    assert failed[0] == "vit_tiny" and failed[4] == "error" and "17 px" in failed[5]
    assert fine[0] == "resnet8" and float(fine[4]) >= 0 and fine[5] == ""
    alone = apps("crossarch", file, "--arch", "vit_tiny", "--out", "alone", *SHORT)
    assert alone.returncode == 1 and "every architecture failed" in alone.stderr
    assert (tmp_path / "alone" / "report.md").is_file()


def test_a_grouped_file_is_trained_on_in_whole_groups(apps: Run, tmp_path: Path):
    file = write_file(tmp_path / "grouped.h5", group=6)
    done = apps("crossarch", file, "--arch", "resnet8", "--epochs", "2", "--set", "batch=6")
    assert done.returncode == 0, done.stderr
    assert "2 epochs = 4 steps of batch 6" in done.stdout


@pytest.mark.slow
def test_the_default_architectures_train_on_16_px(apps: Run, real_folder: Path, tmp_path: Path):
    file = write_file(tmp_path / "distilled.h5", size=16)
    done = apps("crossarch", file, "--data", real_folder, *SHORT)
    assert done.returncode == 0, done.stderr
    assert [line[0] for line in cells(done.stdout)] == [
        "resnet18",
        "regnet_x_400mf",
        "squeezenet1_0",
        "mobilenet_v3_large",
        "shufflenet_v2_x0_5",
        "vit_tiny",
    ]
    assert "BatchNorm momentum 0.1 instead of 0.01" in done.stdout
