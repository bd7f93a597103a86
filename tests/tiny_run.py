"""A run that takes seconds, and how to look at what it made without the suite's own readers."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

STEPS = [
    "squeeze",
    "probe",
    "recover",
    "relabel",
    "recover_real",
    "relabel_real",
    "baseline",
    "posttrain",
    "report",
]
FILES = ("distilled.h5", "real_start.h5", "random_real.h5")

SETTINGS = {
    "dataset.train_per_class": 12,
    "squeeze.arch": "resnet8",
    "squeeze.epochs": 2,
    "squeeze.batch": 16,
    "squeeze.objective.queue": 32,
    "ipc": 2,
    # Two batches, so that there is something between the first shard and the last.
    "recover.batch": 10,
    "recover.iterations": 4,
    "recover_real.batch": 10,
    "recover_real.iterations": 4,
    "relabel.views": 4,
    "relabel.group": 10,
    "posttrain.epochs": 12,
    "posttrain.batch": 10,
}


def overrides(**more: object) -> list[str]:
    """The settings of the tiny run as `key=value`; `a__b=1` stands for `a.b=1`."""
    settings = SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    return [f"{key}={value}" for key, value in settings.items()]


def changes(**more: object) -> list[str]:
    """The same as `--set` arguments."""
    return [word for override in overrides(**more) for word in ("--set", override)]


def arrays(file: Path) -> dict[str, np.ndarray]:
    """Every dataset of an HDF5 file by its path."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(file, "r") as opened:
        opened.visititems(keep)
    return found


def digest(file: Path) -> str:
    """The digest that a distilled file states."""
    with h5py.File(file, "r") as opened:
        stored = opened.attrs["digest"]
    return stored if isinstance(stored, str) else stored.decode()


def assert_same_results(run: Path, other: Path) -> None:
    """Images, views, soft labels and scores of two runs are the same bit for bit."""
    for name in FILES:
        ours, theirs = arrays(run / name), arrays(other / name)
        assert ours.keys() == theirs.keys()
        assert {"images", "labels"} < ours.keys()
        assert any(key.startswith("views/") for key in ours)
        assert any(key.startswith("soft_labels/") for key in ours)
        for key, values in ours.items():
            assert values.dtype == theirs[key].dtype and values.shape == theirs[key].shape
            assert values.tobytes() == theirs[key].tobytes(), f"{name}: {key}"
    assert scores(run) == scores(other)


def scores(run: Path) -> list[dict[str, Any]]:
    """The rows of results.json."""
    return json.loads((run / "results.json").read_text())["rows"]


def assert_done_steps_are_whole(run: Path) -> None:
    """Whatever a done marker names is there, with the content it had."""
    for step in STEPS:
        marker = run / step / "done.json"
        if marker.exists():
            for name, recorded in json.loads(marker.read_text())["outputs"].items():
                content = (run / step / name).read_bytes()
                assert hashlib.sha256(content).hexdigest() == recorded, f"{step}/{name}"


def copy_of(run: Path, target: Path) -> Path:
    """Copy a run directory, files at its top as links again."""
    shutil.copytree(run, target)
    for step in STEPS:
        for made in (target / step).glob("*"):
            shown = target / made.name
            if shown.is_file():
                shown.unlink()
                os.link(made, shown)
    return target


def write_image_folder(
    root: Path,
    classes: tuple[str, ...] = ("ant", "bee", "cow"),
    train: int = 12,
    val: int = 4,
    size: int = 20,
) -> Path:
    """Random PNG images, of another mean colour for each class, as train/ and val/ folders."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
                pixels[:, :, label % 3] += 100
                Image.fromarray(pixels).save(root / split / name / f"{number:03}.png")
    return root
