"""What goes with a distilled file: found beside it in a run, taken as given, never guessed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from scdd.companions import Companions, companions_of, newest_file
from scdd.config.dataset import DatasetConfig
from scdd.datasets import load_dataset
from scdd.errors import ConfigError, DataError, FormatError, UserError
from tests import tiny_run
from tests.conftest import FinishedRun, Outcome

DIGITS = tuple(str(digit) for digit in range(10))


def test_in_a_run_the_validation_images_and_the_baseline_are_its_own(finished_run: FinishedRun):
    for name in ("distilled.h5", "real_start.h5"):
        found = companions_of(finished_run.path / name, None, None)
        assert found.baseline == finished_run.path / "random_real.h5"
        val = load_dataset(DatasetConfig()).val
        assert found.val is not None and torch.equal(found.val.labels, val.labels)
        rows = torch.arange(len(val))
        assert torch.equal(found.val.read(rows), val.read(rows))


def test_the_baseline_is_not_held_against_itself(finished_run: FinishedRun):
    assert companions_of(finished_run.path / "random_real.h5", None, None).baseline is None


def test_a_file_on_its_own_has_nothing_beside_it(finished_run: FinishedRun, tmp_path: Path):
    shutil.copy(finished_run.path / "distilled.h5", tmp_path / "mine.h5")
    assert companions_of(tmp_path / "mine.h5", None, None) == Companions(None, None)


def test_given_images_and_baseline_come_before_those_of_the_run(
    finished_run: FinishedRun, tmp_path: Path
):
    images = tiny_run.write_image_folder(tmp_path / "images", DIGITS, train=1, val=3)
    other = tmp_path / "other.h5"
    shutil.copy(finished_run.path / "real_start.h5", other)
    found = companions_of(finished_run.path / "distilled.h5", images, other)
    assert found.baseline == other
    assert found.val is not None and found.val.labels.tolist() == [
        d for d in range(10) for _ in "abc"
    ]
    cfg = DatasetConfig(train_per_class=12)
    assert (found.val.mean, found.val.std) == (load_dataset(cfg).mean, load_dataset(cfg).std)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (
            ("ant", "bee"),
            "has 2 classes, the distilled file 10, and class 0 is 'ant' there and '0'",
        ),
        (
            DIGITS[:9],
            "has 9 classes, the distilled file 10, and one list is the start of the other",
        ),
        ((*DIGITS[:9], "nine"), "and class 9 is 'nine' there and '9' in the file"),
    ],
)
def test_images_of_other_classes_are_refused(
    classes: tuple[str, ...], said: str, finished_run: FinishedRun, tmp_path: Path
):
    images = tiny_run.write_image_folder(tmp_path / "images", classes, train=1, val=1)
    with pytest.raises(DataError) as caught:
        companions_of(finished_run.path / "distilled.h5", images, None)
    assert str(caught.value).startswith(f"{images}: ") and said in str(caught.value)
    assert str(caught.value).endswith("give the data the file was distilled from")


def test_a_baseline_of_another_dataset_is_refused(
    finished_run: FinishedRun, warm_command: Callable[..., Outcome], tmp_path: Path
):
    images = tiny_run.write_image_folder(tmp_path / "images")
    run = ["--out", "run", "--set", "recover_real=null", "--until", "baseline"]
    outcome = warm_command("distill", "--data", images, *tiny_run.changes(), *run)
    assert outcome.returncode == 0, outcome.stderr
    other = tmp_path / "run" / "random_real.h5"
    with pytest.raises(FormatError, match="other classes or another image size") as caught:
        companions_of(finished_run.path / "distilled.h5", None, other)
    assert str(caught.value).startswith(f"{other}: ")


def test_where_the_images_of_a_run_are_gone_it_is_said_and_nothing_is_scored(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = copied_run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["dataset"] |= {"name": "image_folder", "root": str(tmp_path / "gone")}
    file.write_text(yaml.safe_dump(config))
    found = companions_of(copied_run / "distilled.h5", None, None)
    assert found.val is None and found.baseline is not None
    said = capsys.readouterr().out
    assert f"{tmp_path / 'gone'} does not exist" in said and "give --data DIR" in said


def test_a_path_inside_the_file_is_never_opened(
    copied_run: Path, finished_run: FinishedRun, tmp_path: Path
):
    """The file says that its images are the digits; outside of a run that is not looked at."""
    (copied_run / "config.yaml").unlink()
    found = companions_of(copied_run / "distilled.h5", None, None)
    assert found.val is None and found.baseline == copied_run / "random_real.h5"


def test_a_damaged_configuration_of_the_run_is_named(copied_run: Path):
    (copied_run / "config.yaml").write_text("recover: {iteration: 3}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: recover: unknown key 'iteration'"):
        companions_of(copied_run / "distilled.h5", None, None)


def test_the_newest_distilled_file_is_the_one_written_last(tmp_path: Path):
    with pytest.raises(UserError, match="give a FILE, or make one with 'scdd distill'"):
        newest_file(tmp_path / "runs")
    for age, name in enumerate("bca"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        file = tmp_path / "runs" / name / "distilled.h5"
        file.write_bytes(b"")
        os.utime(file, (1000 - age, 1000 - age))
    (tmp_path / "runs" / "d").mkdir()
    assert newest_file(tmp_path / "runs") == tmp_path / "runs" / "b" / "distilled.h5"
