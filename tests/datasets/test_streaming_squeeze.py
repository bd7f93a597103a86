"""Training on a streamed set: gone on from the middle of an epoch, whoever decodes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.load import load_config
from scdd.config.objectives import MocoV2Config
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.datasets import StreamingSource, load_dataset
from scdd.datasets.sources import Request
from scdd.errors import ConfigError, DataError
from scdd.objectives import Objective
from scdd.pipeline import distill
from scdd.stages.squeeze import squeeze
from tests.conftest import child_environment

SIZE = 8
# 18 images in batches of 4: four steps an epoch, eight in all.
SETTINGS = SqueezeConfig(
    arch="resnet8",
    objective=MocoV2Config(dim=8, queue=16, key_splits=2),
    epochs=2,
    batch=4,
    knn_every=1,
    views=(ViewConfig(count=2, crop_scale=(0.3, 1.0)),),
)


def overrides(root: Path, **more: object) -> list[str]:
    settings: dict[str, object] = {
        "dataset.name": "image_folder",
        "dataset.root": root,
        "dataset.image_size": SIZE,
        "dataset.storage": "streaming",
        "dataset.workers": 0,
        "squeeze.arch": "resnet8",
        "squeeze.epochs": 1,
        "squeeze.batch": 4,
        "squeeze.objective.queue": 16,
        "ipc": 1,
        "relabel.group": 2,
    }
    changed = settings | {name.replace("__", "."): value for name, value in more.items()}
    return [f"{key}={value}" for key, value in changed.items()]


class Mortal(StreamingSource):
    """A source whose reader is killed after some batches, by the signal that nobody can catch."""

    batches = 0

    def crops(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        for number, item in enumerate(super().crops(requests)):
            if number == self.batches:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


def run(
    root: Path,
    workers: int,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    killed_after: int | None = None,
) -> Objective:
    cfg = load_config("digits", overrides(root, dataset__workers=workers)).dataset
    data = load_dataset(cfg)
    if killed_after is not None:
        data.train.__class__ = Mortal
        data.train.batches = killed_after
    device = torch.device("cpu")
    return squeeze(
        SETTINGS, data.train, data.val, SIZE, 0, device, checkpoint, lambda stage, **v: None
    )


KILLED = """
import sys
from pathlib import Path
import torch
from scdd.checkpoint import Checkpoint
from tests.datasets.test_streaming_squeeze import run

torch.set_num_threads(1)
root, workers, file, batches = sys.argv[1:]
run(Path(root), int(workers), Checkpoint(Path(file), 0), int(batches))
"""


def assert_equal(one: Objective, other: Objective) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.fixture
def whole(mixed_folder) -> Objective:
    """What comes out where nothing is interrupted."""
    return run(mixed_folder, workers=0)


def test_the_number_of_workers_changes_no_bit_of_a_training(mixed_folder, whole):
    assert_equal(run(mixed_folder, workers=2), whole)


def test_killed_in_the_middle_of_an_epoch_it_goes_on_bit_for_bit(mixed_folder, whole, tmp_path):
    file = tmp_path / "c.pt"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(mixed_folder), "2", str(file), "6"],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoint = Checkpoint(file, 0)
    state = checkpoint.load()
    assert state is not None and state["step"] == 6
    assert_equal(run(mixed_folder, workers=1, checkpoint=checkpoint), whole)


def test_a_damaged_image_ends_the_training_with_its_sentence(mixed_folder):
    damaged = mixed_folder / "train" / "ant" / "3.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"ant/3\.png: cannot be read as an image"):
        run(mixed_folder, workers=1)


def test_a_run_goes_on_with_other_workers_but_not_with_other_pixels(
    mixed_folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = {"dataset__mean": [0.5, 0.5, 0.5], "dataset__std": [0.2, 0.2, 0.2]}
    out = tmp_path / "run"
    distill(load_config("digits", overrides(mixed_folder, **given)), out, until="squeeze")
    again = load_config("digits", overrides(mixed_folder, dataset__workers=2, **given))
    distill(again, out, until="squeeze")
    assert "squeeze: done before" in capfd.readouterr().out
    resident = overrides(
        mixed_folder, dataset__workers="null", dataset__storage="resident", **given
    )
    with pytest.raises(
        ConfigError, match=r"'squeeze' was made with dataset\.storage = .streaming., now"
    ):
        distill(load_config("digits", resident), out, until="squeeze")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            ["dataset.storage=streaming"],
            "--set dataset.storage=streaming: dataset: storage is streaming, which only an "
            "image_folder can be, and name is digits; set storage=resident",
        ),
        (
            ["dataset.workers=2"],
            "--set dataset.workers=2: dataset: workers is 2, but images are decoded by workers "
            "only while streaming; set storage=streaming, or leave workers out",
        ),
    ],
)
def test_streaming_is_refused_where_there_are_no_files(changes, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config("digits", changes)
    assert str(caught.value) == sentence


def test_workers_are_beside_a_recipe_and_storage_is_part_of_it():
    assert load_config("imagenet_ipc50", ["dataset.workers=3"]).recipe == "paper"
    assert load_config("imagenet_ipc50", ["dataset.storage=resident"]).recipe == "custom"
