"""Runs: what is skipped, redone, refused and published; the same seed gives the same content."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scdd
from scdd import pipeline
from scdd.config.load import load_config
from scdd.datasets import load_dataset
from scdd.errors import ConfigError
from scdd.run import RunDirectory
from tests import tiny_run
from tests.conftest import UMASK, FinishedRun, Outcome

Run = Callable[..., Outcome]

PUBLISHED = {
    "probe": ["teacher.safetensors"],
    "relabel": ["distilled.h5"],
    "relabel_real": ["real_start.h5"],
    "baseline": ["random_real.h5"],
    "posttrain": ["results.json"],
    "report": ["report.md", "gallery.png", "recover_losses.png", "recover_real_losses.png"],
}


def distill(run: Path, *more: str, **settings: object) -> list[str]:
    return ["distill", "digits", "--out", str(run), *tiny_run.changes(**settings), *more]


def succeeded(outcome: Outcome) -> str:
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def refused(outcome: Outcome, *said: str) -> None:
    lines = outcome.stderr.splitlines()
    assert outcome.returncode == 2 and len(lines) == 1, outcome.stderr
    for words in ("error: ", *said):
        assert words in lines[0]


def ran(stdout: str) -> list[str]:
    return re.findall(r"^(\w+): running$", stdout, re.MULTILINE)


def skipped(stdout: str) -> list[str]:
    return re.findall(r"^(\w+): done before \(", stdout, re.MULTILINE)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def made_by_steps(run: Path) -> dict[str, int]:
    """Time of the last change of every file that a step made or published."""
    ours = {"config.yaml", "environment.json", "run.lock"}
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for path in run.rglob("*")
        if path.is_file() and path.name not in ours
    }


def test_the_library_offers_the_pipeline_by_the_name_of_the_command():
    assert scdd.distill is pipeline.distill
    with pytest.raises(ConfigError, match=r"^--until nothing: no such step; steps: squeeze, "):
        scdd.distill(load_config("digits"), Path("unused"), until="nothing")


# A finished run


def test_every_step_leaves_what_it_should_and_shows_it_at_the_top(finished_run: FinishedRun):
    run = finished_run.path
    assert ran(finished_run.stdout) == list(tiny_run.STEPS) and finished_run.stderr == ""
    tiny_run.assert_done_steps_are_whole(run)
    for step in tiny_run.STEPS:
        marker = json.loads((run / step / "done.json").read_text())
        assert list(marker["shown"]) == PUBLISHED.get(step, [])
        assert marker["seconds"] >= 0 and marker["peak_bytes"]["host"] > 1e6
        for name in marker["shown"]:
            assert (run / name).samefile(run / step / name)
    tops = {"config.yaml", "environment.json", "metrics.jsonl", "run.lock"}
    shown = {name for names in PUBLISHED.values() for name in names}
    assert set(os.listdir(run)) == {*tops, *shown, *tiny_run.STEPS}
    environment = json.loads((run / "environment.json").read_text())
    assert environment["device"] == "cpu" and "distill digits" in environment["command"]
    assert load_config(str(run / "config.yaml")) == load_config("digits", tiny_run.overrides())


def test_files_and_folders_have_the_permissions_that_the_umask_gives(finished_run: FinishedRun):
    for path in finished_run.path.rglob("*"):
        allowed = (0o777 if path.is_dir() else 0o666) & ~UMASK
        assert path.stat().st_mode & 0o777 == allowed, path


def test_a_finished_run_is_skipped_and_its_table_printed_again(
    warm_command: Run, copied_run: Path, finished_run: FinishedRun
):
    before = made_by_steps(copied_run)
    stdout = succeeded(warm_command(*distill(copied_run)))
    assert skipped(stdout) == list(tiny_run.STEPS) and ran(stdout) == []
    assert made_by_steps(copied_run) == before
    table = finished_run.stdout[finished_run.stdout.index("# digits") :]
    assert stdout.endswith(table.replace(str(finished_run.path), str(copied_run)))


def test_a_run_in_two_parts_and_one_at_once_have_the_same_digests(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run = tmp_path / "run"
    stdout = succeeded(warm_command(*distill(run, "--until", "recover")))
    assert ran(stdout) == ["squeeze", "probe", "recover"] and "# digits" not in stdout
    assert not (run / "relabel").exists() and (run / "teacher.safetensors").exists()
    stdout = succeeded(warm_command(*distill(run)))
    assert skipped(stdout) == ["squeeze", "probe", "recover"]
    assert ran(stdout) == list(tiny_run.STEPS[3:])
    tiny_run.assert_same_results(run, finished_run.path)
    for name in tiny_run.FILES:
        assert tiny_run.digest(run / name) == tiny_run.digest(finished_run.path / name)


def test_another_seed_gives_other_images_and_labels(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    run = tmp_path / "run"
    succeeded(warm_command(*distill(run, "--until", "baseline", seed=1)))
    for name in tiny_run.FILES:
        ours, theirs = (tiny_run.arrays(folder / name) for folder in (run, finished_run.path))
        assert (ours["images"] != theirs["images"]).any()
        assert (ours["labels"] == theirs["labels"]).all()
        assert tiny_run.digest(run / name) != tiny_run.digest(finished_run.path / name)


def test_the_arms_hold_what_the_table_says_of_their_pixels(finished_run: FinishedRun):
    """`random real` is rows of the training images; the other two are not."""
    train = load_dataset(load_config("digits", tiny_run.overrides()).dataset)
    pixels = {image.numpy().tobytes() for image in train.train.read(torch.arange(120))}
    held = {
        name: [image.tobytes() in pixels for image in tiny_run.arrays(path)["images"]]
        for name in tiny_run.FILES
        for path in [finished_run.path / name]
    }
    assert all(held["random_real.h5"])
    assert not any(held["distilled.h5"]) and not any(held["real_start.h5"])
    near, real, far = (
        tiny_run.arrays(finished_run.path / name)["images"].astype(float)
        for name in ("real_start.h5", "random_real.h5", "distilled.h5")
    )
    assert np.abs(near - real).mean() < 0.5 * np.abs(far - real).mean()


# Redo, and settings that changed


def test_redo_moves_a_step_and_what_follows_aside_and_makes_them_again(
    warm_command: Run, copied_run: Path, finished_run: FinishedRun
):
    before = {step: contents(copied_run / step) for step in tiny_run.STEPS}
    stdout = succeeded(
        warm_command(*distill(copied_run, "--redo", "relabel", "--until", "recover"))
    )
    (aside,) = copied_run.glob(".old-*")
    assert f"moved relabel and what follows from it to {aside}" in stdout
    assert sorted(os.listdir(aside)) == sorted(tiny_run.STEPS[3:])
    for step in tiny_run.STEPS[3:]:
        assert contents(aside / step) == before[step], "nothing is lost"
        assert not (copied_run / step).exists()
        assert not any((copied_run / name).exists() for name in PUBLISHED.get(step, []))
    assert (copied_run / "teacher.safetensors").exists()

    stdout = succeeded(warm_command(*distill(copied_run)))
    assert skipped(stdout) == list(tiny_run.STEPS[:3]) and ran(stdout) == list(tiny_run.STEPS[3:])
    tiny_run.assert_same_results(copied_run, finished_run.path)
    for step in tiny_run.STEPS[:3]:
        assert contents(copied_run / step) == before[step]


def test_a_changed_setting_is_refused_with_both_values_until_the_step_is_redone(
    warm_command: Run, copied_run: Path
):
    before = contents(copied_run)
    changed = distill(copied_run, recover__iterations=5)
    refused(
        warm_command(*changed),
        f"{copied_run}: step 'recover' was made with recover.iterations = 4, now it is 5",
        "--redo recover",
        "choose another --out",
    )
    after = contents(copied_run)
    del before["run.lock"], after["run.lock"]  # It holds the number of the last process.
    assert after == before
    succeeded(warm_command(*changed, "--redo", "recover", "--until", "recover"))
    assert "iterations: 5" in (copied_run / "config.yaml").read_text()


def test_a_changed_setting_of_a_step_that_was_killed_half_way_is_refused_too(
    warm_command: Run, copied_run: Path
):
    (copied_run / "posttrain" / "done.json").unlink()
    (copied_run / "report" / "done.json").unlink()
    refused(
        warm_command(*distill(copied_run, posttrain__lr=0.5)),
        "step 'posttrain' was made with posttrain.lr = 0.002, now it is 0.5",
    )


# Files that are gone


@pytest.mark.parametrize("name", ["recover/images.h5", "report/gallery.png"])
def test_a_missing_file_of_a_finished_step_is_named_with_how_to_make_it_again(
    name: str, warm_command: Run, copied_run: Path, finished_run: FinishedRun
):
    (copied_run / name).unlink()
    step = name.split("/")[0]
    refused(
        warm_command(*distill(copied_run)),
        f"{copied_run / name}: is gone, though step '{step}' was finished",
        f"--redo {step}",
    )
    succeeded(warm_command(*distill(copied_run, "--redo", step)))
    tiny_run.assert_same_results(copied_run, finished_run.path)


def test_the_table_is_printed_even_where_the_file_at_the_top_was_taken_away(
    warm_command: Run, copied_run: Path
):
    (copied_run / "report.md").unlink()
    assert "| random real " in succeeded(warm_command(*distill(copied_run)))


# Who may work in a run directory


def test_a_directory_that_another_process_holds_is_refused(warm_command: Run, copied_run: Path):
    before = contents(copied_run)
    with RunDirectory(copied_run).locked():
        refused(
            warm_command(*distill(copied_run)),
            f"process {os.getpid()} is working in this run directory",
            "choose another --out",
        )
    after = contents(copied_run)
    del before["run.lock"], after["run.lock"]
    assert after == before


def test_a_file_in_the_place_of_the_run_directory_is_refused(warm_command: Run, tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    refused(
        warm_command(*distill(tmp_path / "run")),
        f"{tmp_path / 'run'}: cannot be used as a run directory",
        "choose another --out",
    )
    assert (tmp_path / "run").read_text() == "mine"


# Real images: changed, moved, gone


def from_folder(images: Path, run: Path, *more: str) -> list[str]:
    return distill(run, "--data", str(images), *more)


def test_changed_images_are_refused_and_moved_ones_are_not(warm_command: Run, tmp_path: Path):
    images, run = tiny_run.write_image_folder(tmp_path / "images"), tmp_path / "run"
    succeeded(warm_command(*from_folder(images, run, "--until", "probe")))
    image = images / "train" / "bee" / "003.png"
    before = image.stat()

    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    said = ("step 'squeeze' was made from another dataset than is there now", "--redo squeeze")
    refused(warm_command(*from_folder(images, run, "--until", "probe")), *said)

    kept = image.read_bytes()
    Image.new("RGB", (30, 30)).save(image)
    refused(warm_command(*from_folder(images, run, "--until", "probe")), *said)

    image.write_bytes(kept)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    moved = images.rename(tmp_path / "elsewhere")
    stdout = succeeded(warm_command(*from_folder(moved, run, "--until", "recover")))
    assert skipped(stdout) == ["squeeze", "probe"] and ran(stdout) == ["recover"]


def test_from_the_teacher_on_no_real_image_is_read_for_the_distilled_file(
    warm_command: Run, tmp_path: Path
):
    """The images are gone after `probe`, and so is the cache of their pixels."""
    images, run = tiny_run.write_image_folder(tmp_path / "images"), tmp_path / "run"
    env = {"SCDD_CACHE": str(tmp_path / "cache")}

    def go(*more: str) -> Outcome:
        return warm_command(*from_folder(images, run, *more), env=env)

    succeeded(go("--until", "probe"))
    away = images.rename(tmp_path / "away")
    shutil.rmtree(tmp_path / "cache")
    stdout = succeeded(go("--until", "relabel"))
    assert ran(stdout) == ["recover", "relabel"]
    assert stdout.count("the real images are gone, so it was not compared with them") == 2
    without = tiny_run.arrays(run / "distilled.h5")

    refused(go(), f"{images} does not exist", "train/<class>")
    assert not (run / "recover_real").exists()

    away.rename(images)
    stdout = succeeded(go("--until", "baseline"))
    assert skipped(stdout) == ["squeeze", "probe", "recover", "relabel"]

    at_once = tmp_path / "at_once"
    succeeded(warm_command(*from_folder(images, at_once, "--until", "relabel"), env=env))
    with_images = tiny_run.arrays(at_once / "distilled.h5")
    assert without.keys() == with_images.keys()
    assert all((without[key] == with_images[key]).all() for key in without)


def test_the_data_may_be_named_from_any_folder(warm_command: Run, tmp_path: Path):
    tiny_run.write_image_folder(tmp_path / "here" / "images")
    run = tmp_path / "run"
    for folder, name in (("here", "images"), (".", "here/images")):
        outcome = warm_command(
            *from_folder(Path(name), run, "--until", "squeeze"), cwd=tmp_path / folder
        )
        stdout = succeeded(outcome)
    assert skipped(stdout) == ["squeeze"]
    assert str(tmp_path / "here" / "images") in (run / "config.yaml").read_text()
