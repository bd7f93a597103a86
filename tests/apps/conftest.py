"""Small distilled files, a folder of real images, and `scdd-apps` run within this process."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.record import record
from benchmarks.tables import TABLES
from scdd.config.relabel import RelabelConfig
from scdd.distilled import Header, make_codec, write_distilled
from scdd.models import create_model
from scdd.stages.relabel import relabel
from tests.conftest import Outcome
from tests.tiny_run import write_image_folder

CLASSES = ("ant", "bee", "cow")
MEAN, STD = (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)

WriteFile = Callable[..., Path]


def write_file(
    path: Path,
    size: int = 8,
    ipc: int = 4,
    views: int = 3,
    group: int | None = None,
    seed: int = 0,
    method: str = "scdd",
    classes: tuple[str, ...] = CLASSES,
    labelled: bool = True,
) -> Path:
    """Write images whose colour tells the class, labelled by an untrained resnet8."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(classes) * ipc) % len(classes)
    images = torch.randint(0, 120, (len(labels), 3, size, size), generator=draw, dtype=torch.uint8)
    images[torch.arange(len(labels)), labels % 3] += 100
    header = Header(
        target_kind="logits" if labelled else "none",
        target_dim=len(classes) if labelled else 0,
        method=method,
        recipe="custom",
        dataset="insects",
        class_names=classes,
        mean=MEAN,
        std=STD,
        image_size=size,
        ipc=ipc,
        seed=seed,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not labelled:
        write_distilled(path, header, images, labels)
        return path
    cfg = RelabelConfig(teacher_bn="batch", group=group) if group else RelabelConfig()
    torch.manual_seed(seed)
    teacher = create_model("resnet8", len(classes), size)
    codec, cpu = make_codec("full", len(classes)), torch.device("cpu")
    blocks = relabel(cfg, [teacher], images, MEAN, STD, seed, range(views), cpu, codec.encode)
    write_distilled(path, header, images, labels, blocks, views, codec)
    return path


@pytest.fixture(scope="session")
def small_file(quiet_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 12 images of 8 px, 3 classes, 3 views; it is not to be changed."""
    return write_file(tmp_path_factory.mktemp("small") / "distilled.h5")


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train/ and val/ of the small file's classes."""
    folder = tmp_path_factory.mktemp("insects")
    write_image_folder(folder, CLASSES)
    return folder


@pytest.fixture
def apps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Return `run(*args)`: the real `main` of scdd-apps in a fresh folder, in this process."""
    from scdd_apps.cli import main

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.setenv(name, {"COLUMNS": "200", "TERM": "dumb"}.get(name, "1"))
    for name in {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"} & set(os.environ):
        monkeypatch.delenv(name)

    def run(*args: str | Path) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["scdd-apps", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


def documented(out: Path) -> str:
    """The table that the documents would show of the results in a folder."""
    result = record(out)
    said = json.dumps(result)
    assert str(out.parent) not in said and result["val_images"] == 12
    return TABLES[result["schema"]](result)
