"""From the step relabel to a student's batch: the label is the teacher's answer to those pixels."""

import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scdd
from scdd.checkpoint import load_weights, save_weights
from scdd.config.load import load_config
from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset, DistilledFile
from scdd.errors import FormatError
from scdd.models import create_model
from scdd.run import RunDirectory
from scdd.stages.posttrain import open_for_training
from scdd.steps import Context, run_relabel
from tests import tiny_run
from tests.conftest import FinishedRun

CPU = torch.device("cpu")
GROUP = 5  # Of 20 images.
STEPS = {"int8": 255, "int4": 15}


@pytest.fixture
def recovered(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A run that has its teacher and its images."""
    for step in ("probe", "recover"):
        shutil.copytree(finished_run.path / step, tmp_path / "run" / step)
    return tmp_path / "run"


def relabelled(run: Path, **settings: object) -> Path:
    """The distilled file that the step makes."""
    changed = {f"relabel__{name}": value for name, value in settings.items()}
    cfg = load_config("digits", tiny_run.overrides(**changed))
    names = run_relabel(Context(cfg, RunDirectory(run), CPU, ("relabel",)), "relabel")
    assert names[0] == "distilled.h5"
    assert {path.name for path in (run / "relabel").iterdir()} == set(names)
    return run / "relabel" / "distilled.h5"


def answers(weights: Path, pixels: Tensor, grouped: bool) -> Tensor:
    """Of the network in a file, in train mode where the pixels are a group."""
    tensors, about = load_weights(weights)
    net = create_model(about["arch"], 10, about["image_size"])
    net.load_state_dict(tensors)
    with torch.no_grad():
        return net.train(grouped)(pixels)


def assert_stored(codec: str, served: Tensor, truth: Tensor) -> None:
    """Equal but for what the codec says it loses; TOP of ten classes are told apart by topk."""
    extent = truth.amax(1, keepdim=True) - truth.amin(1, keepdim=True)
    rounding = 2**-10 * truth.abs().amax()
    if codec == "teacher":
        torch.testing.assert_close(served, truth, rtol=1e-5, atol=1e-5)
    elif codec in STEPS:
        bound = extent / (2 * STEPS[codec]) * 1.02 + rounding
        assert ((served - truth).abs() <= bound).all()
    elif codec == "full":
        assert ((served - truth).abs() <= rounding).all()
    else:
        values, order = truth.topk(3, dim=1)
        assert ((served.gather(1, order) - values).abs() <= rounding).all()
        rest = served.scatter(1, order, torch.inf).sort(dim=1).values[:, :7]
        assert (rest.amax(1) == rest.amin(1)).all() and (rest.amax(1) <= served.amax(1)).all()


@pytest.mark.parametrize("codec", ["full", "int8", "int4", "topk", "teacher"])
@pytest.mark.parametrize("grouped", [False, True], ids=["running", "grouped"])
@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_every_label_is_what_the_teacher_says_to_the_pixels_beside_it(
    mix: str, grouped: bool, codec: str, recovered: Path
):
    settings: dict[str, Any] = {"mix": mix, "codec": codec, "top": 3, "views": 3, "group": GROUP}
    file = relabelled(recovered, teacher_bn="batch" if grouped else "running", **settings)
    data = DistilledDataset.open(file)
    for epoch in range(3):
        shown = 0
        # Batches of one group each, so that the student's batch is what the teacher saw.
        for batch in data.epoch(epoch, GROUP, torch.Generator().manual_seed(epoch)):
            assert batch.logits is not None and len(batch.images) == GROUP
            truth = answers(recovered / "probe" / "teacher.safetensors", batch.images, grouped)
            assert_stored(codec, batch.logits, truth)
            shown += len(batch.images)
        assert shown == len(data) == 20


def test_the_teacher_lies_beside_a_file_without_labels_and_its_bytes_count(recovered: Path):
    file = relabelled(recovered, codec="teacher")
    weights = file.with_name("teacher.safetensors")
    assert weights.samefile(recovered / "probe" / "teacher.safetensors")
    assert not [name for name in tiny_run.arrays(file) if name.startswith("soft_labels")]
    with DistilledFile(file) as opened:
        records = opened.label_bytes
    size = weights.stat().st_size
    assert DistilledDataset.open(file).label_bytes == records + size
    shutil.rmtree(recovered / "relabel")
    data = DistilledDataset.open(
        relabelled(recovered, codec="teacher", mix="none", teacher_bn="running")
    )
    half = data.subset(1)
    assert data.label_bytes == 4 * 20 * 8 + size and half.label_bytes == 4 * 10 * 8 + size  # Crops.
    torch.testing.assert_close(half.soft_labels(2), data.soft_labels(2)[:10])


def test_the_weights_may_lie_elsewhere_and_a_copy_of_the_dataset_loads_them_anew(
    recovered: Path, tmp_path: Path
):
    file = relabelled(recovered, codec="teacher")
    wanted = DistilledDataset.open(file).soft_labels(1)
    elsewhere = file.with_name("teacher.safetensors").rename(tmp_path / "weights")
    data = DistilledDataset.open(file, teacher=elsewhere)
    assert torch.equal(data.soft_labels(1), wanted)
    sent = pickle.dumps(data)
    assert len(sent) < elsewhere.stat().st_size  # Neither weights nor labels are sent along.
    assert torch.equal(pickle.loads(sent).soft_labels(1), wanted)
    assert torch.equal(scdd.load(str(file), teacher=str(elsewhere)).soft_labels(1), wanted)


def test_without_its_teacher_a_file_serves_class_labels_and_says_what_is_missing(recovered: Path):
    file = relabelled(recovered, codec="teacher")
    weights = file.with_name("teacher.safetensors")
    weights.unlink()
    data = DistilledDataset.open(file)
    assert not data.has_soft_labels and data.label_bytes == 0
    batch = next(data.epoch(0, 10, torch.Generator()))
    assert batch.logits is None and batch.labels.min() >= 0
    sentence = (
        f"{file}: its soft labels are computed by the teacher, but there is no {weights}; put the "
        "run's teacher.safetensors beside the file, or train on class labels"
    )
    training = PosttrainConfig(batch=10)
    for ask in (
        lambda: data.soft_labels(0),
        lambda: open_for_training(file, ["soft"], training, CPU),
    ):
        with pytest.raises(FormatError) as caught:
            ask()
        assert str(caught.value) == sentence
    assert len(open_for_training(file, ["hard"], training, CPU)) == 20


def test_another_teacher_than_the_recorded_one_is_not_believed(recovered: Path):
    file = relabelled(recovered, codec="teacher")
    weights = file.with_name("teacher.safetensors")
    recorded = hashlib.sha256(weights.read_bytes()).hexdigest()
    tensors, about = load_weights(weights)
    tensors["fc.bias"] += 1e-3
    weights.unlink()  # Else the one of probe would change with it.
    save_weights(weights, tensors, about)
    with pytest.raises(FormatError) as caught:
        DistilledDataset.open(file).soft_labels(0)
    assert str(caught.value) == (
        f"{file}: its soft labels are computed by weights of sha256 {recorded[:12]}..., which "
        f"{weights} is not; put the run's teacher.safetensors beside the file"
    )
