"""`scdd inspect`: what it shows of a distilled file, and the files it refuses."""

from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from tests import tiny_run
from tests.cli.conftest import Run, refused
from tests.conftest import Command, FinishedRun


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
