"""`scdd import`: pixels, labels, order and soft labels of images that come from elsewhere."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from scdd.config.load import load_config
from tests import tiny_run
from tests.cli.conftest import Run, cells, refused
from tests.conftest import Command, FinishedRun
from tests.exchange.conftest import awkward, pixels_of, write_images

RELABEL = [
    word
    for key, value in load_config("digits", tiny_run.overrides()).relabel.model_dump().items()
    for word in ("--set", f"relabel.{key}={json.dumps(value)}")
]
"""The tiny run's own settings."""


def attributes(file: Path) -> dict:
    """The header of a file, read without the suite's own readers."""
    with h5py.File(file, "r") as opened:
        found = {name: opened.attrs[name] for name in opened.attrs}
    found = {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}
    for name in ("class_names", "mean", "std", "ipc", "budget_n", "config", "teacher"):
        found[name] = json.loads(found[name])
    return found


@pytest.mark.parametrize("ipc", [2, None])
def test_an_export_comes_back_bit_for_bit(ipc: int | None, warm_command: Run, tmp_path: Path):
    awkward(ipc).write(tmp_path / "d.h5")
    assert warm_command("export", "d.h5", "--format", "imagefolder", "--out", "out").returncode == 0
    done = warm_command("import", "out", "--out", "back.h5", "--method", "theirs")
    assert done.returncode == 0, done.stderr
    before, after = (tiny_run.arrays(tmp_path / name) for name in ("d.h5", "back.h5"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert values.dtype == after[name].dtype and values.tobytes() == after[name].tobytes()
    ours, theirs = attributes(tmp_path / "d.h5"), attributes(tmp_path / "back.h5")
    for name in ("class_names", "ipc", "budget_n", "image_size", "target_kind", "kind"):
        assert ours[name] == theirs[name]
    assert (theirs["method"], theirs["recipe"], theirs["dataset"]) == ("theirs", "custom", "out")
    assert str(tmp_path) not in str(theirs)


def test_a_run_exported_and_imported_with_its_teacher_has_the_labels_of_the_run(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    """The same images, teacher, seed and settings, so the same views and logits bit for bit."""
    run = finished_run.path
    for step, name in (("recover", "images.h5"), ("relabel", "distilled.h5")):
        exported = [run / step / name, "--format", "imagefolder", "--out", step]
        assert warm_command("export", *exported).returncode == 0
        teacher = run / "probe" / "teacher.safetensors"
        done = warm_command(
            "import", step, "--out", f"{step}.h5", "--teacher", teacher, *RELABEL, "--device", "cpu"
        )
        assert done.returncode == 0, done.stderr
        ours, theirs = (tiny_run.arrays(f) for f in (run / "distilled.h5", tmp_path / f"{step}.h5"))
        assert ours.keys() == theirs.keys()
        for key, values in ours.items():
            assert values.tobytes() == theirs[key].tobytes(), key
        run_says, file_says = (
            attributes(f) for f in (run / "distilled.h5", tmp_path / f"{step}.h5")
        )
        for key in ("teacher", "mean", "std", "class_names", "ipc"):
            assert run_says[key] == file_says[key]
        assert file_says["config"]["relabel"] == run_says["config"]["relabel"]


def test_a_release_is_labelled_by_the_teacher_of_a_run_evaluated_and_compared(
    warm_command: Run, apps_command: Command, finished_run: FinishedRun, tmp_path: Path
):
    """Numbered folders as other methods name them, other sizes, then every command on the file."""
    write_images(tmp_path / "release", {f"new{label:03}": 2 for label in range(10)}, (24, 24))
    write_images(tmp_path / "real" / "val", {str(label): 3 for label in range(10)}, (16, 16))
    teacher = finished_run.path / "probe" / "teacher.safetensors"
    command = ["import", "release", "--out", "r.h5", "--data", "real", "--teacher", teacher]
    refused(
        warm_command(*command), "images are 24 px", "teacher.safetensors sees 16 px", "--size 16"
    )
    command += ["--size", "16", "--set", "relabel.views=3", "--set", "relabel.mix=mixup"]
    done = warm_command(*command)
    assert done.returncode == 0, done.stderr
    assert "20 of 20 images resized to 16 px" in done.stdout
    assert "r.h5: 20 images of 16 px, 10 classes, 2 per class, 3 views" in done.stdout
    assert attributes(tmp_path / "r.h5")["class_names"] == [str(label) for label in range(10)]
    assert "verified" in warm_command("inspect", "r.h5", "--verify").stdout
    for codec in ("int8", "hard"):
        other = warm_command(*command, "--set", f"relabel.codec={codec}", "--out", f"{codec}.h5")
        assert other.returncode == 0, other.stderr
        assert "verified" in warm_command("inspect", f"{codec}.h5", "--verify").stdout
        views = [tiny_run.arrays(tmp_path / f"{name}.h5")["views/crop"] for name in ("r", codec)]
        assert (views[0] == views[1]).all()
    for labels in ("soft", "hard"):
        scored = warm_command(
            *["evaluate", "r.h5", "--arch", "resnet8", "--data", "real", "--labels", labels],
            *["--set", "epochs=1", "--set", "batch=10"],
        )
        assert 0 <= float(cells(scored)["r.h5"][0]) <= 100
        assert "30 real images" in scored.stdout
    compared = apps_command(
        *["crossarch", "r.h5", "--arch", "resnet8", "--data", "real", "--epochs", "1"],
        *["--set", "batch=10"],
    )
    assert compared.returncode == 0, compared.stderr
    assert "scored on 30 real validation images" in compared.stdout


def test_numbers_order_classes_and_ranks_order_images(warm_command: Run, tmp_path: Path):
    folders = {f"{number:02}": 2 for number in range(12)}
    write_images(tmp_path / "images" / "train", folders)
    names = tuple(f"name {number}" for number in range(12))
    tiny_run.write_image_folder(tmp_path / "real", classes=names, train=2, val=1)
    for data, classes in (([], tuple(folders)), (["--data", "real"], tuple(sorted(names)))):
        done = warm_command("import", "images", "--out", f"{len(data)}.h5", *data)
        assert done.returncode == 0, done.stderr
        stored = tiny_run.arrays(tmp_path / f"{len(data)}.h5")
        about = attributes(tmp_path / f"{len(data)}.h5")
        assert tuple(about["class_names"]) == classes and about["ipc"] == 2
        assert stored["labels"].tolist() == [*range(12)] * 2
        for row, image in enumerate(stored["images"]):
            path = tmp_path / "images" / "train" / f"{row % 12:02}" / f"{row // 12:03}.png"
            assert (image == pixels_of(path)).all()


def test_unequal_classes_have_a_budget_and_mean_and_std_are_those_of_the_images(
    warm_command: Run, tmp_path: Path
):
    write_images(tmp_path / "images", {"cow": 1, "ant": 3})
    done = warm_command("import", "images", "--out", "i.h5")
    assert done.returncode == 0 and "measured on the imported images" in done.stdout
    about, stored = attributes(tmp_path / "i.h5"), tiny_run.arrays(tmp_path / "i.h5")
    assert (about["ipc"], about["budget_n"], about["dataset"]) == (None, 4, "images")
    assert stored["labels"].tolist() == [0, 1, 0, 0]
    pixels = stored["images"].astype(np.float64) / 255
    np.testing.assert_allclose(about["mean"], pixels.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(about["std"], pixels.std((0, 2, 3)), rtol=1e-9)


def test_mean_and_std_are_those_of_the_real_training_images(warm_command: Run, tmp_path: Path):
    real = tiny_run.write_image_folder(tmp_path / "real", size=8)
    write_images(tmp_path / "images", {"0": 1, "1": 1, "2": 1})
    done = warm_command("import", "images", "--out", "i.h5", "--data", "real")
    assert done.returncode == 0 and "measured on 36 of 36 training images" in done.stdout
    pixels = np.stack([pixels_of(path) for path in real.glob("train/*/*.png")]) / 255
    np.testing.assert_allclose(attributes(tmp_path / "i.h5")["mean"], pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(attributes(tmp_path / "i.h5")["std"], pixels.std((0, 2, 3)))


def test_images_are_resized_as_torchvision_does_with_antialiasing(
    warm_command: Run, tmp_path: Path
):
    write_images(tmp_path / "images", {"a": 1}, (40, 40))
    write_images(tmp_path / "images", {"b": 1}, (16, 16))
    refused(warm_command("import", "images", "--out", "i.h5"), "(16x16, 40x40)", "with --size")
    done = warm_command("import", "images", "--out", "i.h5", "--size", "16")
    assert done.returncode == 0 and "1 of 2 images resized to 16 px" in done.stdout
    large, same = tiny_run.arrays(tmp_path / "i.h5")["images"]
    with Image.open(tmp_path / "images" / "a" / "000.png") as image:
        wanted = v2.functional.resize(image, [16, 16], antialias=True)
    assert (large == np.asarray(wanted).transpose(2, 0, 1)).all()
    assert (same == pixels_of(tmp_path / "images" / "b" / "000.png")).all()


def test_a_class_called_train_is_a_class(warm_command: Run, tmp_path: Path):
    write_images(tmp_path / "images", {"train": 1, "ship": 1})
    assert warm_command("import", "images", "--out", "i.h5").returncode == 0
    assert attributes(tmp_path / "i.h5")["class_names"] == ["ship", "train"]


def test_folders_that_cannot_be_used_are_refused_and_nothing_is_written(
    warm_command: Run, tmp_path: Path
):
    write_images(tmp_path / "torn", {"a": 2, "b": 2})
    torn = tmp_path / "torn" / "b" / "001.png"
    torn.write_bytes(torn.read_bytes()[:120])
    write_images(tmp_path / "empty", {"a": 1, "b": 0})
    write_images(tmp_path / "flat", {".": 2})
    write_images(tmp_path / "good", {"a": 1, "b": 1})
    write_images(tmp_path / "real" / "val", {"a": 1, "c": 1})
    (tmp_path / "file.zip").write_bytes(b"PK")
    before = sorted(os.listdir(tmp_path))
    for arguments, *said in [
        (["nowhere"], "nowhere: there is no such folder"),
        (["file.zip"], "file.zip: is a file; unpack it"),
        (["flat"], "flat: holds no class folders"),
        (["empty"], f"{tmp_path / 'empty' / 'b'} holds no image"),
        (["torn"], f"{torn}: cannot be read as an image"),
        (["torn", "--size", "16"], f"{torn}: cannot be read as an image"),
        (["good", "--data", "real"], "good: has class 'b', which real has not", "lacks class 'c'"),
        (["good", "--data", "nowhere"], "nowhere does not exist"),
        (
            ["good", "--set", "relabel.views=3"],
            "relabel.views=3: has an effect only with --teacher",
        ),
    ]:
        refused(warm_command("import", *arguments, "--out", "i.h5"), *said)
    assert sorted({*os.listdir(tmp_path)} - {"stdout.txt", "stderr.txt"}) == before


def test_targets_that_cannot_be_written_are_refused_before_the_work(
    warm_command: Run, tmp_path: Path
):
    write_images(tmp_path / "images", {"a": 1})
    (tmp_path / "mine.h5").write_text("mine")
    for out, said in [
        ("mine.h5", "mine.h5: is there already; choose another --out"),
        ("images", "images: is there already"),
        ("mine.h5/i.h5", "is no folder that can be written; choose another --out"),
    ]:
        refused(warm_command("import", "images", "--out", out), said)
    assert (tmp_path / "mine.h5").read_text() == "mine"


def test_teachers_that_do_not_fit_are_refused(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    probe, squeeze = (finished_run.path / step for step in ("probe", "squeeze"))
    write_images(tmp_path / "images", {str(label): 1 for label in range(10)}, (16, 16))
    write_images(tmp_path / "nine", {str(label): 1 for label in range(9)}, (16, 16))
    write_images(tmp_path / "real" / "val", {f"{label}x": 1 for label in range(10)}, (16, 16))
    content = (probe / "teacher.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(content[:-100])
    teacher = ["--teacher", probe / "teacher.safetensors"]
    for folder, options, *said in [
        ("images", ["--teacher", squeeze / "backbone.safetensors"], "is no teacher; give the"),
        ("images", ["--teacher", "torn.safetensors"], "torn.safetensors: cannot be read"),
        ("images", ["--teacher", "none"], "none: cannot be read"),
        ("nine", teacher, "nine: lacks class '9' of ", "teacher.safetensors (9 classes here, 10"),
        ("images", [*teacher, "--data", "real"], "real: has class '0x', which ", "teacher.safe"),
        ("images", [*teacher, "--size", "32"], "images are 32 px", "give --size 16"),
        ("images", [*teacher, "--set", "relabel.view=3"], "unknown key 'view'", "'views'?"),
        ("images", [*teacher, "--set", "relabel.codec=teacher"], "relabel.codec: is teacher"),
        ("images", [*teacher, "--set", "relabel.codec=topk"], "relabel.top is 10, not in 1 .. 9"),
        ("images", [*teacher, "--set", "ipc=3"], "--set ipc=3: only settings of relabel"),
    ]:
        refused(warm_command("import", folder, "--out", "i.h5", *options), *said)
    assert not (tmp_path / "i.h5").exists()


def test_an_export_that_was_changed_is_refused_by_what_has_changed(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    command = ["export", finished_run.path / "distilled.h5", "--format", "imagefolder", "--out"]
    assert warm_command(*command, "out").returncode == 0
    images = tmp_path / "out" / "train" / "3"
    (images / "00003.png").rename(images / "cat.png")
    refused(warm_command("import", "out", "--out", "i.h5"), "images are not named 0 .. 19")
    (images / "cat.png").unlink()
    said = "classes.json: says 2 images of folder '3', but there are 1; export them again"
    refused(warm_command("import", "out", "--out", "i.h5"), said)
    images.rename(images.with_name("three"))
    refused(warm_command("import", "out", "--out", "i.h5"), "says 2 images of folder '3'")
    shutil.rmtree(images.with_name("three"))
    refused(
        warm_command("import", "out", "--out", "i.h5"), "2 images of folder '3', but there are 0"
    )
    (tmp_path / "out" / "classes.json").unlink()
    assert warm_command("import", "out", "--out", "i.h5").returncode == 0
    assert attributes(tmp_path / "i.h5")["class_names"] == [*"012456789"]
