"""Probe in a run: shards on one rank and on two, kills, the gate, squeeze's own classifier."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scdd.checkpoint import load_weights, save_weights
from scdd.config.load import check
from scdd.errors import UserError
from scdd.models import create_model
from scdd.run import RunDirectory
from scdd.steps import Context, run_probe
from tests import tiny_run
from tests.conftest import Outcome, child_environment
from tests.killed_rank import LAUNCHER

Run = Callable[..., Outcome]


def distill(out: Path, *more: str, **settings: object) -> list[str]:
    settings = {"squeeze__batch": 16, "squeeze__objective__queue": 32} | settings
    return ["distill", "digits", "--out", str(out), *tiny_run.changes(**settings), *more]


def succeeded(outcome: Outcome) -> str:
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def three_views(out: Path) -> list[str]:
    """A probe of three shards: the whole images, and two crops of each."""
    return distill(out, "--until", "probe", probe__crops=2)


def test_killed_in_the_middle_of_the_features_it_makes_none_twice_and_the_same_teacher(
    warm_command: Run, tmp_path: Path
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    succeeded(warm_command(*three_views(whole)))
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("probe", "teacher*"))
    survived: list[str] = []
    made: dict[str, tuple[int, int]] = {}
    while True:
        outcome = warm_command(*three_views(run), root=run, survive=survived)
        if outcome.killed_at is None:
            break
        survived.append(outcome.killed_at)
        shards = sorted((run / "probe").glob("features/*.safetensors"))
        for path in shards:
            file = (path.stat().st_ino, path.stat().st_mtime_ns)
            assert made.setdefault(path.name, file) == file, f"{path.name} was written again"
    assert outcome.returncode == 0, outcome.stderr
    for change in ("os.rename", "os.remove"):
        met = [place.split("/")[-1] for place in survived if place.startswith(f"{change} probe/f")]
        assert len(made) == 3 and made.keys() <= set(met), f"killed before every {change}"
    assert not (run / "probe" / "features").exists()
    teacher, truth = (folder / "teacher.safetensors" for folder in (run, whole))
    assert teacher.read_bytes() == truth.read_bytes()


@pytest.mark.slow  # Three processes import torch.
def test_two_ranks_make_the_teacher_that_one_makes(warm_command: Run, tmp_path: Path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    succeeded(warm_command(*three_views(alone)))
    shutil.copytree(alone, shared, ignore=shutil.ignore_patterns("probe", "teacher*"))
    done = subprocess.run(
        [sys.executable, *LAUNCHER, "-m", "scdd", *three_views(shared)],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "squeeze: done before" in done.stdout
    names = ("teacher.safetensors", "probe/teacher.safetensors")
    for name in names:
        assert (shared / name).read_bytes() == (alone / name).read_bytes()


# The gate


def test_below_the_floor_the_run_stops_at_the_probe_and_says_so_again_at_once(
    warm_command: Run, tmp_path: Path
):
    run = tmp_path / "run"
    teacher, written = run / "probe" / "teacher.safetensors", []
    for _ in range(2):
        outcome = warm_command(*distill(run, probe__floor=99.5))
        _, about = load_weights(teacher)
        assert outcome.returncode == 1 and len(outcome.stderr.splitlines()) == 1
        assert f"{about['val_top1']:.1f} % of the 359 validation images" in outcome.stderr
        assert "less than 99.5 % (probe.floor)" in outcome.stderr
        written.append(teacher.stat().st_mtime_ns)
    assert written[0] == written[1], "it is not fitted again to say so"
    assert not (run / "recover").exists() and not (run / "probe" / "done.json").exists()

    accepted = distill(run, "--until", "probe", probe__floor=0)
    assert warm_command(*accepted).returncode == 2
    assert "at least 0.0 % wanted" in succeeded(warm_command(*accepted, "--redo", "probe"))


def test_classes_in_another_order_in_val_do_not_get_past_the_gate(
    warm_command: Run, tmp_path: Path
):
    images = tiny_run.write_image_folder(tmp_path / "images")
    go = ("--data", str(images), "--until", "probe")
    assert "at least 66.7 % wanted" in succeeded(warm_command(*distill(tmp_path / "right", *go)))

    val = images / "val"
    for old, new in (("ant", "x"), ("bee", "ant"), ("cow", "bee"), ("x", "cow")):
        (val / old).rename(val / new)
    outcome = warm_command(*distill(tmp_path / "wrong", *go))
    assert outcome.returncode == 1
    assert "probe: the teacher classifies 0.0 % of the 12 validation images" in outcome.stderr
    assert "classes in another order in val/ than in train/" in outcome.stderr


# The classifier of squeeze


@pytest.fixture
def given(tmp_path: Path) -> Context:
    """A run of the digits whose squeeze left a backbone and a classifier of ten classes."""
    settings: dict[str, Any] = {
        "dataset": {"train_per_class": 12},
        "squeeze": {"arch": "resnet8", "objective": {"name": "supervised"}, "views": [{}]},
        "probe": {"solver": "given", "floor": 0},
    }
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    context = Context(check(settings, "test"), run, torch.device("cpu"), ())
    torch.manual_seed(0)
    backbone = create_model("resnet8", 0, 16)
    data = context.dataset.train
    names = ("arch", "image_size", "num_classes", "stem")
    about = {name: getattr(backbone, name) for name in names}
    about |= {"objective": "supervised", "epoch": 1, "mean": data.mean, "std": data.std}
    save_weights(run.folder("squeeze") / "backbone.safetensors", backbone.state_dict(), about)
    write_classifier(context, 10, {"classes": data.classes})
    return context


def write_classifier(context: Context, classes: int, about: dict[str, Any]) -> Path:
    draw = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(classes, 64, generator=draw), torch.randn(classes, generator=draw)
    path = context.run.path / "squeeze" / "classifier.safetensors"
    save_weights(path, {"weight": weight, "bias": bias}, about)
    return path


@pytest.mark.parametrize("says_its_classes", [True, False])
def test_a_given_classifier_becomes_the_head_bit_for_bit(says_its_classes: bool, given: Context):
    path = given.run.path / "squeeze" / "classifier.safetensors"
    if not says_its_classes:
        path = write_classifier(given, 10, {})
    assert run_probe(given, "probe") == ("teacher.safetensors",)
    teacher, about = load_weights(given.run.path / "probe" / "teacher.safetensors")
    head, _ = load_weights(path)
    backbone, _ = load_weights(path.with_name("backbone.safetensors"))
    assert teacher.keys() == backbone.keys() | {"fc.weight", "fc.bias"}
    for name, tensor in {**backbone, **{f"fc.{key}": value for key, value in head.items()}}.items():
        assert torch.equal(teacher[name], tensor), name
    assert about["solver"] == "given" and about["num_classes"] == 10 and "l2" not in about


def test_a_given_classifier_that_does_not_fit_is_refused_with_a_sentence(given: Context):
    path = given.run.path / "squeeze" / "classifier.safetensors"

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            run_probe(given, "probe")
        return str(caught.value)

    end = "set probe.solver to lbfgs or sgd"
    write_classifier(given, 7, {})
    assert refusal() == f"{path}: tells 7 classes apart, but dataset has 10; {end}"
    write_classifier(given, 10, {"classes": ["0", "1", "3", "2", *"456789"]})
    assert refusal() == f"{path}: knows class '3' where dataset has '2'; {end}"
    save_weights(path, {"weight": torch.zeros(10, 64)}, {})
    assert refusal() == f"{path}: holds no 'bias' of a linear layer; {end}"
    os.remove(path)
    assert refusal() == f"{path}: is not there, as squeeze has brought no classifier; {end}"
