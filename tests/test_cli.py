"""The command as people meet it: help at once, one clear sentence for bad input, exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from scdd.config.dataset import DatasetConfig
from scdd.config.load import load_config, preset_names, presets_dir
from scdd.datasets import load_dataset
from tests import tiny_run
from tests.conftest import Command, FinishedRun, Outcome, child_environment

Run = Callable[..., Outcome]

STOPPED = (
    "stopped: what is finished is kept, and the same command goes on from there (without --redo)"
)


def refused(outcome: Outcome | subprocess.CompletedProcess[str], *said: str) -> str:
    """Check that a command refused its input in one sentence with these words; return it."""
    assert outcome.returncode == 2, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.stderr
    for words in said:
        assert words in lines[0], lines[0]
    return lines[0]


# Help and presets


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["distill", "--help"],
        ["evaluate", "--help"],
        ["stats", "--help"],
        ["presets"],
        ["presets", "digits"],
        ["presets", "digits", "--full"],
        ["checkpoints"],
    ],
    ids=" ".join,
)
def test_help_and_presets_answer_without_torch(arguments: list[str], tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "scdd", *arguments],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, re.MULTILINE)
    assert "scdd.cli" in imported and done.stdout
    heavy = {"torch", "torchvision", "timm", "h5py", "sklearn", "matplotlib", "numpy"}
    assert heavy & set(imported) == set()


def test_the_options_of_the_contract_are_there(scdd_command: Command):
    shown = scdd_command("distill", "--help").stdout
    for option in ("--data", "--out", "--set", "--device", "--until", "--redo", "--dry-run"):
        assert option in shown
    assert "--verify" in scdd_command("inspect", "--help").stdout
    assert "--arch" in scdd_command("evaluate", "--help").stdout


def test_presets_are_listed_shown_and_written_out(warm_command: Run, tmp_path: Path):
    listed = warm_command("presets").stdout.splitlines()
    assert [line.split()[0] for line in listed] == preset_names()
    for name, line in zip(preset_names(), listed, strict=True):
        assert line.endswith(load_config(name).summary)
        shown = warm_command("presets", name).stdout
        assert shown == (presets_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    full = tmp_path / "full.yaml"
    full.write_text(warm_command("presets", "digits", "--full").stdout)
    assert load_config(str(full)) == load_config("digits")
    assert yaml.safe_load(full.read_text())["squeeze"]["knn_k"] == 20, "defaults are filled in"


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "scdd", "presets"],
            env=child_environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1 and done.stderr == b""


# Bad input: settings


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
        ("squeeze.arch=vit_tiny", "squeeze.arch = vit_tiny", "no BatchNorm2d"),
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


# Bad input: images


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


# Bad input: distilled files


def test_files_that_cannot_be_used_are_refused_by_name(
    scdd_command: Command, warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    content = (finished_run.path / "distilled.h5").read_bytes()
    (tmp_path / "torn.h5").write_bytes(content[:-1000])
    refused(scdd_command("inspect", "torn.h5"), "torn.h5", "cut off", "rerun the step")
    refused(warm_command("evaluate", "torn.h5", "--arch", "resnet8"), "torn.h5", "cut off")

    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["images"] = np.zeros((2, 3, 8, 8))
    refused(warm_command("inspect", "foreign.h5"), "foreign.h5", "; ")
    refused(warm_command("evaluate", "foreign.h5", "--arch", "resnet8"), "foreign.h5", "; ")

    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    refused(warm_command("inspect", "image.png"), "image.png", "not an HDF5 file", "distilled.h5")
    refused(warm_command("inspect", "none.h5"), "none.h5: there is no such file; check the path")
    refused(warm_command("inspect", "."), ".: this is not a file; give the path of a distilled.h5")


def test_a_flipped_bit_is_found_by_inspect_verify(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    content = bytearray((finished_run.path / "distilled.h5").read_bytes())
    pixels = tiny_run.arrays(finished_run.path / "distilled.h5")["images"].tobytes()
    place = content.find(pixels[:64])
    assert place > 0
    content[place + 10] ^= 1
    (tmp_path / "flipped.h5").write_bytes(content)
    refused(warm_command("inspect", "flipped.h5", "--verify"), "flipped.h5")


def test_inspect_shows_what_is_in_the_file(warm_command: Run, finished_run: FinishedRun):
    file = finished_run.path / "distilled.h5"
    shown = warm_command("inspect", file, "--verify").stdout
    for words in (
        f"{file} (",
        "method       scdd, recipe custom, seed 0",
        "dataset      digits, 10 classes: 0, 1, 2, 3, 4, 5, ...",
        "images       20 of 16 px, ipc 2, dense",
        "logits on 4 views an image (crop",
        "resnet8, moco_v2, validation top-1 ",
        tiny_run.digest(file),
        "verified",
    ):
        assert words in shown, shown
    assert "none" in warm_command("inspect", finished_run.path / "recover" / "images.h5").stdout


# evaluate


def cells(outcome: Outcome) -> dict[str, list[str]]:
    """Rows of the printed table: first cell to the others."""
    assert outcome.returncode == 0, outcome.stderr
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in rows[2:]}


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


SETTINGS = load_config("digits", tiny_run.overrides()).posttrain.model_dump()


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
        ([run / "recover" / "images.h5", "--arch", "resnet8"], ["no soft labels", "--labels hard"]),
        ([run / "distilled.h5", "--arch", "resnet8", "--data", "none"], ["none does not exist"]),
    ]:
        refused(warm_command("evaluate", *arguments), *said)


# --dry-run


def test_a_dry_run_shows_every_step_and_makes_nothing(warm_command: Run, tmp_path: Path):
    outcome = warm_command("distill", "digits", *tiny_run.changes(), "--dry-run", "--out", "run")
    rows = cells(outcome)
    assert [*rows] == [*tiny_run.STEPS, "all"]
    assert sorted(os.listdir(tmp_path)) == ["stderr.txt", "stdout.txt"]
    assert "120 training images of 16 px, 10 classes, ipc 2" in outcome.stdout
    work = {step: rows[step][0] for step in tiny_run.STEPS}
    # 20 images x 4 iterations; 20 x 4 views; 3 files x 2 kinds of label x 12 epochs x 20 images.
    assert work["recover"] == work["recover_real"] == "80 x resnet8"
    assert work["relabel"] == work["relabel_real"] == work["baseline"] == "80 x resnet8"
    assert work["posttrain"] == "1.44e+03 x resnet8"
    # float16 logits, and the images once.
    assert rows["relabel"][2] == f"{(20 * 4 * 10 * 2 + 20 * 3 * 16 * 16) / 1000:.1f} kB"
    assert "FLOPs" in outcome.stdout and "Memory: " in outcome.stdout


def test_a_dry_run_refuses_what_the_run_would(warm_command: Run):
    for change, said in (
        (["--set", "ipc=1000"], "class '0' has 142 training images, but ipc is 1000"),
        (["--until", "bogus"], "--until bogus: no such step"),
        (["--redo", "nope"], "--redo nope: no such step"),
    ):
        refused(warm_command("distill", "--dry-run", *change), said)


# The terminal


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = line.replace("scdd ", f"{sys.executable} -m scdd ")
    environment = child_environment() | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_nobody_takes_is_no_crash(tmp_path: Path):
    full = shell("scdd presets >/dev/full", tmp_path)
    assert full.returncode == 1 and full.stderr.count("\n") == 1 and "No space" in full.stderr
    assert shell("scdd presets >&-", tmp_path).returncode == 0


def test_a_terminal_that_knows_no_letters_but_ascii_is_no_crash(
    finished_run: FinishedRun, tmp_path: Path
):
    shutil.copy(finished_run.path / "distilled.h5", tmp_path / "gr\u00f6\u00dfe.h5")
    done = shell("scdd inspect *.h5", tmp_path)
    assert done.returncode == 0 and "digits, 10 classes" in done.stdout, done.stderr


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path):
    done = shell("scdd distill --data $'bad\\xff'", tmp_path)
    refused(done, "--data", "not valid UTF-8")


# Signals


def test_interrupted_terminated_and_refused_to_others_the_same_command_finishes(
    scdd_command: Command, tmp_path: Path
):
    out = tmp_path / "run"
    command = ["distill", "digits", "--out", str(out), *tiny_run.changes(squeeze__epochs=30)]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with started(command, out) as process:
            if number is signal.SIGTERM:
                # It holds the directory while it stands still.
                process.send_signal(signal.SIGSTOP)
                refused(
                    scdd_command(*command),
                    f"{out}: process {process.pid} is working in this run directory",
                    "choose another --out",
                )
                process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == code
        assert stderr.split("\n")[-2:] == [STOPPED, ""] and "Traceback" not in stderr
        assert "squeeze: running" in stdout
        assert not (out / "squeeze" / "done.json").exists()
    done = scdd_command(*command, "--until", "probe")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "squeeze" / "done.json").read_text())["outputs"]


def started(arguments: Sequence[str], out: Path) -> subprocess.Popen[str]:
    """Start the command; return once squeeze runs."""
    for marker in out.glob("squeeze/settings.json"):
        marker.unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "scdd", *arguments],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts tests in the background makes its children deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (out / "squeeze" / "settings.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process
