"""Method dm as a run: real images to a distilled file, kills, what is kept, refusals."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scdd.config.load import load_config
from scdd.datasets import load_dataset
from scdd.errors import ConfigError
from scdd.report import real_pixels
from scdd.stages.select import random_real
from scdd.steps.context import ARMS
from tests import tiny_run
from tests.conftest import FinishedRun, Outcome
from tests.test_methods import attribute, settings, with_networks

Run = Callable[..., Outcome]


def distill(out: Path, *options: str, **more: object) -> list[str]:
    return ["distill", "digits", "--out", str(out), *tiny_dm(**more), *options]


def tiny_dm(**more: object) -> list[str]:
    return settings("dm", **{"condense__iterations": 3} | more)


def condensed(run: Path) -> dict[str, np.ndarray]:
    return tiny_run.arrays(run / "condense" / "images.h5")


def starts() -> np.ndarray:
    """The real images that the rows start from: those of the baseline."""
    cfg = load_config("digits", tiny_dm()[1::2])
    train = load_dataset(cfg.dataset).train
    return train.read(random_real(train, cfg.ipc, cfg.seed)).numpy()


def test_a_run_ends_with_condensed_images_under_the_labels_of_the_teacher_at_hand(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run = with_networks(finished_run, tmp_path / "run")
    outcome = warm_command(*distill(run))
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(
        "method dm: recover and recover_real left out, condense.dsa has no flip, as relabel has "
        "none\n"
    )
    ran = re.findall(r"^(\w+): running$", outcome.stdout, re.MULTILINE)
    assert ran == ["condense", "relabel", "baseline", "posttrain", "report"]

    found, file = condensed(run), tiny_run.arrays(run / "distilled.h5")
    assert found["labels"].tolist() == [*range(10), *range(10)]
    assert np.array_equal(found["images"], file["images"])
    moved = np.abs(found["images"].astype(int) - starts())
    assert 0 < moved.mean() < 64, "they begin as real images"
    assert attribute(run / "distilled.h5", "method") == "dm"
    assert attribute(run / "condense" / "images.h5", "teacher") is None
    assert attribute(run / "distilled.h5", "teacher") is not None

    arms = {(row["arm"], row["labels"]) for row in tiny_run.scores(run)}
    assert arms == {
        (arm, kind) for arm in ("distilled", "random real") for kind in ("soft", "hard")
    }
    assert re.search(r"^\| distilled +\| +start only \|", outcome.stdout, re.MULTILINE)
    report = (run / "report.md").read_text()
    assert "`distilled` starts from random real images and is matched to all" in report
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [entry for entry in logged if entry["stage"] == "condense"]
    assert [entry["iteration"] for entry in losses] == [1, 2, 3]

    # Networks made anew leave the images where they are.
    again = ("--redo", "squeeze", "--until", "squeeze")
    outcome = warm_command(*distill(run, *again, squeeze__epochs=1))
    assert outcome.returncode == 0, outcome.stderr
    assert "condense: done before" in outcome.stdout and "squeeze: running" in outcome.stdout


def test_killed_before_every_change_it_makes_the_same_images(warm_command: Run, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--until", "condense")
    settings = {"checkpoint_minutes": 0, "condense__iterations": 2}
    assert warm_command(*distill(whole, *options, **settings)).returncode == 0
    survived: list[str] = []
    while True:
        outcome = warm_command(
            *distill(killed, *options, **settings), root=killed, survive=survived
        )
        if outcome.killed_at is None:
            break
        survived.append(outcome.killed_at)
    assert outcome.returncode == 0, outcome.stderr
    assert len(survived) >= 3, "killed at the checkpoints and at the file"
    assert condensed(killed)["images"].tobytes() == condensed(whole)["images"].tobytes()
    names = sorted(path.name for path in (killed / "condense").iterdir())
    assert names == ["done.json", "images.h5", "settings.json"]


def test_a_dry_run_counts_real_and_synthetic_images(warm_command: Run, tmp_path: Path):
    outcome = warm_command(*distill(tmp_path / "run", "--dry-run"))
    assert outcome.returncode == 0, outcome.stderr
    work = re.findall(r"^\| condense +\| +(\d+) x convnet ", outcome.stdout, re.MULTILINE)
    # 3 iterations x all 12 images of 10 classes, and x 2 images of 10 classes.
    assert work == ["360", "60"]


@pytest.mark.parametrize(("start", "said"), [("noise", "no"), ("real", "start only")])
def test_the_table_says_whether_real_pixels_are_in_it(start: str, said: str):
    cfg = load_config("digits", tiny_dm(condense__start=start)[1::2])
    assert [real_pixels(cfg, arm) for arm in ARMS if arm.step != "relabel_real"] == [said, "yes"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"condense__arch": "resnet8"},
            "condense.arch = resnet8 has BatchNorm layers, which know nothing in an untrained "
            "network but the batch, where classes would mix; choose a network without, such as "
            "convnet",
        ),
        ({"ipc": 13}, "class '0' has 12 training images, but ipc is 13; lower ipc or add images"),
        (
            {"squeeze__batch": 500, "squeeze__objective__queue": 1000},
            "squeeze.batch is 500, but the training set holds only 120 images; choose a batch of "
            "at most 120",
        ),
        (
            {"condense__dsa": "[crop, crop]"},
            "--set condense.dsa=[crop, crop]: condense.dsa: crop stands there twice; name it once",
        ),
        (
            {"condense__lr": 0},
            "--set condense.lr=0: condense.lr: input should be greater than 0, found 0",
        ),
        ({"condense__start": "median"}, "--set condense.start=median: condense.start: "),
    ],
)
def test_wrong_settings_are_one_sentence_before_any_step_has_worked(
    changes: dict, sentence: str, warm_command: Run, tmp_path: Path
):
    outcome = warm_command(*distill(tmp_path / "run", **{"condense__start": "noise"} | changes))
    assert outcome.returncode == 2
    assert outcome.stderr.strip().removeprefix("error: ").startswith(sentence)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_rate_that_is_too_high_ends_the_run_with_a_sentence(warm_command: Run, tmp_path: Path):
    outcome = warm_command(*distill(tmp_path / "run", condense__lr=1e30, condense__dsa="[]"))
    assert outcome.returncode == 1
    assert "condense: the images end with every pixel at the end of its range" in outcome.stderr
    assert "--redo condense" in outcome.stderr


def test_the_section_belongs_to_dm_alone():
    assert load_config("digits").condense is None
    with pytest.raises(ConfigError, match="condense"):
        load_config("digits", ["condense.lr=0.1"])
    for preset, mirrored in (("digits", False), ("cifar10_cpu", True)):
        section = load_config(preset, ["method=dm"]).condense
        assert section is not None and ("flip" in section.dsa) is mirrored
