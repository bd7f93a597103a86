"""The squeeze steps of a run: several networks, and weights that come from a file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from scdd.checkpoint import load_weights, save_weights
from scdd.config.load import load_config
from scdd.config.run import RunConfig
from scdd.errors import CheckpointError, ConfigError, RunError
from scdd.pipeline import distill
from tests import tiny_run

SIZE = 16  # of the digits
STATISTICS = {"dataset__mean": "[0.3, 0.3, 0.3]", "dataset__std": "[0.4, 0.4, 0.4]"}


def config(**more: object) -> RunConfig:
    return load_config("digits", tiny_run.overrides(**more))


def labellers(*sections: dict[str, Any]) -> str:
    return json.dumps([{"epochs": 2, "batch": 32} | section for section in sections])


SUPERVISED = {"arch": "resnet8", "objective": {"name": "supervised"}, "views": [{"count": 1}]}
MOCO = {"arch": "resnet14", "objective": {"queue": 64}, "keep_epochs": [1]}


def moco_file(path: Path, seed: int = 0, with_head: bool = False) -> nn.Module:
    """A ResNet-18 in the layout of MoCo v2, or with a classifier in torchvision's."""
    torch.manual_seed(seed)
    net = torchvision.models.resnet18(num_classes=10)
    state = dict(net.state_dict())
    if not with_head:
        state = {
            f"module.encoder_q.{key}": value
            for key, value in state.items()
            if not key.startswith("fc.")
        }
        for layer in ("fc.0", "fc.2"):  # of the two-layer head, by which v2 is told from v1
            state[f"module.encoder_q.{layer}.weight"] = torch.zeros(8, 8)
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state}, path)
    return net


def from_file(path: Path, **more: object) -> RunConfig:
    return config(
        squeeze__arch="resnet18",
        squeeze__checkpoint=json.dumps({"path": str(path)}),
        **{"probe__floor": 0, **STATISTICS, **more},
    )


def test_every_labeller_leaves_its_files_in_a_folder_of_its_own(tmp_path: Path):
    cfg = config(squeeze_labellers=labellers(SUPERVISED, MOCO))
    distill(cfg, tmp_path / "run", until="squeeze_labellers")
    folder = tmp_path / "run" / "squeeze_labellers"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    assert found == {
        "resnet8/backbone.safetensors",
        "resnet8/classifier.safetensors",
        "resnet8/forgetting.safetensors",
        "resnet14/backbone.safetensors",
        "resnet14/backbone-epoch-0001.safetensors",
    }
    recorded = json.loads((folder / "done.json").read_text())["outputs"]
    assert set(recorded) == found
    weights, about = load_weights(folder / "resnet14" / "backbone-epoch-0001.safetensors")
    assert about["arch"] == "resnet14" and about["epoch"] == 1
    last, _ = load_weights(folder / "resnet14" / "backbone.safetensors")
    assert not torch.equal(weights["conv1.weight"], last["conv1.weight"])
    forgetting, _ = load_weights(folder / "resnet8" / "forgetting.safetensors")
    assert forgetting["forgetting"].shape == forgetting["learnt"].shape == (120,)


def test_labellers_change_nothing_about_the_backbone(tmp_path: Path):
    runs = []
    for name, more in (("alone", {}), ("beside", {"squeeze_labellers": labellers(SUPERVISED)})):
        distill(config(**more), tmp_path / name, until="squeeze")
        runs.append(load_weights(tmp_path / name / "squeeze" / "backbone.safetensors")[0])
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_another_labeller_is_refused_until_its_step_is_redone(tmp_path: Path):
    run = tmp_path / "run"
    distill(config(squeeze_labellers=labellers(SUPERVISED)), run, until="squeeze_labellers")
    changed = (
        r"'squeeze_labellers' was made with squeeze_labellers\.0\.epochs = 2, now it is 3; redo"
    )
    with pytest.raises(ConfigError, match=changed):
        distill(
            config(squeeze_labellers=labellers(SUPERVISED | {"epochs": 3})),
            run,
            until="squeeze_labellers",
        )


def test_a_kept_epoch_that_is_lost_before_the_end_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cfg, run = config(squeeze_labellers=labellers(MOCO), checkpoint_minutes=0), tmp_path / "run"
    folder = run / "squeeze_labellers" / "resnet14"

    def stopped(path: Path, *rest: Any) -> None:
        if path == folder / "backbone.safetensors":
            raise KeyboardInterrupt
        save_weights(path, *rest)

    monkeypatch.setattr("scdd.steps.squeeze.save_weights", stopped)
    with pytest.raises(KeyboardInterrupt):
        distill(cfg, run, until="squeeze_labellers")
    monkeypatch.undo()
    (folder / "backbone-epoch-0001.safetensors").unlink()
    with pytest.raises(RunError) as caught:
        distill(cfg, run, until="squeeze_labellers")
    assert str(caught.value) == (
        f"{folder}: the backbone of epoch 1, which squeeze_labellers.0.keep_epochs names, is gone; "
        "make it again with --redo squeeze_labellers"
    )


