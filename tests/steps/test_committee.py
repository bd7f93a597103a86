"""Several teachers in a run: labellers become classifiers, and recovery takes turns with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import torchvision
from torch import Tensor, nn

from scdd.augment import normalise
from scdd.checkpoint import load_weights
from scdd.config.load import load_config
from scdd.config.run import RunConfig
from scdd.datasets import load_dataset
from scdd.distributed import World
from scdd.errors import ConfigError, RunError
from scdd.models import create_model
from scdd.pipeline import distill, plan
from scdd.recovery import RecoveryLoss
from scdd.run import RunDirectory
from scdd.stages.recover import batches_of, recover
from scdd.steps import Context, run_probe_labellers, run_recover
from tests import tiny_run
from tests.conftest import Outcome
from tests.two_processes import TwoProcesses

Run = Callable[..., Outcome]
CPU = torch.device("cpu")
SIZE = 16  # of the digits
SUPERVISED = {"arch": "resnet8", "objective": {"name": "supervised"}, "views": [{"count": 1}]}
MOCO = {"arch": "resnet14", "objective": {"queue": 64}}
TWO = (SUPERVISED, MOCO)
LABELLERS = ("resnet8", "resnet14")


def overrides(*labellers: dict[str, Any], **more: object) -> dict[str, object]:
    sections = [{"epochs": 2, "batch": 32} | section for section in labellers or TWO]
    # Networks of two epochs; another backbone, to be told from the labellers.
    base = {"probe__floor": 0, "squeeze__arch": "resnet8x2", "squeeze__epochs": 1}
    return {**base, "squeeze_labellers": json.dumps(sections), **more}


def config(*labellers: dict[str, Any], **more: object) -> RunConfig:
    return load_config("digits", tiny_run.overrides(**overrides(*labellers, **more)))


@pytest.fixture(scope="module")
def probed(quiet_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its teacher and both labellers, and nothing after them."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("committee") / "run"
    return distill(config(), run, until="probe_labellers")


def copied(run: Path, target: Path, *without: str) -> Path:
    return Path(shutil.copytree(run, target, ignore=shutil.ignore_patterns(*without)))


def classifier(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    weights, about = load_weights(path)
    net = create_model(about["arch"], 10, SIZE)
    net.load_state_dict(weights)
    return net.eval(), about


def images(run: Path, step: str = "recover") -> bytes:
    return tiny_run.arrays(run / step / "images.h5")["images"].tobytes()


# The labellers


def test_a_labeller_keeps_the_classifier_that_labels_have_taught_and_others_are_probed(
    probed: Path,
):
    data, solvers = load_dataset(config().dataset), {}
    folder = probed / "probe_labellers"
    outputs = json.loads((folder / "done.json").read_text())["outputs"]
    assert set(outputs) == {f"{arch}/teacher.safetensors" for arch in LABELLERS}
    for arch in LABELLERS:
        net, about = classifier(folder / arch / "teacher.safetensors")
        backbone, _ = load_weights(probed / "squeeze_labellers" / arch / "backbone.safetensors")
        for name, tensor in backbone.items():
            assert torch.equal(net.state_dict()[name], tensor), name
        shown = normalise(data.val.read(torch.arange(len(data.val))).float() / 255, *statistics())
        with torch.no_grad():
            right = (net(shown).argmax(dim=1) == data.val.labels).double().mean()
        assert about["val_top1"] == pytest.approx(100 * right.item(), abs=1e-3)
        assert about["classes"] == list("0123456789")
        solvers[arch] = about["solver"]
    assert solvers == {"resnet8": "given", "resnet14": "lbfgs"}
    taught, _ = load_weights(probed / "squeeze_labellers" / "resnet8" / "classifier.safetensors")
    net, _ = classifier(folder / "resnet8" / "teacher.safetensors")
    assert torch.equal(net.get_parameter("fc.weight"), taught["weight"])
    assert torch.equal(net.get_parameter("fc.bias"), taught["bias"])


def statistics() -> tuple[Any, Any]:
    data = load_dataset(config().dataset)
    return data.mean, data.std


def test_a_labeller_below_the_floor_is_named_with_what_to_do(tmp_path: Path):
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    weights = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save(weights, tmp_path / "dead.pth")
    dead = {"arch": "resnet18", "checkpoint": {"path": str(tmp_path / "dead.pth")}}
    cfg = config(
        MOCO,
        dead,
        dataset__mean="[0.3, 0.3, 0.3]",
        dataset__std="[0.4, 0.4, 0.4]",
        # The backbone and the first labeller pass; the second one guesses.
        probe__floor=12,
    )
    with pytest.raises(RunError) as caught:
        distill(cfg, tmp_path / "run")
    sentence = str(caught.value)
    assert sentence.startswith("probe_labellers: the labeller resnet18 classifies ")
    assert "of the 359 validation images right, less than 12.0 % (probe.floor)" in sentence
    assert sentence.endswith(
        "run again with --redo squeeze_labellers, or go on with it by --set probe.floor=0 --redo "
        "probe"
    )
    assert not (tmp_path / "run" / "recover").exists()


# Turns


@pytest.mark.parametrize(
    ("teachers", "files"),
    [
        ("teacher", ["probe"]),
        ("labellers", ["probe_labellers/resnet8", "probe_labellers/resnet14"]),
        ("all", ["probe", "probe_labellers/resnet8", "probe_labellers/resnet14"]),
    ],
)
def test_the_images_are_those_of_the_stage_with_the_teachers_in_their_order(
    teachers: str, files: list[str], probed: Path, tmp_path: Path
):
    run, more = copied(probed, tmp_path / "run"), {"recover__teachers": teachers}
    distill(config(**more), run, until="recover")
    section = config(**more).recover
    nets = [classifier(probed / name / "teacher.safetensors")[0] for name in files]
    losses = [RecoveryLoss(net, section, 1, False) for net in nets]
    parts: list[Tensor] = [
        recover(section, losses, [batch], SIZE, *statistics(), 0, CPU)
        for batch in batches_of(section, 2, 10, 0)
    ]
    assert images(run) == torch.cat(parts).numpy().tobytes()

    inputs = json.loads((run / "recover" / "settings.json").read_text())["inputs"]
    used = set() if teachers == "teacher" else {"probe_labellers"}
    assert inputs.keys() == {"probe"} | used
    with h5py.File(run / "recover" / "images.h5") as file:
        assert json.loads(file.attrs["teacher"])["arch"] == "resnet8x2"
        assert json.loads(file.attrs["config"])["recover"]["teachers"] == teachers


@pytest.mark.slow
def test_killed_before_every_change_it_ends_with_the_same_labellers_and_images(
    warm_command: Run, probed: Path, tmp_path: Path
):
    settings = overrides(
        recover__teachers="labellers", recover__learn_weights="true", checkpoint_minutes=0
    )

    def command(run: Path) -> list[str]:
        until = ("--until", "recover")
        return ["distill", "digits", "--out", str(run), *until, *tiny_run.changes(**settings)]

    whole, run = tmp_path / "whole", copied(probed, tmp_path / "run", "probe_labellers")
    copied(run, whole)
    assert warm_command(*command(whole)).returncode == 0
    survived: list[str] = []
    read: set[str] = set()
    while True:
        outcome = warm_command(*command(run), root=run, survive=survived)
        read |= set(outcome.checkpoints_read)
        if outcome.killed_at is None:
            break
        survived.append(outcome.killed_at)
    assert outcome.returncode == 0, outcome.stderr
    places = {place.split()[1] for place in survived}
    assert places >= {f"probe_labellers/{arch}/teacher.safetensors" for arch in LABELLERS}
    assert read == {"batch-00000.checkpoint", "batch-00001.checkpoint"}
    for arch in LABELLERS:
        name = f"probe_labellers/{arch}/teacher.safetensors"
        assert (run / name).read_bytes() == (whole / name).read_bytes()
        assert (run / name).read_bytes() == (probed / name).read_bytes()
        assert [path.name for path in (run / name).parent.iterdir()] == ["teacher.safetensors"]
    assert images(run) == images(whole)


def on_a_rank(run: str, settings: dict[str, object]) -> None:
    """Both steps, in one of two processes."""
    world = World(torch.distributed.get_rank(), 2)
    context = Context(config(**settings), RunDirectory(Path(run)), CPU, (), world)
    run_probe_labellers(context, "probe_labellers")
    world.barrier()
    run_recover(context, "recover")


@pytest.mark.slow  # Three processes import torch.
def test_two_ranks_make_the_labellers_and_the_images_that_one_makes(
    two_processes: TwoProcesses, probed: Path, tmp_path: Path
):
    settings = {"recover__teachers": "all"}
    alone, shared = copied(probed, tmp_path / "alone"), tmp_path / "shared"
    distill(config(**settings), alone, until="recover")
    copied(probed, shared, "probe_labellers")
    for step in ("probe_labellers", "recover"):
        (shared / step).mkdir()
    two_processes(on_a_rank, str(shared), settings)
    for arch in LABELLERS:
        name = f"probe_labellers/{arch}/teacher.safetensors"
        assert (shared / name).read_bytes() == (alone / name).read_bytes()
    assert images(shared) == images(alone)


# What has changed, and what cannot be


def test_a_changed_labeller_is_noticed_by_the_steps_that_recover_from_it(
    probed: Path, tmp_path: Path
):
    for step, other in (("recover", "recover_real"), ("recover_real", "recover")):
        run = copied(probed, tmp_path / step)
        cfg = config(**{f"{step}__teachers": "all"})
        distill(cfg, run, until="recover_real")
        marker = run / "probe_labellers" / "done.json"
        record = json.loads(marker.read_text())
        record["outputs"]["resnet14/teacher.safetensors"] = "0" * 64
        marker.write_text(json.dumps(record))
        with pytest.raises(ConfigError) as caught:
            distill(cfg, run, until="recover_real")
        assert str(caught.value) == (
            f"{run}: step '{step}' was made from another probe_labellers than is there now; redo "
            f"it with --redo {step}, or choose another --out"
        )
        inputs = json.loads((run / other / "settings.json").read_text())["inputs"]
        assert "probe_labellers" not in inputs


def test_a_network_that_cannot_take_its_turn_is_refused_before_anything_is_run(tmp_path: Path):
    vit = MOCO | {"arch": "vit_tiny"}
    end = "whose statistics recover matches; choose a network that has, such as resnet8"
    for teachers in ("labellers", "all"):
        with pytest.raises(ConfigError) as caught:
            distill(config(MOCO, vit, recover__teachers=teachers), tmp_path / "run")
        assert str(caught.value) == (
            f"squeeze_labellers.1.arch = vit_tiny has no BatchNorm layer, {end}"
        )
    real = {"recover_real__teachers": "labellers"}
    with pytest.raises(ConfigError, match="layer, whose statistics recover_real matches"):
        distill(config(MOCO, vit, **real), tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        numbers = {"recover__layer_weights": "{3: [1, 2], 12: [0, 0]}"}
        distill(config(recover__teachers="all", **numbers), tmp_path / "run")
    assert str(caught.value) == (
        "recover.layer_weights: there is no layer 12; squeeze.arch = resnet8x2 has 10 BatchNorm "
        "layers, counted from 0"
    )
    assert not (tmp_path / "run").exists()

    plan(config(MOCO, vit))  # It takes no turn.
    without = {"squeeze__arch": "vit_tiny", "recover_real": "null"}
    plan(config(recover__teachers="labellers", **without))
    with pytest.raises(ConfigError, match=r"squeeze\.arch = vit_tiny has no BatchNorm layer"):
        plan(config(recover__teachers="all", **without))
