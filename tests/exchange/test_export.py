"""`scdd export`: what other libraries read of it; a folder is there whole or not at all."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from scdd.exchange.parquet import all_different, write_parquet
from tests.cli.conftest import Run, refused
from tests.conftest import ROOT, Command, FinishedRun, child_environment
from tests.distilled.conftest import make_content
from tests.exchange.conftest import AWKWARD, awkward, pixels_of


@pytest.mark.parametrize("ipc", [2, None])
def test_torchvision_reads_the_very_pixels_and_classes_json_says_which_they_are(
    ipc: int | None, warm_command: Run, tmp_path: Path
):
    content = awkward(ipc)
    content.write(tmp_path / "d.h5")
    done = warm_command("export", "d.h5", "--format", "imagefolder", "--out", "new/out")
    assert done.returncode == 0, done.stderr
    assert "choose a licence" in done.stdout
    assert sorted(os.listdir(tmp_path / "new")) == ["out"], "the temporary folder is gone"
    out = tmp_path / "new" / "out"
    assert sorted(os.listdir(out)) == ["README.md", "classes.json", "train"]
    folders = json.loads((out / "classes.json").read_text())["folders"]
    read = ImageFolder(out / "train")
    assert len(read) == len(content.images)
    for path, number in read.samples:
        row, about = int(Path(path).stem), folders[read.classes[number]]
        assert about["label"] == content.labels[row]
        assert about["name"] == (AWKWARD[about["label"]] if about["label"] >= 0 else None)
        assert (pixels_of(Path(path)) == content.images[row].numpy()).all()
    for about in folders.values():
        assert about["images"] == (content.labels == about["label"]).sum()


@pytest.mark.parametrize("ipc", [2, None])
def test_parquet_holds_images_labels_and_what_hugging_face_datasets_wants_to_know(
    ipc: int | None, warm_command: Run, tmp_path: Path
):
    content = awkward(ipc)
    content.write(tmp_path / "d.h5")
    done = warm_command("export", "d.h5", "--format", "parquet", "--out", "out", "--with-file")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert (out / "distilled.h5").read_bytes() == (tmp_path / "d.h5").read_bytes()
    table = pq.read_table(out / "data" / "train.parquet")
    assert str(table.schema.field("image").type) == "struct<bytes: binary, path: string>"
    assert str(table.schema.field("label").type) == "int64"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"names": list(AWKWARD), "_type": "ClassLabel"},
    }
    assert table["label"].to_pylist() == content.labels.tolist()
    for row, image in enumerate(table["image"].to_pylist()):
        assert image["path"] == f"{row:05}.png"
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            assert opened.format == "PNG"
            assert (np.asarray(opened).transpose(2, 0, 1) == content.images[row].numpy()).all()


def test_row_groups_are_written_before_the_next_images_are_drawn(tmp_path: Path):
    path, sizes = tmp_path / "x.parquet", []

    def images():
        for number in range(7):
            sizes.append(path.stat().st_size)
            yield f"{number}.png", os.urandom(100_000)

    write_parquet(path, images(), [0] * 7, ["a"], rows=3)
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    written = [size // 100_000 for size in sizes]
    assert written == [0, 0, 0, 3, 3, 3, 6]


def test_a_class_name_that_occurs_twice_is_numbered():
    assert all_different(["a", "a", "b", "a (2)", "a"]) == ["a", "a (3)", "b", "a (2)", "a (4)"]


@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_a_kill_leaves_no_folder_and_the_same_command_makes_it(
    form: str, warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    command = ["export", finished_run.path / "distilled.h5", "--format", form, "--out", "out"]
    killed = warm_command(*command, root=tmp_path)
    assert killed.returncode == -signal.SIGKILL and killed.killed_at == "os.rename out"
    assert not (tmp_path / "out").exists()
    assert warm_command(*command).returncode == 0
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize(
    ("form", "limit"),
    [
        ("imagefolder", 100),
        ("parquet", 20_000),
        pytest.param("imagefolder", 20_000, marks=pytest.mark.slow),
        pytest.param("parquet", 100, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_no_folder(form: str, limit: int, tmp_path: Path):
    """The larger limit stops the copy of the file, after all images."""
    make_content(None, classes=50, ipc=2).write(tmp_path / "d.h5")
    code = (
        "import resource, sys; from scdd.cli import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); main()"
    )
    command = ["export", "d.h5", "--format", form, "--out", "out", "--with-file"]
    assert (tmp_path / "d.h5").stat().st_size > 20_000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1 and f"{tmp_path / 'out'}: no space left" in done.stderr
    assert os.listdir(tmp_path) == ["d.h5"]


def test_what_is_there_stays_as_it_is(warm_command: Run, finished_run: FinishedRun, tmp_path: Path):
    command = ["export", finished_run.path / "distilled.h5", "--format", "imagefolder", "--out"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        refused(warm_command(*command, name), f"{name}: is there already; choose another --out")
    refused(warm_command(*command, "file/out"), "file/out: cannot be made (Not a directory)")
    if Path("/proc/self").exists():  # Not even root can write there.
        refused(warm_command(*command, "/proc/out"), "/proc/out: cannot be made")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert warm_command(*command, ".", cwd=tmp_path / "empty").returncode == 0
    assert (tmp_path / "empty" / "README.md").is_file()


def test_files_and_formats_that_cannot_be_exported_are_refused(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    file = finished_run.path / "distilled.h5"
    shutil.copy(file, tmp_path / "torn.h5")
    os.truncate(tmp_path / "torn.h5", 5000)
    for arguments, *said in [
        (["none.h5", "--format", "parquet"], "none.h5: there is no such file; check the path"),
        (["torn.h5", "--format", "parquet"], "torn.h5", "cut off"),
        ([file, "--format", "zip"], "--format zip: choose imagefolder or parquet"),
    ]:
        refused(warm_command("export", *arguments, "--out", "out"), *said)
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_the_extra_is_named(
    scdd_command: Command, finished_run: FinishedRun, tmp_path: Path
):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['pyarrow'] = None\n"
    )
    done = scdd_command(
        *["export", finished_run.path / "distilled.h5", "--format", "parquet", "--out", "out"],
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path / "without"), str(ROOT)])},
    )
    refused(done, "--format parquet: pyarrow is not installed; pip install 'scdd[export]'")
    assert not (tmp_path / "out").exists()