def test_one_architecture_twice_is_refused():
    with pytest.raises(ConfigError, match="squeeze_labellers: resnet8 stands there twice"):
        config(squeeze_labellers=labellers(SUPERVISED, SUPERVISED))


def test_an_unknown_labeller_is_refused_before_anything_is_run(tmp_path: Path):
    cfg = config(squeeze_labellers=labellers(SUPERVISED | {"arch": "resnet9"}))
    sentence = r"^squeeze_labellers\.0\.arch: unknown architecture 'resnet9'"
    with pytest.raises(ConfigError, match=sentence):
        distill(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_backbone_of_a_file_has_the_features_of_the_network_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    net = moco_file(tmp_path / "moco.pth.tar")
    distill(from_file(tmp_path / "moco.pth.tar"), tmp_path / "run", until="probe")
    assert "layout: " in capsys.readouterr().out
    weights, about = load_weights(tmp_path / "run" / "squeeze" / "backbone.safetensors")
    assert about["objective"] == "moco_v2" and about["mean"] == [0.3, 0.3, 0.3]
    twin = torchvision.models.resnet18(num_classes=10)
    twin.fc = nn.Identity()
    net.fc = nn.Identity()
    twin.load_state_dict(weights)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(twin.eval()(x), net.eval()(x))


def test_the_classifier_of_a_file_can_be_the_teachers(tmp_path: Path):
    net = moco_file(tmp_path / "net.pth", with_head=True)
    distill(from_file(tmp_path / "net.pth", probe__solver="given"), tmp_path / "run", until="probe")
    weights, _ = load_weights(tmp_path / "run" / "probe" / "teacher.safetensors")
    assert torch.equal(weights["fc.weight"], net.fc.weight)


def test_a_file_may_move_but_not_change(tmp_path: Path):
    here, there = tmp_path / "here.pth", tmp_path / "there.pth"
    moco_file(here)
    distill(from_file(here), tmp_path / "run", until="squeeze")
    here.rename(there)
    distill(from_file(there), tmp_path / "run", until="squeeze")
    moco_file(there, seed=1)
    with pytest.raises(ConfigError, match=r"was made from another squeeze\.checkpoint\.path"):
        distill(from_file(there), tmp_path / "run", until="squeeze")
    there.unlink()
    distill(from_file(there), tmp_path / "run", until="squeeze")


def test_what_weights_do_not_tell_is_asked_for(tmp_path: Path):
    moco_file(tmp_path / "moco.pth")
    cfg = from_file(tmp_path / "moco.pth", dataset__mean="null")
    with pytest.raises(ConfigError, match=r"set dataset\.mean and dataset\.std"):
        distill(cfg, tmp_path / "run", until="squeeze")
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        distill(from_file(tmp_path / "gone.pth"), tmp_path / "other", until="squeeze")


def test_a_loaded_backbone_that_tells_nothing_apart_stops_at_the_gate(tmp_path: Path):
    path = tmp_path / "dead.pth"
    state = torchvision.models.resnet18(num_classes=10).state_dict()
    for key in state:
        if key.endswith("weight") and "fc" not in key:
            state[key] = torch.zeros_like(state[key])
    torch.save(state, path)
    cfg = from_file(path, probe__floor="null")
    with pytest.raises(RunError, match="the usual causes are"):
        distill(cfg, tmp_path / "run", until="probe")
    assert (tmp_path / "run" / "squeeze" / "done.json").exists()


def test_a_chosen_stem_is_trained_and_goes_with_the_weights_from_then_on(tmp_path: Path):
    stem = {"kernel": 3, "stride": 2, "padding": 1, "max_pool": False}
    cfg = config(
        squeeze__arch="resnet18", squeeze__stem=json.dumps(stem), squeeze__epochs=1, probe__floor=0
    )
    distill(cfg, tmp_path / "run", until="probe")
    for file in ("squeeze/backbone.safetensors", "probe/teacher.safetensors"):
        weights, about = load_weights(tmp_path / "run" / file)
        assert about["stem_spec"] == {**stem, "relu": True}
        assert weights["conv1.weight"].shape == (64, 3, 3, 3)


def test_a_stem_for_a_network_without_the_choice_is_refused_at_once(tmp_path: Path):
    stem = json.dumps({"kernel": 3, "stride": 1, "padding": 1, "max_pool": False})
    with pytest.raises(ConfigError, match="resnet8: has no choice of stem"):
        distill(config(squeeze__stem=stem), tmp_path / "run")
