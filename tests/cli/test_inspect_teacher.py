"""`scdd inspect --teacher`: labels of the file beside those that the weights give now."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scdd.checkpoint import load_weights, save_weights
from scdd.distilled import DistilledFile, Header, make_codec, write_distilled
from tests import tiny_run
from tests.cli.conftest import Run, refused
from tests.conftest import FinishedRun


def rewritten(
    run: Path, target: Path, logits: Tensor | None = None, codec: str = "full", **changed: object
) -> Path:
    """The distilled file of a run with other labels [V, N, C], codec or header."""
    with DistilledFile(run / "distilled.h5") as file:
        header: Header = dataclasses.replace(file.header, **changed)
        images, labels, records = file.images(), file.labels(), file.views
        if logits is None:
            logits = torch.stack([file.logits(view) for view in range(file.num_views)])
    assert records is not None
    made = make_codec(codec, 10, {"top": 3} if codec == "topk" else {}, temperature=20)
    blocks = [(records, made.encode(logits))]
    write_distilled(target, header, images, labels.int(), blocks, len(logits), made)
    return target


def stored(run: Path) -> Tensor:
    with DistilledFile(run / "distilled.h5") as file:
        return torch.stack([file.logits(view) for view in range(file.num_views)])


def reproduced(command: Run, file: Path, *weights: Path) -> tuple[str, float]:
    """What is said, and how far the farthest label is off, in per cent."""
    options = [word for one in weights for word in ("--teacher", str(one))]
    outcome = command("inspect", file, "--verify", *options)
    assert outcome.returncode == 0, outcome.stderr
    (line,) = [line for line in outcome.stdout.splitlines() if "reproduced" in line]
    found = re.search(r"([0-9.]+)% of the logit range", line)
    assert found, line
    return line, float(found[1])


@pytest.mark.parametrize(
    ("codec", "least", "most"), [("full", 0, 0.1), ("int8", 0.01, 0.3), ("int4", 0.3, 3.5)]
)
def test_the_labels_of_a_run_are_those_of_its_teacher(
    codec: str,
    least: float,
    most: float,
    warm_command: Run,
    finished_run: FinishedRun,
    tmp_path: Path,
):
    run = finished_run.path
    file = rewritten(run, tmp_path / "file.h5", codec=codec)
    line, off = reproduced(warm_command, file, run / "probe" / "teacher.safetensors")
    assert "60 labels" in line and least <= off <= most and "allowed" in line  # Three views of 20.


def test_topk_is_held_against_what_it_keeps(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run, weights = finished_run.path, finished_run.path / "probe" / "teacher.safetensors"
    file = rewritten(run, tmp_path / "file.h5", codec="topk")
    assert reproduced(warm_command, file, weights)[1] < 0.1
    logits = stored(run)
    lowest = logits[3, 7].argmin()
    logits[3, 7, lowest] = logits[3, 7].max()  # Now among the three that are kept.
    file = rewritten(run, tmp_path / "wrong.h5", logits, codec="topk")
    outcome = warm_command("inspect", file, "--teacher", str(weights))
    refused(outcome, "the label of image 7 in view 3 is")


def test_a_label_of_another_image_is_found_and_named(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run, weights = finished_run.path, finished_run.path / "probe" / "teacher.safetensors"
    logits = stored(run)
    other = (logits[2] - logits[2, 11]).abs().amax(1).argmax()
    logits[2, 11] = logits[2, other]
    file = rewritten(run, tmp_path / "file.h5", logits)
    assert warm_command("inspect", file, "--verify").returncode == 0  # Whole, and yet wrong.
    said = refused(
        warm_command("inspect", file, "--teacher", str(weights)),
        f"{file}: the label of image 11 in view 2 is ",
        f"% of the logit range off what {weights} says, more than the 1.",
        "download it again",
    )
    assert "sha256" not in said
    logits = stored(run)
    logits[0, 4, 5] += 0.02 * (logits[0].max() - logits[0].min())
    refused(
        warm_command(
            "inspect", rewritten(run, tmp_path / "off.h5", logits), "--teacher", str(weights)
        ),
        "the label of image 4 in view 0 is 2.",
    )


def test_other_weights_are_named_first_and_compared_all_the_same(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run, file = finished_run.path, finished_run.path / "distilled.h5"
    weights, about = load_weights(run / "probe" / "teacher.safetensors")
    save_weights(tmp_path / "same", weights, about | {"note": "renamed"})
    line, off = reproduced(warm_command, file, tmp_path / "same")
    first = f"{tmp_path / 'same'} is not what the file records as its labeller (other sha256); "
    assert first in line and off < 0.1
    weights["fc.weight"] = -weights["fc.weight"]
    save_weights(tmp_path / "other", weights, about)
    outcome = warm_command("inspect", file, "--teacher", str(tmp_path / "other"))
    refused(outcome, f"{file}: {tmp_path / 'other'} is not what the file records", "the label of")


def test_of_several_labellers_each_is_wanted(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run, one = finished_run.path, finished_run.path / "probe" / "teacher.safetensors"
    with DistilledFile(run / "distilled.h5") as file:
        teacher = file.header.teacher
    assert teacher is not None
    listed = {"labellers": [teacher, teacher | {"arch": "resnet14", "epoch": 7}]}
    file = rewritten(run, tmp_path / "file.h5", teacher=teacher | listed)
    line, off = reproduced(warm_command, file, one, one)
    assert off < 0.1 and "labelled the file" not in line
    shown = warm_command("inspect", file).stdout
    assert "labelled by  resnet14, moco_v2, validation top-1" in shown and ", 7 epochs" in shown
    line, _ = reproduced(warm_command, file, one)
    assert "2 networks labelled the file, not 1; " in line


def test_what_cannot_be_compared_is_said(
    warm_command: Run, finished_run: FinishedRun, copied_run: Path, tmp_path: Path
):
    run, weights = finished_run.path, finished_run.path / "probe" / "teacher.safetensors"
    outcome = warm_command("inspect", run / "recover" / "images.h5", "--teacher", str(weights))
    refused(outcome, "images.h5: holds no soft labels; leave --teacher out")
    backbone = run / "squeeze" / "backbone.safetensors"
    outcome = warm_command("inspect", run / "distilled.h5", "--teacher", str(backbone))
    refused(outcome, f"{backbone}: holds no classifier; give the teacher.safetensors")
    tensors, about = load_weights(weights)
    about["classes"] = about["classes"][::-1]
    save_weights(tmp_path / "reversed", tensors, about)
    outcome = warm_command("inspect", run / "distilled.h5", "--teacher", str(tmp_path / "reversed"))
    refused(outcome, "is for 10 classes at 16 px that are not those of the file, 10 at 16 px")

    changes = tiny_run.changes(recover_real="null", relabel__codec="teacher")
    again = ("--until", "relabel", "--redo", "relabel")
    outcome = warm_command("distill", "digits", "--out", str(copied_run), *changes, *again)
    assert outcome.returncode == 0, outcome.stderr
    file = copied_run / "distilled.h5"
    shown = warm_command("inspect", file, "--verify", "--teacher", str(weights)).stdout
    assert "these are the weights that compute the labels" in shown
    assert "codec teacher" in shown and "computed by teacher.safetensors beside the file (" in shown
    outcome = warm_command("inspect", file, "--teacher", str(tmp_path / "reversed"))
    refused(outcome, "its soft labels are computed by weights of sha256")

    moved = file.rename(tmp_path / "moved.h5")
    said = warm_command("inspect", moved, "--verify").stdout
    assert "teacher.safetensors, which computes the labels, does not lie beside" in said
    shutil.copy(weights, tmp_path / "teacher.safetensors")
    said = warm_command("inspect", moved, "--verify").stdout
    assert f"{tmp_path / 'teacher.safetensors'} is what computes the labels" in said
    shutil.copy(tmp_path / "reversed", tmp_path / "teacher.safetensors")
    refused(warm_command("inspect", moved, "--verify"), "computed by weights of sha256")
