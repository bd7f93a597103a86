"""`scdd evaluate`: the scores of the run, of a copied file, and what a file cannot serve."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from scdd.config.dataset import DatasetConfig
from scdd.config.load import load_config
from scdd.datasets import load_dataset
from tests import tiny_run
from tests.cli.conftest import Run, cells, refused
from tests.conftest import FinishedRun

SETTINGS = load_config("digits", tiny_run.overrides()).posttrain.model_dump()


def top1(run: Path, arm: str, labels: str) -> str:
    (score,) = (r["top1"] for r in tiny_run.scores(run) if (r["arm"], r["labels"]) == (arm, labels))
    return f"{score:.1f}"


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_evaluate_in_a_run_gives_the_scores_of_the_run(
    labels: str, warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    file = finished_run.path / "distilled.h5"
    outcome = warm_command("evaluate", file, "--arch", "resnet8", "--labels", labels)
    rows = cells(outcome)
    assert rows["distilled.h5"][0] == top1(finished_run.path, "distilled", labels)
    baseline = rows["random_real.h5 (random real)"]
    assert baseline[0] == top1(finished_run.path, "random real", labels)
    assert f"Student resnet8, {labels} labels, 12 epochs = 24 steps of batch 10" in outcome.stdout
    assert sorted(os.listdir(tmp_path)) == ["stderr.txt", "stdout.txt"], "nothing is written"


def test_evaluate_outside_a_run_asks_for_images_to_score_on(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    shutil.copy(finished_run.path / "distilled.h5", tmp_path / "mine.h5")
    (tmp_path / "config.yaml").write_text("of: something else")
    refused(warm_command("evaluate", "mine.h5", "--arch", "resnet8"), "mine.h5", "--data DIR")


def test_evaluate_scores_a_copied_file_on_the_images_of_a_folder(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    """The folder holds the very validation images of the run, so the score is that of the run."""
    val = load_dataset(DatasetConfig()).val
    for row, label in enumerate(val.labels.tolist()):
        folder = tmp_path / "images" / "val" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = val.read(torch.tensor([row]))[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{row:04}.png")
    shutil.copy(finished_run.path / "distilled.h5", tmp_path / "mine.h5")
    same = [f"{key}={SETTINGS[key]}" for key in ("epochs", "batch", "lr", "temperature", "stretch")]
    outcome = warm_command(
        *["evaluate", "mine.h5", "--arch", "resnet8", "--data", "images"],
        *(word for change in same for word in ("--set", change)),
    )
    assert cells(outcome)["mine.h5"][0] == top1(finished_run.path, "distilled", "soft")

    (tmp_path / "images" / "val" / "9").rename(tmp_path / "images" / "val" / "nine")
    refused(
        warm_command("evaluate", "mine.h5", "--arch", "resnet8", "--data", "images"),
        "images: has 10 classes, the distilled file 10",
        "class 9 is 'nine' there and '9' in the file",
        "give the data the file was distilled from",
    )
    shutil.rmtree(tmp_path / "images" / "val" / "nine")
    refused(
        warm_command("evaluate", "mine.h5", "--arch", "resnet8", "--data", "images"),
        "has 9 classes, the distilled file 10",
    )


def test_evaluate_trains_as_another_recipe_says_with_changes(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    """Two files with the same training give the same scores, wherever it is written."""
    file = finished_run.path / "distilled.h5"
    (tmp_path / "my.yaml").write_text(
        "posttrain: {epochs: 4, batch: 20, micro_batches: 2, lr: 0.02, loss: mse, "
        "hard_weight: 0.025, lr_schedule: multistep, seeds: 5}"
    )
    asked = ["evaluate", file, "--arch", "resnet8"]
    outcome = warm_command(*asked, "--recipe", "my.yaml", "--set", "epochs=3")
    assert (
        "Student resnet8 trained as in my.yaml, soft labels, 3 epochs = 3 steps of batch 20 in 2 "
        "micro-batches, adamw lr 0.02 times 0.5 at 80, 90, 95 %, weight decay 0.01, squared error "
        "of logits + 0.025 cross-entropy; 1 seed, last epoch, 359 real images."
    ) in outcome.stdout
    written = ["epochs=3", "batch=20", "micro_batches=2", "lr=0.02", "loss=mse"]
    written += ["hard_weight=0.025", "lr_schedule=multistep", "temperature=20", "stretch=1"]
    same = warm_command(*asked, *(word for change in written for word in ("--set", change)))
    assert cells(same) == cells(outcome)

    outcome = warm_command(*asked, "--recipe", "cifar100_ipc50", "--set", "epochs=1")
    assert "trained as in cifar100_ipc50, soft labels, 1 epochs" in outcome.stdout
    assert "steps of batch 64, adamw lr 0.001, cosine stretched by 3" in outcome.stdout


def test_evaluate_refuses_what_the_file_cannot_serve(warm_command: Run, finished_run: FinishedRun):
    run = finished_run.path
    for arguments, said in [
        ([run / "distilled.h5", "--arch", "resnet9"], ["unknown architecture 'resnet9'"]),
        ([run / "distilled.h5", "--arch", "resnet8", "--labels", "warm"], ["choose soft or hard"]),
        (
            [run / "distilled.h5", "--arch", "resnet8", "--set", "batch=9"],
            ["groups of 10", "--set"],
        ),
        ([run / "distilled.h5", "--arch", "resnet8", "--set", "epoch=9"], ["unknown key 'epoch'"]),
        (
            [run / "distilled.h5", "--arch", "resnet8", "--set", "seeds=2"],
            ["as the option --seeds"],
        ),
        (
            [run / "distilled.h5", "--arch", "resnet8", "--recipe", "cifar10_bset"],
            ["unknown preset 'cifar10_bset', did you mean 'cifar10_best'?"],
        ),
        (
            [run / "distilled.h5", "--arch", "resnet8", "--recipe", "none.yaml"],
            ["none.yaml: no such configuration file"],
        ),
        (
            [run / "distilled.h5", "--arch", "resnet8", "--recipe", "cifar100_best"],
            ["groups of 10", "a batch of 8 holds none", "in each of 2 micro-batches"],
        ),
        ([run / "recover" / "images.h5", "--arch", "resnet8"], ["no soft labels", "--labels hard"]),
        ([run / "distilled.h5", "--arch", "resnet8", "--data", "none"], ["none does not exist"]),
    ]:
        refused(warm_command("evaluate", *arguments), *said)
