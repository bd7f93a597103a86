"""Several networks label: whose logits are averaged, after which epoch, and what is recorded."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scdd.checkpoint import load_weights
from scdd.config.load import load_config
from scdd.config.run import RunConfig
from scdd.distilled import DistilledFile, render_views
from scdd.distributed import World
from scdd.errors import ConfigError
from scdd.models import create_model
from scdd.pipeline import distill
from scdd.run import RunDirectory
from scdd.steps import Context, run_relabel
from tests import tiny_run
from tests.two_processes import TwoProcesses

CPU = torch.device("cpu")
SUPERVISED = {
    "arch": "resnet8",
    "objective": {"name": "supervised"},
    "views": [{"count": 1}],
    "keep_epochs": [1],
}
MOCO = {"arch": "resnet14", "objective": {"queue": 64}, "keep_epochs": [1]}
EPOCH_1 = "teacher-epoch-0001.safetensors"
NETWORKS = {
    "teacher": ["probe/teacher.safetensors"],
    "labellers": [
        "probe_labellers/resnet8/teacher.safetensors",
        "probe_labellers/resnet14/teacher.safetensors",
    ],
}
NETWORKS["all"] = NETWORKS["teacher"] + NETWORKS["labellers"]


def config(**more: object) -> RunConfig:
    sections = json.dumps([{"epochs": 2, "batch": 32} | one for one in (SUPERVISED, MOCO)])
    base = {"probe__floor": 0, "squeeze__arch": "resnet8x2", "squeeze__epochs": 1}
    return load_config("digits", tiny_run.overrides(**base, squeeze_labellers=sections, **more))


@pytest.fixture(scope="module")
def recovered(quiet_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its teacher, both labellers of two epochs each, and its images."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("labellers") / "run"
    return distill(config(), run, until="recover")


@pytest.fixture
def run(recovered: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(recovered, tmp_path / "run"))


def mean_logits(run: Path, files: list[str], file: DistilledFile, view: int) -> np.ndarray:
    """Of networks in eval mode on the pixels of a view, normalised as the file says."""
    records = file.views
    assert records is not None
    shown = render_views(file.images(), records, view, torch.arange(20)).double()
    header, logits = file.header, []
    for name in files:
        weights, about = load_weights(run / name)
        net = create_model(about["arch"], 10, 16)
        net.load_state_dict(weights)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (header.mean, header.std))
        with torch.no_grad():
            logits.append(net.double().eval()((shown - mean) / std).numpy())
    return np.mean(logits, axis=0)


@pytest.mark.parametrize("teachers", NETWORKS)
def test_labels_are_the_mean_of_the_logits_of_those_who_are_asked(teachers: str, run: Path):
    cfg = config(relabel__teachers=teachers, relabel__teacher_bn="running")
    distill(cfg, run, until="relabel")
    with DistilledFile(run / "distilled.h5") as file:
        for view in (0, 3):
            truth = mean_logits(run, NETWORKS[teachers], file, view)
            np.testing.assert_allclose(file.logits(view).numpy(), truth, rtol=1e-3, atol=1e-3)
        teacher: dict[str, Any] = file.header.teacher or {}
    assert teacher["arch"] == "resnet8x2" and teacher["bn"] == "running"
    digests = [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in NETWORKS[teachers]]
    if teachers == "teacher":
        assert "labellers" not in teacher and [teacher["weights"]] == digests
    else:
        found = teacher["labellers"]
        assert [one["weights"] for one in found] == digests
        assert [one["arch"] for one in found][-2:] == ["resnet8", "resnet14"]
        assert [one["objective"] for one in found][-2:] == ["supervised", "moco_v2"]
        names = {"arch", "stem", "objective", "epoch", "val_top1", "weights"}
        assert all(set(one) == names and one["epoch"] == 2 for one in found[-2:])
    inputs = json.loads((run / "relabel" / "settings.json").read_text())["inputs"]
    assert ("probe_labellers" in inputs) is (teachers != "teacher")


def test_a_labeller_labels_as_it_was_after_the_epoch_that_is_chosen(run: Path):
    chosen = {"relabel__teachers": "labellers", "relabel__epochs": "{resnet14: 1}"}
    cfg = config(**chosen, relabel__teacher_bn="running")
    distill(cfg, run, until="relabel")
    files = [NETWORKS["labellers"][0], f"probe_labellers/resnet14/{EPOCH_1}"]
    with DistilledFile(run / "distilled.h5") as file:
        truth = mean_logits(run, files, file, 1)
        np.testing.assert_allclose(file.logits(1).numpy(), truth, rtol=1e-3, atol=1e-3)
        other = mean_logits(run, NETWORKS["labellers"], file, 1)
        assert np.abs(truth - other).max() > 0.01
        assert [one["epoch"] for one in (file.header.teacher or {})["labellers"]] == [2, 1]


def test_every_kept_epoch_of_a_labeller_has_become_a_classifier(recovered: Path):
    for arch, solver in (("resnet8", "given"), ("resnet14", "lbfgs")):
        weights, about = load_weights(recovered / "probe_labellers" / arch / EPOCH_1)
        name = f"squeeze_labellers/{arch}/backbone-epoch-0001.safetensors"
        backbone, _ = load_weights(recovered / name)
        assert all(torch.equal(weights[key], tensor) for key, tensor in backbone.items())
        assert about["epoch"] == 1 and about["solver"] == solver and about["val_top1"] > 0
        assert about["classes"] == list("0123456789")
    folder = recovered / "probe_labellers" / "resnet8"
    assert sorted(path.name for path in folder.iterdir()) == [EPOCH_1, "teacher.safetensors"]


def test_every_arm_is_labelled_by_the_same_networks(run: Path):
    cfg = config(relabel__teachers="all", recover_real="null")
    distill(cfg, run, until="baseline", redo="relabel")
    for name in ("distilled.h5", "random_real.h5"):
        with DistilledFile(run / name) as file:
            listed = (file.header.teacher or {})["labellers"]
            assert [one["arch"] for one in listed] == ["resnet8x2", "resnet8", "resnet14"]


def test_other_labellers_than_before_are_noticed(run: Path):
    distill(config(relabel__teachers="all"), run, until="relabel")
    with pytest.raises(ConfigError, match=r'relabel\.teachers = "all", now it is "labellers"'):
        distill(config(relabel__teachers="labellers"), run, until="relabel")
    marker = run / "probe_labellers" / "done.json"
    record = json.loads(marker.read_text())
    record["outputs"]["resnet14/teacher.safetensors"] = "0" * 64
    marker.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="step 'relabel' was made from another probe_labellers"):
        distill(config(relabel__teachers="all"), run, until="relabel")


def on_a_rank(run: str, settings: dict[str, object]) -> None:
    """The step, in one of two processes."""
    world = World(torch.distributed.get_rank(), 2)
    run_relabel(Context(config(**settings), RunDirectory(Path(run)), CPU, (), world), "relabel")


@pytest.mark.slow  # Three processes import torch.
@pytest.mark.parametrize("codec", ["full", "teacher"])
def test_two_ranks_make_the_file_that_one_makes(
    codec: str, two_processes: TwoProcesses, run: Path, tmp_path: Path
):
    teachers = "teacher" if codec == "teacher" else "all"
    # Three shards: 100 views of 20 images each, and 30 more.
    settings = {"relabel__views": 230, "relabel__codec": codec, "relabel__teachers": teachers}
    shared = Path(shutil.copytree(run, tmp_path / "shared"))
    distill(config(**settings), run, until="relabel")
    (shared / "relabel").mkdir()
    two_processes(on_a_rank, str(shared), settings)
    ours, theirs = (tiny_run.arrays(one / "relabel" / "distilled.h5") for one in (run, shared))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(values, theirs[name]) for name, values in ours.items())
    assert tiny_run.digest(run / "distilled.h5") == tiny_run.digest(shared / "relabel/distilled.h5")
    beside = {"teacher.safetensors"} if codec == "teacher" else set()
    found = {path.name for path in (shared / "relabel").iterdir()}
    assert found == {"distilled.h5"} | beside
