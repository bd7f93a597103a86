"""Bad input of `scdd-apps crossarch`, through the command: one sentence each, nothing trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scdd.distilled import DistilledDataset
from tests.apps.conftest import write_file
from tests.apps.test_apps_commands import SHORT, cells, refused
from tests.conftest import Outcome
from tests.tiny_run import write_image_folder

Run = Callable[..., Outcome]


def test_a_baseline_of_another_number_of_classes_or_size_is_refused(
    apps: Run, small_file: Path, tmp_path: Path
):
    fewer = write_file(tmp_path / "fewer.h5", classes=("ant", "bee"))
    refused(apps("crossarch", small_file, "--baseline", fewer), "fewer.h5", "other classes")
    larger = write_file(tmp_path / "larger.h5", size=16)
    refused(apps("crossarch", small_file, "--baseline", larger), "larger.h5", "image size")


def test_only_random_images_are_called_random(apps: Run, small_file: Path, tmp_path: Path):
    for method, name in (("random", "random real"), ("scdd", "baseline other")):
        other = write_file(tmp_path / method / "other.h5", seed=7, method=method)
        out = tmp_path / f"out-{method}"
        arguments = ["crossarch", small_file, "--arch", "resnet8", "--out", out, *SHORT]
        done = apps(*arguments, "--baseline", other)
        assert done.returncode == 0, done.stderr
        assert [line[1] for line in cells(done.stdout)] == ["distilled", name]
        result = json.loads((out / "results.json").read_text())
        assert result["baseline"] == str(other)
        assert result["baseline_digest"] == DistilledDataset.open(other).header.digest


def test_data_of_another_number_of_classes_is_refused(apps: Run, small_file: Path, tmp_path: Path):
    write_image_folder(tmp_path / "four", ("ant", "bee", "cow", "dog"), train=1, val=1)
    refused(
        apps("crossarch", small_file, "--data", tmp_path / "four"),
        *("four", "has 4 classes", "the distilled file 3"),
    )


@pytest.mark.parametrize("arch", ["resnet19", "", "null", "a: b"])
def test_an_unknown_architecture_is_refused(arch: str, apps: Run, small_file: Path):
    refused(apps("crossarch", small_file, "--arch", "resnet8", "--arch", arch), arch)
    assert not (small_file.parent / "crossarch").exists()


def test_an_unknown_tuning_is_refused(apps: Run, small_file: Path):
    refused(apps("crossarch", small_file, "--tuning", "paper"), "--tuning paper", "per-arch")


@pytest.mark.parametrize("option", ["--seeds", "--epochs"])
def test_none_is_no_number_of_seeds_or_epochs(option: str, apps: Run, small_file: Path):
    outcome = apps("crossarch", small_file, option, "0")
    assert outcome.returncode == 2 and f"Invalid value for '{option}'" in outcome.stderr


def test_a_file_without_soft_labels_serves_hard_labels_alone(
    apps: Run, real_folder: Path, tmp_path: Path
):
    file = write_file(tmp_path / "images.h5", labelled=False)
    arguments = ["crossarch", file, "--arch", "resnet8", "--data", real_folder, *SHORT]
    both = apps(*arguments, "--labels", "soft", "--labels", "hard")
    refused(both, "images.h5", "no soft labels", "--labels hard")
    done = apps(*arguments, "--labels", "hard")
    assert done.returncode == 0, done.stderr
    assert 0 <= float(cells(done.stdout)[0][4]) <= 100
    assert "of soft labels" not in done.stdout


def test_a_folder_that_holds_other_results_is_refused(apps: Run, small_file: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.md").write_text("dear to me")
    refused(
        apps("crossarch", small_file, "--arch", "resnet8", "--out", "mine", *SHORT),
        *("mine", "report.md", "--out"),
    )
    assert (tmp_path / "mine" / "report.md").read_text() == "dear to me"
