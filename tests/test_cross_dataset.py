"""Squeeze on one dataset, everything else on another (SC-DD, Table 7)."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scdd.checkpoint import load_weights
from scdd.companions import companions_of
from scdd.config.dataset import DatasetConfig
from scdd.config.load import load_config, read_run_config
from scdd.datasets import load_dataset
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import DistilledDataset
from scdd.errors import ConfigError
from scdd.models import create_model
from scdd.stages.posttrain import new_student, train_student
from scdd.steps import student_seed
from scdd.training import evaluate
from tests import tiny_run
from tests.conftest import Outcome

Run = Callable[..., Outcome]

CPU = torch.device("cpu")
FIVE = ("oak", "elm", "ash", "fir", "yew")
# Far from what is measured on either folder, so that the wrong statistics cannot pass for these.
MEAN, STD = (0.1, 0.2, 0.7), (0.05, 0.1, 0.5)


def distill(out: Path, data: Path, *more: str) -> list[str]:
    small = tiny_run.changes(squeeze__batch=16, squeeze__objective__queue=32)
    return ["distill", "digits", "--out", str(out), "--data", str(data), *small, *more]


def elsewhere(root: Path) -> list[str]:
    settings = {"name": "image_folder", "root": root, "mean": [*MEAN], "std": [*STD]}
    return [f"--set=squeeze_dataset.{key}={value}" for key, value in settings.items()]


def succeeded(outcome: Outcome) -> str:
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """Images of five classes."""
    return tiny_run.write_image_folder(tmp_path / "trees", FIVE)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Images of three other classes."""
    return tiny_run.write_image_folder(tmp_path / "animals", val=20, size=24)


def pixels(root: Path) -> DatasetConfig:
    return DatasetConfig(name="image_folder", root=str(root), train_per_class=12)


def test_the_backbone_is_that_of_a_run_on_the_other_images_and_keeps_their_statistics(
    trees: Path, animals: Path, warm_command: Run, tmp_path: Path
):
    own, crossed = tmp_path / "own", tmp_path / "crossed"
    statistics = [f"--set=dataset.mean={[*MEAN]}", f"--set=dataset.std={[*STD]}"]
    succeeded(warm_command(*distill(own, trees, *statistics, "--until", "squeeze")))
    command = distill(crossed, animals, *elsewhere(trees), "--until", "probe")
    succeeded(warm_command(*command))
    made, truth = (run / "squeeze" / "backbone.safetensors" for run in (crossed, own))
    assert made.read_bytes() == truth.read_bytes()

    weights, about = load_weights(crossed / "teacher.safetensors")
    assert about["classes"] == ["ant", "bee", "cow"]
    assert (tuple(about["mean"]), tuple(about["std"])) == (MEAN, STD)
    teacher = create_model("resnet8", 3, 16)
    teacher.load_state_dict(weights)
    val = load_dataset(pixels(animals)).val
    x = val.read(torch.arange(len(val))).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        right = teacher.double().eval()((x - mean) / std).argmax(dim=1) == val.labels
    assert about["val_top1"] == pytest.approx(100 * right.double().mean().item())


def test_students_are_scored_with_the_statistics_they_were_trained_with(
    trees: Path, animals: Path, warm_command: Run, tmp_path: Path
):
    run = tmp_path / "run"
    stdout = succeeded(warm_command(*distill(run, animals, *elsewhere(trees))))
    assert "2 epochs of other images (squeeze_dataset), linear probe on all labels" in stdout
    cfg = read_run_config(run)
    assert cfg is not None
    data, seed = DistilledDataset.open(run / "distilled.h5"), student_seed(cfg.seed, 0)
    assert (data.mean, data.std) == (MEAN, STD)
    student = new_student(cfg.posttrain.arch, data, seed)
    train_student(cfg.posttrain, student, data, "soft", seed, CPU)
    measured = load_dataset(pixels(animals)).val
    (score,) = (
        row["top1"]
        for row in tiny_run.scores(run)
        if row["arm"] == "distilled" and row["labels"] == "soft"
    )
    assert score == evaluate(student, with_statistics(measured, MEAN, STD), CPU).top1
    assert score != evaluate(student, measured, CPU).top1

    found = companions_of(run / "distilled.h5", None, None).val
    assert found is not None and (found.mean, found.std) == (MEAN, STD)


def test_only_the_images_that_a_step_sees_can_make_it_stale(
    trees: Path, animals: Path, warm_command: Run, tmp_path: Path
):
    run, more = tmp_path / "run", [*elsewhere(trees), "--until", "probe"]
    succeeded(warm_command(*distill(run, animals, *more)))

    letters = tiny_run.write_image_folder(tmp_path / "letters", ("a", "b"))
    outcome = warm_command(*distill(run, letters, *more))
    assert outcome.returncode == 2
    assert "step 'probe' was made from another dataset than is there now" in outcome.stderr
    stdout = succeeded(warm_command(*distill(run, letters, *more, "--redo", "probe")))
    assert "squeeze: done before" in stdout and "probe: running" in stdout

    image = trees / "train" / "elm" / "003.png"
    os.utime(image, ns=(image.stat().st_atime_ns, image.stat().st_mtime_ns + 1))
    outcome = warm_command(*distill(run, letters, *more))
    assert outcome.returncode == 2
    assert "step 'squeeze' was made from another squeeze_dataset than is there" in outcome.stderr

    trees.rename(tmp_path / "away")
    stdout = succeeded(warm_command(*distill(run, letters, *more)))
    assert stdout.count("the real images are gone, so it was not compared with them") == 1
    outcome = warm_command(*distill(run, letters, *more, "--redo", "squeeze"))
    assert outcome.returncode == 2 and "error: squeeze_dataset.root: " in outcome.stderr
    assert f"{trees} does not exist" in outcome.stderr


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["squeeze_dataset.name=cifar10", "squeeze_dataset.image_size=32"],
            "squeeze_dataset.image_size is 32, but dataset.image_size is 16, and a backbone works "
            "at one size; give both the same",
        ),
        (
            ["probe.solver=given"],
            "probe.solver is given, but squeeze.objective is moco_v2, which trains no classifier; "
            "choose lbfgs or sgd",
        ),
        (["squeeze_dataset.rot=x"], "squeeze_dataset: unknown key 'rot', did you mean 'root'?"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_once(overrides: list[str], said: str):
    with pytest.raises(ConfigError) as caught:
        load_config("digits", overrides)
    assert said in str(caught.value)


def test_other_images_for_squeeze_are_another_recipe():
    assert load_config("cifar100_ipc50").recipe == "paper"
    cfg = load_config("cifar100_ipc50", ["squeeze_dataset.image_size=32"])
    assert cfg.recipe == "custom"
