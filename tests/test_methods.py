"""Every method from end to end, on the networks of one finished run where it needs no others."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from scdd.config.load import load_config
from scdd.config.methods import OWN_SECTIONS, concerns
from scdd.coresets import herding
from scdd.datasets import load_dataset
from scdd.estimate import estimate
from scdd.method_steps import METHODS
from scdd.run import RunDirectory
from scdd.steps import Context, run_select
from tests import tiny_run
from tests.conftest import FinishedRun, Outcome

Run = Callable[..., Outcome]


def settings(method: str, **more: object) -> list[str]:
    """The tiny run by another method, without the settings that this has no use for."""
    kept = [
        f"method={method}",
        *(
            override
            for override in tiny_run.overrides(posttrain__epochs=2, **more)
            if concerns(method, override.partition(".")[0].partition("=")[0])
            and (method != "sre2l" or "queue" not in override)
        ),
    ]
    return [word for override in kept for word in ("--set", override)]


def with_networks(finished: FinishedRun, run: Path) -> Path:
    """A run directory in which only the networks of a finished run are."""
    for step in ("squeeze", "probe"):
        shutil.copytree(finished.path / step, run / step)
    return run


def distilled(command: Run, run: Path, method: str, *more: str, **changes: object) -> str:
    outcome = command("distill", "digits", "--out", run, *settings(method, **changes), *more)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def attribute(file: Path, name: str) -> object:
    """What the header of a distilled file says; numbers and lists are JSON."""
    with h5py.File(file, "r") as opened:
        text = opened.attrs[name]
    text = text if isinstance(text, str) else text.decode()
    return text if name == "method" else json.loads(text)


def real_images() -> tuple[dict[bytes, int], torch.Tensor]:
    """The training images of the tiny run, by their pixels, and their labels."""
    train = load_dataset(load_config("digits", tiny_run.overrides()).dataset).train
    pixels = train.read(torch.arange(len(train))).numpy()
    return {image.tobytes(): row for row, image in enumerate(pixels)}, train.labels


def test_every_method_is_a_list_of_steps():
    assert METHODS.keys() == OWN_SECTIONS.keys()


@pytest.mark.parametrize("method", ["random", "herding", "forgetting", "k_center"])
def test_a_coreset_is_real_images_under_the_labels_and_the_training_of_the_others(
    method: str, warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run = with_networks(finished_run, tmp_path / "run")
    stdout = distilled(warm_command, run, method)
    ran = re.findall(r"^(\w+): running$", stdout, re.MULTILINE)
    scorer = ["squeeze_scorer"] if method == "forgetting" else []
    baseline = [] if method == "random" else ["baseline"]
    assert ran == [*scorer, "select", "relabel", *baseline, "posttrain", "report"]

    found, labels = real_images()
    images = tiny_run.arrays(run / "distilled.h5")
    rows = [found[image.tobytes()] for image in images["images"]]
    assert len(set(rows)) == 20 and images["labels"].tolist() == [*range(10)] * 2
    assert labels[rows].tolist() == images["labels"].tolist()
    assert attribute(run / "distilled.h5", "method") == method
    assert attribute(run / "distilled.h5", "ipc") == 2

    arms = {(row["arm"], row["labels"]) for row in tiny_run.scores(run)}
    compared = ["distilled"] if method == "random" else ["distilled", "random real"]
    assert arms == {(arm, kind) for arm in compared for kind in ("soft", "hard")}
    assert f"# digits: {method}, 2 images per class" in stdout
    for arm in compared:
        assert re.search(rf"^\| {arm} +\| +yes ", stdout, re.MULTILINE)
    files = [name for name in ("distilled.h5", "random_real.h5") if (run / name).exists()]
    assert files == (["distilled.h5"] if method == "random" else ["distilled.h5", "random_real.h5"])
    assert f"Files: {run}/{', '.join(files)}, gallery.png, report.md" in stdout
    report = (run / "report.md").read_text()
    assert "noise" not in report and "real start" not in report and "Recovery" not in report


def test_the_images_of_random_are_the_baseline_of_the_others(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run = with_networks(finished_run, tmp_path / "run")
    distilled(warm_command, run, "random", "--until", "relabel")
    ours = tiny_run.arrays(run / "distilled.h5")
    theirs = tiny_run.arrays(finished_run.path / "random_real.h5")
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)


def test_sre2l_recovers_from_a_network_that_learnt_from_labels(warm_command: Run, tmp_path: Path):
    run = tmp_path / "run"
    stdout = distilled(warm_command, run, "sre2l", probe__floor=0)
    assert re.findall(r"^(\w+): running$", stdout, re.MULTILINE) == list(tiny_run.STEPS)
    assert "Teacher (resnet8, supervised, 2 epochs, its own classifier): " in stdout
    assert attribute(run / "distilled.h5", "method") == "sre2l"
    assert attribute(run / "distilled.h5", "teacher")["objective"] == "supervised"  # type: ignore[index]
    found, _ = real_images()
    assert not any(i.tobytes() in found for i in tiny_run.arrays(run / "distilled.h5")["images"])


def test_out_of_all_classes_together_the_budget_is_kept_and_the_file_says_so(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run = with_networks(finished_run, tmp_path / "run")
    stdout = distilled(
        warm_command, run, "k_center", select__balanced="false", posttrain__labels="[soft]"
    )
    for name in ("select/images.h5", "distilled.h5"):
        assert attribute(run / name, "ipc") is None and attribute(run / name, "budget_n") == 20
    found, labels = real_images()
    images = tiny_run.arrays(run / "distilled.h5")
    rows = [found[image.tobytes()] for image in images["images"]]
    assert len(set(rows)) == 20 and labels[rows].tolist() == images["labels"].tolist()
    assert len(set(np.bincount(images["labels"], minlength=10))) > 1, "classes are unequal"
    assert "# digits: k_center, 20 images of all classes together" in stdout
    assert "budget 20" in warm_command("inspect", run / "distilled.h5", "--verify").stdout


def test_a_choice_that_was_broken_off_goes_on_with_the_classes_that_are_left(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = with_networks(finished_run, tmp_path / "run")
    cfg = load_config("digits", settings("herding")[1::2])
    context = Context(cfg, RunDirectory(run), torch.device("cpu"), ("squeeze", "probe", "select"))
    asked: list[int] = []

    def choose(found: torch.Tensor, count: int) -> torch.Tensor:
        if len(asked) == 4:
            asked.append(-1)
            raise KeyboardInterrupt
        asked.append(len(found))
        return herding(found, count)

    monkeypatch.setattr("scdd.steps.select.herding", choose)
    with pytest.raises(KeyboardInterrupt):
        run_select(context, "select")
    assert len(list((run / "select" / "shards").iterdir())) == 4
    run_select(context, "select")
    assert len(asked) == 4 + 1 + 6
    assert [path.name for path in (run / "select").iterdir()] == ["images.h5"]
    broken = tiny_run.digest(run / "select" / "images.h5")
    shutil.rmtree(run / "select")
    run_select(context, "select")
    assert tiny_run.digest(run / "select" / "images.h5") == broken


def test_what_a_coreset_cannot_be_made_of_is_refused_in_a_sentence(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run = with_networks(finished_run, tmp_path / "run")
    ask = ("distill", "digits", "--out", run)
    small = warm_command(*ask, *settings("herding", ipc=13))
    assert small.returncode == 2
    assert "class '0' has 12 training images, but ipc is 13; lower ipc" in small.stderr

    distilled(warm_command, run, "forgetting", "--until", "squeeze_scorer")
    marker = run / "squeeze_scorer" / "done.json"
    counts = json.loads(marker.read_text())
    del counts["outputs"]["forgetting.safetensors"]
    marker.write_text(json.dumps(counts))
    (run / "squeeze_scorer" / "forgetting.safetensors").unlink()
    without = warm_command(*ask, *settings("forgetting"))
    assert without.returncode == 2 and len(without.stderr.splitlines()) == 1
    assert "forgetting.safetensors: is not there" in without.stderr
    assert "--redo squeeze_scorer" in without.stderr


@pytest.mark.parametrize("method", ["random", "herding", "forgetting", "sre2l"])
def test_an_estimate_shows_the_steps_of_the_method(
    method: str, quiet_environment: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scdd.estimate.PROBE_SECONDS", 1e-3)
    text = estimate(load_config("digits", settings(method)[1::2]), torch.device("cpu"))
    rows = {
        line.split("|")[1].strip(): line.split("|")[2].strip()
        for line in text.splitlines()
        if line.startswith("| ")
    }
    own = {
        "random": {"select": ""},
        "herding": {"select": "120 x resnet8"},
        # Two epochs of 120 images in one view.
        "forgetting": {"select": "", "squeeze_scorer": "240 x resnet8"},
        "sre2l": {"squeeze": "240 x resnet8", "recover": "80 x resnet8"},
    }[method]
    assert {step: rows[step] for step in own} == own
    students = {"random": 2, "sre2l": 6}.get(method, 4)
    assert rows["posttrain"] == f"{students * 2 * 20:.3g} x resnet8"
