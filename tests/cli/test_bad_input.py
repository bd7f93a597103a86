"""Settings and images that cannot be used are refused in one sentence, before any work."""

import os
import shutil
from pathlib import Path

from PIL import Image

from tests import tiny_run
from tests.cli.conftest import Run, refused
from tests.conftest import Command


def test_bad_settings_are_one_sentence_of_the_real_command(scdd_command: Command, tmp_path: Path):
    (tmp_path / "broken.yaml").write_text("squeeze:\n  epochs: [3\nipc: 1\n")
    (tmp_path / "unknown.yaml").write_text("recover: {iteration: 3}\n")
    for arguments, said in [
        (["unknown.yaml"], ["unknown.yaml: recover", "unknown key 'iteration'", "'iterations'?"]),
        (["--set", "recover.iterations=many"], ["recover.iterations", "integer", "'many'"]),
        (["broken.yaml"], ["broken.yaml, line 3", "not valid YAML"]),
        (["digit"], ["unknown preset 'digit', did you mean 'digits'?", "presets: "]),
        (["nowhere/x.yaml"], ["nowhere/x.yaml: no such configuration file"]),
        (["--set", "ipc"], ["--set ipc: wants key=value"]),
    ]:
        refused(scdd_command("distill", *arguments), *said)
    assert sorted(os.listdir(tmp_path)) == ["broken.yaml", "unknown.yaml"], "nothing was made"


def test_an_unknown_device_is_refused(scdd_command: Command, tmp_path: Path):
    refused(scdd_command("distill", "--device", "gpu"), "--device gpu", "it has cpu")
    assert os.listdir(tmp_path) == []


def test_what_a_later_step_would_refuse_is_refused_before_any_work(
    warm_command: Run, tmp_path: Path
):
    for changed, *said in [
        ("squeeze.arch=resnet9", "unknown architecture 'resnet9'", "resnet8"),
        ("posttrain.arch=resnet9", "unknown architecture 'resnet9'", "resnet8"),
        ("squeeze.arch=vit_tiny", "squeeze.arch = vit_tiny", "no BatchNorm"),
        ("squeeze.arch=efficientnet_b0", "squeeze.arch = efficientnet_b0", "more than BatchNorm"),
        ("relabel.crop=padded relabel.padding=17", "relabel.padding is 17", "an image of 16 px"),
        ("posttrain.batch=9", "posttrain.batch = 9", "group of 10", "lower relabel.group"),
        ("ipc=13", "class '0' has 12 training images", "lower ipc"),
        (
            "squeeze.batch=130 squeeze.objective.queue=512",
            "squeeze.batch is 130",
            "only 120 images",
        ),
    ]:
        sets = [word for change in changed.split() for word in ("--set", change)]
        outcome = warm_command("distill", *tiny_run.changes(), *sets, "--out", "run")
        refused(outcome, *said)
        assert not (tmp_path / "run" / "squeeze" / "backbone.safetensors").exists()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_steps_that_do_not_exist_are_refused_with_those_that_do(warm_command: Run, tmp_path: Path):
    for option in ("--until", "--redo"):
        refused(
            warm_command("distill", option, "relable", "--out", "run"),
            f"{option} relable: no such step; steps: {', '.join(tiny_run.STEPS)}",
        )
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_missing_or_laid_out_otherwise_is_refused(
    scdd_command: Command, warm_command: Run, tmp_path: Path
):
    refused(scdd_command("distill", "--data", "nowhere"), "nowhere does not exist", "train/<class>")
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "a.png")
    refused(warm_command("distill", "--data", "flat"), "has no train/", "found: a.png", "arrange")
    (tmp_path / "file.zip").write_bytes(b"")
    refused(warm_command("distill", "--data", "file.zip"), "file.zip is a file; unpack it")


def test_images_that_cannot_be_used_are_refused_by_name(warm_command: Run, tmp_path: Path):
    root = tiny_run.write_image_folder(tmp_path / "images")
    arguments = ["distill", "--data", "images", "--out", "run"]

    torn = root / "train" / "bee" / "005.png"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    refused(warm_command(*arguments), str(torn), "cannot be read as an image", "remove the file")
    torn.write_bytes(whole)

    (root / "train" / "dog").mkdir()
    refused(warm_command(*arguments), str(root / "train" / "dog"), "holds no image", "add some or")
    Image.new("RGB", (8, 8)).save(root / "train" / "dog" / "a.png")
    refused(
        warm_command(*arguments),
        "train/ and val/ hold different classes",
        "only in train/: dog",
        "give both the same class folders",
    )


def test_a_folder_with_a_name_that_yaml_would_read_otherwise_is_found(
    warm_command: Run, tmp_path: Path
):
    for name in ("2024", "a: b", "null", 'quo"te #1', "\u00e9\U0001f600"):
        tiny_run.write_image_folder(tmp_path / name)
        few = ["--set", "squeeze.batch=500"]  # refused only after the folder was read
        outcome = warm_command("distill", "--data", name, *few, "--out", "run")
        refused(outcome, "squeeze.batch is 500, but the training set holds only 36 images")
        shutil.rmtree(tmp_path / "run")
